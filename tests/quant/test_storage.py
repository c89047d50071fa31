"""Checkpoints' headers are judged without torch, whose import takes longer than all the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.quant.checkpoints import (
    LAYER,
    Awq,
    EightBit,
    Float8,
    FourBit,
    Gptq,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    Packed,
    Tensors,
    autoround,
    compressed,
    tensor,
    write,
)

N, K = 32, 64
BY_CHANNEL = compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})


def made(layer: Any) -> tuple[Tensors, dict[str, Any] | None]:
    return layer.tensors, layer.config


def mxfp4() -> tuple[Tensors, dict[str, Any] | None]:
    layer = Mxfp4(N, K)
    return {"_blocks": tensor(layer.blocks), "_scales": tensor(layer.scales)}, {"quant_method": "mxfp4"}


FORMATS: dict[str, tuple[Tensors, dict[str, Any] | None]] = {
    "plain": ({".weight": torch.ones(N, K)}, None),
    "gptq": made(Gptq(N, K, 4, 32, True, True, False)),
    "awq": made(Awq(N, K, 32)),
    "autoround": made(autoround(Gptq(N, K, 4, 32, True, False, False), "auto_round")),
    "nf4": made(FourBit(N, K, "nf4", 64, True)),
    "bnb-int8": made(EightBit(N, K)),
    "packed": made(Packed(N, K, 4, 32, False, True)),
    "int8": ({".weight": torch.ones(N, K).to(torch.int8), ".weight_scale": torch.ones(N, 1)}, BY_CHANNEL),
    "fp8": (Float8(N, K, (N, K), ".weight_scale").tensors, {"quant_method": "fp8"}),
    "mxfp8": made(Mxfp8(N, K)),
    "nvfp4": made(Nvfp4(N, K)),
    "modelopt": made(Nvfp4(N, K, modelopt=True)),
    "mxfp4": mxfp4(),
}
# Prints the tensors of each format's layer, an error, and whether torch was imported.
CODE = f"""
import sys
from quire.quant.formats.detect import storage_of
from quire.weights.checkpoint import open_checkpoint
from quire.weights.errors import CheckpointError
for path in sys.argv[1:]:
    storage = storage_of(open_checkpoint(path), None)
    print(*storage.tensors({LAYER!r}, {N}, {K}))
    try:
        storage.tensors({LAYER!r}, {N}, {2 * K})
    except CheckpointError as error:
        print(error)
print("torch" in sys.modules)
"""


def test_headers_are_judged_without_torch(tmp_path: Path) -> None:
    for name, (tensors, config) in FORMATS.items():
        write(tmp_path / name, {LAYER + ending: t for ending, t in tensors.items()}, config)
    paths = [str(tmp_path / name) for name in FORMATS]
    done = subprocess.run([sys.executable, "-c", CODE, *paths], check=True, capture_output=True, text=True)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "False"
    for (tensors, _), found, error in zip(FORMATS.values(), lines[::2], lines[1::2], strict=True):
        unread = {name for name in tensors if "quant_state" in name or name == ".input_scale"}
        assert {name.removeprefix(LAYER) for name in found.split()} == tensors.keys() - unread
        assert "the config calls for" in error
