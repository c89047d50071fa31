"""Checkpoints of quantised layers, packed with numpy from the formats' descriptions; every packer has its formula."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from quire.weights.hf_checkpoint import HFCheckpoint

Array = npt.NDArray[Any]
Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0.mlp.up_proj"
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def write(path: Path, tensors: Tensors, quantization: Mapping[str, Any] | None, **config: Any) -> HFCheckpoint:
    """A model directory with these tensors."""
    path.mkdir(parents=True, exist_ok=True)
    if quantization is not None:
        config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    return HFCheckpoint(path)


def bitstream(values: Array, bits: int) -> Array:
    """Each row's integers as one stream of bits, lowest first, in 32-bit words."""
    rows, count = values.shape
    stream = np.unpackbits(values.astype(np.uint8)[..., None], axis=2, bitorder="little")[:, :, :bits].reshape(rows, -1)
    stream = np.pad(stream, ((0, 0), (0, -count * bits % 32)))
    return np.packbits(stream, axis=1, bitorder="little").view("<i4")


def tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


class Gptq:
    """``w[k, n] = scales[g, n] * (q[k, n] - zeros[g, n])``, g = g_idx[k]."""

    def __init__(self, n: int, k: int, bits: int, group: int, sym: bool, v1: bool, act: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        groups = 1 if group == -1 else -(-k // group)
        q, top = rng.integers(0, 1 << bits, (k, n)), (1 << bits) - 1
        zeros = np.full((groups, n), 1 << (bits - 1)) if sym else rng.integers(0, top + 1, (groups, n))
        scales = (rng.random((groups, n)) * 0.02 + 0.001).astype(np.float16)
        index = np.arange(k) // (k if group == -1 else group)
        index = rng.permutation(index) if act else index
        self.tensors: Tensors = {
            ".qweight": tensor(bitstream(q.T, bits).T),
            ".qzeros": tensor(self.pack_zeros(zeros, bits, v1)),
            ".scales": tensor(scales),
            ".g_idx": tensor(index.astype(np.int32)),
        }
        self.weight = tensor((scales[index].astype(np.float32) * (q - zeros[index])).T.astype(np.float32))
        version = "gptq" if v1 else "gptq_v2"
        self.config: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": group}
        self.config |= {"sym": sym, "desc_act": act, "checkpoint_format": version}

    @staticmethod
    def pack_zeros(zeros: Array, bits: int, v1: bool) -> Array:
        """Version 1 has 1 less: gptqmodel subtracts it from words, with borrows, where they hold whole integers."""
        if v1 and 32 % bits:
            return bitstream((zeros - 1) & ((1 << bits) - 1), bits)
        words = bitstream(zeros, bits).view(np.uint32)
        return (words - np.uint32(sum(1 << i for i in range(0, 32, bits))) if v1 else words).view(np.int32)


class Awq:
    """4 bits along the outputs, ``w[k, n] = scales[g, n] * (q[k, n] - zeros[g, n])``."""

    ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column, of 8, at each 4 bits of a word

    def __init__(self, n: int, k: int, group: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        groups = 1 if group == -1 else k // group
        q, zeros = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (groups, n))
        scales = (rng.random((groups, n)) * 0.02 + 0.001).astype(np.float16)
        self.tensors: Tensors = {
            ".qweight": tensor(self.pack(q)),
            ".qzeros": tensor(self.pack(zeros)),
            ".scales": tensor(scales),
        }
        index = np.arange(k) // (k // groups)
        self.weight = tensor((scales[index].astype(np.float32) * (q - zeros[index])).T.astype(np.float32))
        self.config: dict[str, Any] = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "zero_point": True,
            "version": "gemm",
        }

    @classmethod
    def pack(cls, values: Array) -> Array:
        columns = values.reshape(len(values), -1, 8)[:, :, cls.ORDER].astype(np.uint32)
        return (columns << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=2, dtype=np.uint32).view(np.int32)


def autoround(made: Gptq | Awq, packing: str, **changes: Any) -> Gptq | Awq:
    """The same layers in a checkpoint of AutoRound, which stores no ``g_idx`` and says little of the layout."""
    made.tensors.pop(".g_idx", None)
    settings = {key: made.config[key] for key in ("bits", "group_size")}
    sym = made.config.get("sym", False)
    made.config = {"quant_method": "auto-round", "packing_format": packing, "data_type": "int", "sym": sym, **settings}
    made.config |= {"block_name_to_quantize": "model.layers", "iters": 200, "autoround_version": "0.16.1", **changes}
    return made


class FourBit:
    """bitsandbytes: blocks along the flattened weight, the first of two codes in the high half of a byte."""

    def __init__(self, n: int, k: int, kind: str, block: int, nested: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        codes, blocks = rng.integers(0, 16, n * k), -(-n * k // block)
        table = np.array(NF4 if kind == "nf4" else E2M1, np.float32)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [n, k]}
        parts = {".weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None], ".weight.quant_map": table}
        if nested:
            absmax = rng.integers(0, 256, blocks).astype(np.uint8)
            outer = rng.random(-(-blocks // 256)).astype(np.float32)
            levels = np.sort(rng.standard_normal(256) * 0.05).astype(np.float32)
            parts |= {".weight.absmax": absmax, ".weight.nested_absmax": outer, ".weight.nested_quant_map": levels}
            state |= {"nested_blocksize": 256, "nested_offset": 0.125, "nested_dtype": "float32"}
            scale = levels[absmax] * outer[np.arange(blocks) // 256] + np.float32(0.125)
        else:
            scale = (rng.random(blocks) * 0.2).astype(np.float32)
            parts[".weight.absmax"] = scale
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        self.tensors: Tensors = {name: tensor(x) for name, x in parts.items()}
        self.tensors[".weight.quant_state.bitsandbytes__" + kind] = tensor(text.copy())
        self.weight = tensor((table[codes] * scale[np.arange(n * k) // block]).reshape(n, k))
        self.config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}


class EightBit:
    """bitsandbytes' int8: ``w = q * SCB / 127``."""

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        q, scale = rng.integers(-127, 128, (n, k)).astype(np.int8), (rng.random(n) * 0.2).astype(np.float32)
        self.tensors: Tensors = {".weight": tensor(q), ".SCB": tensor(scale)}
        self.weight = tensor(q * (scale / np.float32(127))[:, None])
        self.config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}


class Packed:
    """compressed-tensors' pack-quantized: offset binary along the inputs, zeros along the outputs."""

    def __init__(self, n: int, k: int, bits: int, group: int, sym: bool, act: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        groups = 1 if group == -1 else -(-k // group)
        q, half = rng.integers(0, 1 << bits, (n, k)), 1 << (bits - 1)
        zeros = np.full((n, groups), half) if sym else rng.integers(0, 1 << bits, (n, groups))
        scale = tensor((rng.random((n, groups)) * 0.02 + 0.001).astype(np.float32)).bfloat16()
        index = np.arange(k) // (k if group == -1 else group)
        index = rng.permutation(index) if act else index
        self.tensors: Tensors = {
            ".weight_packed": tensor(bitstream(q, bits)),
            ".weight_scale": scale,
            ".weight_shape": torch.tensor([n, k]),
        }
        if not sym:
            self.tensors[".weight_zero_point"] = tensor(bitstream(zeros.T, bits).T)
        if act:
            self.tensors[".weight_g_idx"] = tensor(index.astype(np.int32))
        self.weight = tensor((q - zeros[:, index]).astype(np.float32)) * scale.float()[:, index]
        strategy = "channel" if group == -1 else "group"
        weights: dict[str, Any] = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": sym}
        weights["actorder"] = "group" if act else None
        if group != -1:
            weights["group_size"] = group
        self.config = compressed("pack-quantized", weights)


def compressed(format: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": ["lm_head"]}


class Float8:
    """e4m3 with a scale a tensor, an output, or a block."""

    def __init__(self, n: int, k: int, block: tuple[int, int], scale_name: str, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        weight = (torch.randn(n, k, generator=rng) * 50).clamp(-448, 448).to(torch.float8_e4m3fn)
        scale = torch.rand(-(-n // block[0]), -(-k // block[1]), generator=rng) * 0.001 + 1e-5
        rows, columns = torch.arange(n) // block[0], torch.arange(k) // block[1]
        self.weight = weight.float() * scale[rows][:, columns]
        scale = scale[0, 0] if block == (n, k) and scale_name == ".weight_scale" else scale
        self.tensors: Tensors = {".weight": weight, scale_name: scale}


class Mxfp8:
    """e4m3 in blocks of 32 with a power of two."""

    config = {"quant_method": "modelopt", "quant_algo": "MXFP8"}

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        bits, scale = rng.integers(0, 127, (n, k)).astype(np.uint8), rng.integers(110, 120, (n, k // 32), np.uint8)
        bits |= rng.integers(0, 2, (n, k), np.uint8) << 7
        self.tensors: Tensors = {".weight": tensor(bits).view(torch.float8_e4m3fn), ".weight_scale": tensor(scale)}
        sign, exponent, mantissa = np.where(bits >> 7, -1.0, 1.0), (bits >> 3 & 15).astype(int), (bits & 7) / 8
        values = sign * np.where(exponent, (1 + mantissa) * np.exp2(exponent - 7.0), mantissa * np.exp2(-6.0))
        self.weight = tensor((values * np.repeat(np.exp2(scale - 127.0), 32, axis=1)).astype(np.float32))


class Nvfp4:
    """Blocks of 16 with an e4m3 scale, times (ModelOpt) or divided by (compressed-tensors) the tensor's scale."""

    def __init__(self, n: int, k: int, seed: int = 0, modelopt: bool = False) -> None:
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 16, (n, k))
        pairs = tensor((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
        scale = tensor(rng.random((n, k // 16)) * 400 + 1).to(torch.float8_e4m3fn)
        whole = np.float32(2.5e-5 if modelopt else 8192.0)
        self.tensors: Tensors = {".weight_scale": scale}
        if modelopt:
            self.tensors |= {
                ".weight": pairs,
                ".weight_scale_2": torch.tensor(whole),
                ".input_scale": torch.tensor(0.5),
            }
        else:
            self.tensors |= {".weight_packed": pairs, ".weight_global_scale": torch.tensor([whole])}
        four = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
        packed = compressed("nvfp4-pack-quantized", four, four)
        self.config = {"quant_method": "modelopt", "quant_algo": "NVFP4"} if modelopt else packed
        blocks = scale.float().numpy() * whole if modelopt else scale.float().numpy() / whole
        self.weight = tensor(np.array(E2M1, np.float32)[codes] * np.repeat(blocks, 16, axis=1))


class Mxfp4:
    """Blocks of 32 with a power of two; the first of two codes in the low half of a byte."""

    def __init__(self, n: int, k: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        codes, scale = rng.integers(0, 16, (n, k)), rng.integers(118, 126, (n, k // 32)).astype(np.uint8)
        self.blocks = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8).reshape(n, k // 32, 16)
        self.scales = scale
        powers = np.exp2(scale.astype(np.float32) - 127)
        self.weight = tensor(np.array(E2M1, np.float32)[codes] * np.repeat(powers, 32, axis=1))
