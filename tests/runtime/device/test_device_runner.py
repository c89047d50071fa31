"""The device's runner gives the same tokens as the host's, whatever the requests ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quire.config.engine import EngineConfig
from quire.engine.inline import InlineEngine
from quire.engine.messages import EngineRequest, TokenDelta
from quire.engine.plan import KVGroup
from quire.ops.triton import TritonOps
from quire.params import SamplingParams
from quire.runtime.build import build_runner, make_blueprint
from quire.runtime.device_runner import DeviceRunner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
    "max_model_len": 96,
    "page_size": 16,
}
VOCAB = 160
MODELS: dict[str, dict[str, Any]] = {
    "full": {"model_type": "llama", "num_key_value_heads": 2},
    "windows": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "sliding_window": 20,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "latent": {
        "model_type": "deepseek_v2",
        "num_key_value_heads": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    },
    "states": {
        "model_type": "qwen3_5_text",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {}
    for name, settings in MODELS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            **settings,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=VOCAB,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
        paths[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(paths[name])
    return paths


def device_engine(path: Path, pages: int | None = None, **options: int) -> InlineEngine:
    """``pages``: how many each group has, if not as many as memory holds."""
    config = EngineConfig(model=str(path), **{**OPTIONS, **options})
    b = make_blueprint(config, ops := TritonOps(DEVICE, torch.float32))
    decoder = b.loader.decoder(1, b.memory.max_model_len)
    runner = DeviceRunner(decoder, ops, b.memory, b.device.slots(config), b.device.step_tokens(config), torch.float32)
    if DEVICE == "cuda":
        runner.compile()
        runner.capture()
    if pages is not None:
        runner.groups = [KVGroup(group.window, pages, group.states) for group in runner.groups]
    return InlineEngine(runner, config)


def host_engine(path: Path, **options: int) -> InlineEngine:
    config = EngineConfig(model=str(path), **{**OPTIONS, **options})
    return InlineEngine(build_runner(config), config)


def ask(name: str, prompt: list[int], **params: Any) -> EngineRequest:
    seed = params.pop("seed", 0)
    words = params.pop("bad_words_token_ids", [])
    sampling = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, "ignore_eos": True, **params})
    return EngineRequest(name, prompt, sampling, seed=seed, bad_words_token_ids=words)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(engine: InlineEngine, requests: list[EngineRequest]) -> dict[str, list[TokenDelta]]:
    for request in requests:
        engine.add(request)
    found: dict[str, list[TokenDelta]] = {request.request_id: [] for request in requests}
    for delta in engine.run():
        found[delta.request_id].append(delta)
    return found


def tokens(deltas: list[TokenDelta]) -> list[int]:
    assert deltas[-1].finish_reason in ("stop", "length"), deltas[-1].error
    return [token for delta in deltas for token in delta.token_ids]


ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="minutes in the interpreter; their ops are tested"),
]


@pytest.mark.parametrize(
    "name",
    ["full", "windows", pytest.param("latent", marks=ON_A_GPU), pytest.param("states", marks=ON_A_GPU)],
)
def test_tokens_are_those_of_the_host(models: dict[str, Path], name: str) -> None:
    """Chunked prompts beside decodes, a shared prefix, a stop in the middle, edits of the logits, seeds."""
    shared = prompt(40, 1)
    requests = [
        ask("long", prompt(45, 2)),
        ask("shared", [*shared, 5]),
        ask("shared too", [*shared, 6], temperature=0.9, seed=3),
        ask("short", prompt(3, 4), max_tokens=8),
        ask("filtered", prompt(9, 5), temperature=1.2, top_k=7, top_p=0.8, seed=9),
        ask("penalties", prompt(9, 6), repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.2),
        ask("biased", prompt(9, 7), logit_bias={3: 4.0, 8: -100.0}, bad_words_token_ids=[[11], [3, 3]]),
        ask("allowed", prompt(9, 8), allowed_token_ids=[4, 9, 100], temperature=1.0, seed=1),
    ]
    model = models[name]
    engine = device_engine(model)
    host, device = run(host_engine(model), requests), run(engine, requests)
    assert {name: tokens(d) for name, d in device.items()} == {name: tokens(d) for name, d in host.items()}
    assert engine.core.kv.free_pages == engine.core.kv.total_pages
    short = tokens(host["short"])
    early = ask("early", prompt(3, 4), stop_token_ids=[short[3]], max_tokens=8)
    again = run(engine, [requests[0], early])  # one from the prefix cache, one that ends while a step is in flight
    assert tokens(again["long"]) == tokens(host["long"])
    assert tokens(again["early"]) == short[: short.index(short[3]) + 1]


def test_a_prefix_in_common_is_read_once(models: dict[str, Path]) -> None:
    """Requests that start with the same 128 tokens."""
    shared = prompt(128, 1)
    options = {"max_model_len": 160, "max_num_batched_tokens": 160, "max_num_seqs": 6}
    requests = [ask(str(i), [*shared, i + 1, i + 2], max_tokens=3) for i in range(5)]
    engine = device_engine(models["windows"], **options)
    runner, seen = engine.core.runner, []
    assert isinstance(runner, DeviceRunner)
    compute = runner._graphs._run
    runner._graphs._run = lambda shape: seen.append(shape) or compute(shape)  # type: ignore[func-returns-value]
    device = run(engine, requests)
    host = run(host_engine(models["windows"], **options), requests)
    assert {name: tokens(d) for name, d in device.items()} == {name: tokens(d) for name, d in host.items()}
    assert DEVICE == "cuda" or any(shape.shared for shape in seen)


def test_preemption(models: dict[str, Path]) -> None:
    model = models["full"]
    requests = [ask(str(i), prompt(26 + i, i), max_tokens=8) for i in range(3)]
    host = run(host_engine(model), requests)
    engine = device_engine(model, pages=5)
    device = run(engine, requests)
    assert engine.stats().preemptions
    assert {name: tokens(d) for name, d in device.items()} == {name: tokens(d) for name, d in host.items()}


def test_logprobs(models: dict[str, Path]) -> None:
    model = models["full"]
    requests = [ask("a", prompt(40, 1), logprobs=3, prompt_logprobs=2), ask("b", prompt(4, 2), logprobs=0)]
    host, device = run(host_engine(model), requests), run(device_engine(model), requests)
    for name in ("a", "b"):
        for part in ("logprobs", "prompt_logprobs"):
            wanted = [row for d in host[name] for row in getattr(d, part) or []]
            found = [row for d in device[name] for row in getattr(d, part) or []]
            assert len(wanted) == len(found)
            for w, f in zip(wanted, found, strict=True):
                assert (w is None) == (f is None)
                if w is not None:
                    assert (f.token_ids, f.ranks) == (w.token_ids, w.ranks)
                    assert f.logprobs == pytest.approx(w.logprobs, abs=1e-4)
