"""The names of quantisations: what ``--quantization`` takes, and what they mean."""

from __future__ import annotations

# Formats of checkpoints that are read, by the names that vLLM knows them under (Marlin is a kernel of its own there).
CHECKPOINT_METHODS: dict[str, str] = {
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "awq": "awq",
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8",
    "mxfp4": "mxfp4",
    "gpt_oss_mxfp4": "mxfp4",
    "gguf": "gguf",
}

# What plain weights can be quantised to as they are read.
LOAD_METHODS: dict[str, str] = {
    "int8": "int8",
    "int8_per_channel_weight_only": "int8",
    "int4": "int4",
    "nf4": "nf4",
    "bitsandbytes": "nf4",
    "fp8": "fp8",
    "fp8_per_channel": "fp8",
}

NAMES: tuple[str, ...] = tuple(dict.fromkeys([*CHECKPOINT_METHODS, *LOAD_METHODS]))
