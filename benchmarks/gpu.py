"""Quire on one NVIDIA GPU: the workloads of docs/gpu.md through ``LLM``, with random weights.

Fixed output lengths, temperature 0.6, no tokenizer. Each model is started twice in fresh processes (kernel cache cold,
then warm); the second one runs the workloads. Python's byte code is cached before, as pip leaves it (where folders of
packages can't be written, set PYTHONPYCACHEPREFIX). Writes JSON that benchmarks/results keeps.

    python benchmarks/gpu.py --models qwen3-0.6b llama-3.1-8b --result benchmarks/results/gpu.json
    python benchmarks/gpu.py --models qwen3-0.6b --workloads decode1 --repeat 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "eos_token_id": 151645,
    "use_sliding_window": False,
}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "eos_token_id": 128001,
}
SHAPES: dict[str, dict[str, Any]] = {"qwen3-0.6b": _QWEN3, "llama-3.1-8b": _LLAMA}
_IMPORT_ALL = """
import quire.llm, quire.runtime.device_runner
from quire.ops.triton.cute import flash_attention_function, gated_products
flash_attention_function(), gated_products()
"""
WORKLOADS = {"decode1": 3, "prefill": 3, "prefix": 1, "nano": 1, "sharegpt": 1}  # and how often each runs
FIGURES = {
    "decode1": "decode1_ms",
    "nano": "nano_tok_s",
    "sharegpt": "sharegpt_tok_s",
    "prefill": "prefill_tok_s",
    "prefix": "prefix_s",
}


def main() -> int:
    args = read_arguments()
    if args.child:
        print(json.dumps(run(args.child, args)))
        return 0
    figures: dict[str, Any] = {}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-W", "ignore", "-c", _IMPORT_ALL], check=True)
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.mkdir()
            (path / "config.json").write_text(json.dumps(SHAPES[name] | {"hidden_act": "silu"}))
            caches = None if args.warm_only else Path(folder) / "cache"
            cold = {} if args.warm_only else child(path, [], args, caches)
            warm = child(path, args.workloads, args, caches)
        figures[name] = warm | {f"start_cold_{key[6:]}": value for key, value in cold.items() if key == "start_s"}
        print(name, json.dumps(figures[name], indent=1), flush=True)
    if args.result:
        document = {"date": datetime.now(UTC).isoformat(), "command": sys.argv, "machine": machine(), "models": figures}
        args.result.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def child(path: Path, workloads: list[str], args: argparse.Namespace, caches: Path | None) -> dict[str, Any]:
    """Figures of one process, which keeps compiled kernels in ``caches`` (None: in the user's)."""
    environment = dict(os.environ)
    if caches is not None:
        environment |= {"TRITON_CACHE_DIR": str(caches / "triton"), "XDG_CACHE_HOME": str(caches)}
    command = [sys.executable, __file__, "--child", str(path), "--repeat", str(args.repeat), "--quire", args.quire]
    command += ["--workloads", *workloads] if workloads else ["--workloads"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures | {"process_s": time.perf_counter() - start}


def run(model: str, args: argparse.Namespace) -> dict[str, Any]:
    begin = time.perf_counter()
    from quire import LLM, SamplingParams
    from quire.bench.workloads import make_workload

    llm = LLM(model, load_format="dummy", skip_tokenizer_init=True, **json.loads(args.quire))
    figures: dict[str, Any] = {"start_s": time.perf_counter() - begin, "phases": llm.phases}
    for name in args.workloads:
        requests = make_workload(name)
        prompts = [{"prompt_token_ids": r.prompt_token_ids} for r in requests]
        params = [
            SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=r.max_tokens, detokenize=False)
            for r in requests
        ]
        runs = []
        for _ in range(WORKLOADS[name] * args.repeat):
            llm.reset_prefix_cache()
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            runs.append((time.perf_counter() - start, outputs))
        seconds, outputs = sorted(runs, key=lambda r: r[0])[len(runs) // 2]
        figures[FIGURES[name]] = figure(name, seconds, outputs)
        figures[name] = {"seconds": [s for s, _ in runs], "cached": sum(o.num_cached_tokens or 0 for o in outputs)}
    return figures


def figure(name: str, seconds: float, outputs: list[Any]) -> float:
    if name == "prefix":
        return seconds
    if name == "decode1":
        m = outputs[0].metrics
        return float(1000 * (m.finished_time - m.first_token_time) / (len(outputs[0].outputs[0].token_ids) - 1))
    if name == "prefill":
        return sum(len(o.prompt_token_ids) for o in outputs) / seconds
    return sum(len(o.outputs[0].token_ids) for o in outputs) / seconds


def machine() -> dict[str, str]:
    import torch
    import triton

    return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--repeat", type=int, default=1, help="times the usual number of runs")
    parser.add_argument("--warm-only", action="store_true", help="skip the start with a cold kernel cache")
    parser.add_argument("--quire", default="{}", help="further options of LLM, as JSON")
    parser.add_argument("--result", type=Path, help="JSON file to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
