"""Writes small GGUF files for tests, right ones and wrong ones, byte by byte from the format's description."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

CODES = {
    "u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9, "u64": 10,
    "i64": 11, "f64": 12,
}  # fmt: skip
_PACK = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q",
    "i64": "q", "f64": "d",
}  # fmt: skip


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: str, item: Any) -> bytes:
    """A typed value; ``arr:KIND`` for lists."""
    if kind.startswith("arr:"):
        inner = kind[4:]
        return struct.pack("<IIQ", CODES["arr"], CODES[inner], len(item)) + b"".join(value(inner, i)[4:] for i in item)
    body = string(item) if kind == "str" else struct.pack("<" + _PACK[kind], item)
    return struct.pack("<I", CODES[kind]) + body


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]  # torch's order
    type: int = 0
    data: bytes = b""
    offset: int | None = None


@dataclass
class Builder:
    pairs: list[tuple[str, str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    tensor_count: int | None = None
    pair_count: int | None = None

    def build(self) -> bytes:
        head = self.magic + struct.pack("<I", self.version)
        head += struct.pack("<Q", len(self.tensors) if self.tensor_count is None else self.tensor_count)
        head += struct.pack("<Q", len(self.pairs) if self.pair_count is None else self.pair_count)
        for key, kind, item in self.pairs:
            head += string(key) + value(kind, item)
        data = b""
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            head += string(tensor.name) + struct.pack("<I", len(tensor.shape))
            head += b"".join(struct.pack("<Q", d) for d in reversed(tensor.shape))
            head += struct.pack("<IQ", tensor.type, offset)
            data += tensor.data + b"\0" * (-len(tensor.data) % self.alignment)
        return head + b"\0" * (-len(head) % self.alignment) + data


def f32(count: int, start: float = 0.0) -> bytes:
    return struct.pack(f"<{count}f", *(start + i for i in range(count)))


TOKENS = ["<s>", "</s>", *"abcdefgh", "Ġ", "ab", "cd", "abcd"]


def tiny_llama(
    hidden: int = 8, heads: int = 4, kv_heads: int = 2, layers: int = 1, vocab: int = len(TOKENS)
) -> Builder:
    """A whole llama model in float32, all values different."""
    head_dim, inner = hidden // heads, 2 * hidden
    pairs: list[tuple[str, str, Any]] = [
        ("general.architecture", "str", "llama"),
        ("llama.block_count", "u32", layers),
        ("llama.context_length", "u32", 64),
        ("llama.embedding_length", "u32", hidden),
        ("llama.feed_forward_length", "u32", inner),
        ("llama.attention.head_count", "u32", heads),
        ("llama.attention.head_count_kv", "u32", kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("llama.rope.freq_base", "f32", 10000.0),
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", "gpt-2"),
        ("tokenizer.ggml.tokens", "arr:str", TOKENS[:vocab]),
        ("tokenizer.ggml.token_type", "arr:i32", [3, 3] + [1] * (vocab - 2)),
        ("tokenizer.ggml.merges", "arr:str", ["a b", "c d", "ab cd"]),
        ("tokenizer.ggml.bos_token_id", "u32", 0),
        ("tokenizer.ggml.eos_token_id", "u32", 1),
        ("tokenizer.chat_template", "str", "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (heads * head_dim, hidden),
            f"blk.{i}.attn_k.weight": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_v.weight": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_output.weight": (hidden, heads * head_dim),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.ffn_gate.weight": (inner, hidden),
            f"blk.{i}.ffn_up.weight": (inner, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, inner),
        }
    tensors, start = [], 0.0
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors.append(Tensor(name, shape, 0, f32(count, start)))
        start += count
    return Builder(pairs, tensors)
