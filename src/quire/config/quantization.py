"""The names of quantisations: what ``--quantization`` takes, and what they mean."""

from __future__ import annotations

# Formats of checkpoints that are read, by the names that vLLM knows them under (Marlin is a kernel of its own there).
CHECKPOINT_METHODS: dict[str, str] = {
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "awq": "awq",
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "cpu_awq": "awq",
    "auto-round": "auto-round",
    "intel/auto-round": "auto-round",
    "inc": "auto-round",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "modelopt": "modelopt",
    "modelopt_fp4": "modelopt",
    "modelopt_mxfp8": "modelopt",
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
    "fp8_per_tensor": "fp8_per_tensor",
    "fp8_per_block": "fp8_per_block",
    "mxfp8": "mxfp8",
}

# vLLM's other names: what each is, and what is nearest to it here.
_CT = "the same weights in compressed-tensors' layout are read"
REFUSED: dict[str, str] = {
    "deepseek_v4_fp8": "is the format of one architecture that has no family; fp8 checkpoints in blocks are read",
    "experts_int8": "would quantise experts alone; int8 quantises all layers at load",
    "fp_quant": f"has rotated inputs, which no kernel makes; {_CT}, and mxfp4 where they aren't rotated",
    "humming": "names a kernel, not a format; leave the option out, and the checkpoint's own format is read",
    "modelopt_mixed": "gives each layer a format of its own; modelopt checkpoints of one format are read",
    "moe_wna16": "names a kernel, not a format; leave the option out, and gptq or awq experts are read",
    "nvfp4_per_token": "is not done at load; nvfp4 checkpoints are read, and nf4 is what 4-bit codes at load are",
    "online": "needs a quantization-config; name the method itself: int8, int4, nf4, fp8, mxfp8",
    "quark": f"is a layout that is not read; {_CT}",
    "torchao": f"stores tensor classes rather than tensors; {_CT}, and int8, int4 and fp8 are made at load",
}

NAMES: tuple[str, ...] = tuple(dict.fromkeys([*CHECKPOINT_METHODS, *LOAD_METHODS]))


def parse_quantization(name: str) -> str:
    """``name``; raises ``ValueError`` for one of vLLM's that means nothing here, saying what is nearest."""
    if name in REFUSED:
        raise ValueError(f"{name} {REFUSED[name]}.")
    return name
