"""compressed-tensors checkpoints (llm-compressor's): each group of modules has a scheme of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.ops.shapes import ActivationQuant
from quire.quant.formats.fp8 import MX_BLOCK, Fp8Scheme, block_of
from quire.quant.formats.mxfp4 import PACKED as MXFP4
from quire.quant.formats.nvfp4 import PACKED as NVFP4
from quire.quant.formats.patterns import compiled, matches
from quire.quant.formats.scheme import FLOATS, Part, Scheme, Settings, part
from quire.quant.formats.sizes import group_count, packed_words
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError

METHOD = "compressed-tensors"
_REGEX = "re:"
_MARKS = (".weight_packed", ".weight_scale")  # one of them stands beside every quantised weight
_INTEGERS = ("I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class PackedScheme:
    """Weights of 2 to 8 bits, with groups along the inputs (-1: one for each output, ``None``: one for all)."""

    bits: int
    group: int | None
    symmetric: bool

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        groups = group_count(inputs, self.group or -1)
        rows = outputs if self.group else 1
        scales = ((rows, groups),) if self.group else ((1,), (), (1, 1))
        zeros = ((packed_words(rows, self.bits), groups), (rows, groups))
        return {
            ".weight_packed": part(outputs, packed_words(inputs, self.bits), types=("I32",)),
            ".weight_scale": Part(scales, FLOATS),
            ".weight_zero_point": Part(zeros, _INTEGERS, optional=self.symmetric),
            ".weight_g_idx": part(inputs, types=("I32", "I64"), optional=True),
            ".weight_shape": part(2, types=("I64", "I32"), optional=True),
        }


@dataclass(frozen=True)
class Int8Scheme:
    """8-bit weights with a scale for each output; ``static``: inputs are rounded by a scale in the checkpoint."""

    activation: ActivationQuant | None
    static: bool

    def parts(self, outputs: int, inputs: int) -> Mapping[str, Part]:
        parts = {
            ".weight": part(outputs, inputs, types=("I8",)),
            ".weight_scale": Part(((outputs, 1), (1,), (), (outputs,), (1, 1)), FLOATS),
        }
        if self.static:
            parts[".input_scale"] = Part(((1,), (), (1, 1)), FLOATS)
            parts[".input_zero_point"] = Part(((1,), (), (1, 1)), _INTEGERS, optional=True)
        return parts


@dataclass(frozen=True)
class _Group:
    targets: tuple[str, ...]
    scheme: Scheme


def compressed_tensors_schemes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Callable[[str], Scheme | None]:
    """The scheme of each module, ``None`` for a plain one. Raises ``CheckpointError`` for unknown settings."""
    settings, names = Settings(METHOD, config), checkpoint.names()
    if settings.group("transform_config").values.get("config_groups"):
        raise CheckpointError(f"The {METHOD} checkpoint has a transform_config, which is not supported.")
    settings.group("sparsity_config").one_of("format", "dense", ("dense",))
    entries = settings.group("config_groups")
    groups = [_group(entries.group(name), settings) for name in entries.values]
    ignore = _names(settings, "ignore")

    def scheme_of(module: str) -> Scheme | None:
        if not any(module + mark in names for mark in _MARKS) or any(_is_target(t, module) for t in ignore):
            return None
        named = [g for g in groups if any(_is_target(t, module) for t in g.targets)]
        # A target that is no name of a module names a class, such as Linear.
        found = named or [g for g in groups if any("." not in t and not t.startswith(_REGEX) for t in g.targets)]
        if not found:
            raise CheckpointError(f"{module} is quantised, but no target of the quantization_config names it.")
        return found[0].scheme

    return scheme_of


def _is_target(target: str, module: str) -> bool:
    return matches(target[len(_REGEX) :], module) if target.startswith(_REGEX) else target == module


def _names(settings: Settings, key: str) -> tuple[str, ...]:
    names = settings.values.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"The {METHOD} checkpoint's quantization_config has no usable {key}: a list of names.")
    for name in names:
        if name.startswith(_REGEX):
            compiled(name[len(_REGEX) :])
    return tuple(names)


def _group(settings: Settings, whole: Settings) -> _Group:
    format = settings.text("format", whole.text("format", "dense"))
    if format not in _FORMATS:
        raise CheckpointError(f"The {METHOD} format {format[:40]!r} is not supported; {', '.join(_FORMATS)} are.")
    inputs = settings.group("input_activations") if settings.values.get("input_activations") else None
    return _Group(_names(settings, "targets"), _FORMATS[format](settings.group("weights"), inputs))


def _packed(weights: Settings, inputs: Settings | None) -> Scheme:
    if inputs is not None:
        raise CheckpointError(f"{METHOD} with packed weights and rounded inputs is not supported.")
    strategy = weights.one_of("strategy", "channel", ("tensor", "channel", "group"))
    weights.one_of("type", "int", ("int",))
    group = {"tensor": None, "channel": -1, "group": weights.group_size(128)}[strategy]
    return PackedScheme(weights.one_of("num_bits", 4, (2, 3, 4, 5, 6, 7, 8)), group, weights.flag("symmetric", True))


def _int8(weights: Settings, inputs: Settings | None) -> Scheme:
    weights.one_of("num_bits", 8, (8,))
    weights.one_of("strategy", "channel", ("tensor", "channel"))
    weights.one_of("symmetric", True, (True,))
    if inputs is None:
        return Int8Scheme(None, static=False)
    inputs.one_of("num_bits", 8, (8,))
    inputs.one_of("type", "int", ("int",))
    inputs.one_of("strategy", "token", ("token", "tensor"))
    activation = ActivationQuant("int8", symmetric=inputs.flag("symmetric", True))
    return Int8Scheme(activation, static=not inputs.flag("dynamic", False))


def _float(weights: Settings, inputs: Settings | None) -> Scheme:
    weights.one_of("num_bits", 8, (8,))
    strategy = weights.one_of("strategy", "tensor", ("tensor", "channel", "block"))
    block = block_of(weights.values.get("block_structure")) if strategy == "block" else None
    if inputs is None:
        return Fp8Scheme(".weight_scale", block)
    inputs.one_of("num_bits", 8, (8,))
    inputs.one_of("type", "float", ("float",))
    inputs.one_of("strategy", "token", ("token", "tensor", "group"))
    if not inputs.flag("dynamic", False):
        return Fp8Scheme(".weight_scale", block, ".input_scale")
    group = inputs.group_size(128) if inputs.values.get("strategy") == "group" else None
    return Fp8Scheme(".weight_scale", block, dynamic=ActivationQuant("fp8", group=group))


def _naive(weights: Settings, inputs: Settings | None) -> Scheme:
    return (_float if weights.one_of("type", "int", ("int", "float")) == "float" else _int8)(weights, inputs)


def _as_named(scheme: Scheme) -> Callable[[Settings, Settings | None], Scheme]:
    """A format that has one scheme. Inputs stay as they are: to round them in blocks, too, would only be less exact."""
    return lambda weights, inputs: scheme


_FORMATS: dict[str, Callable[[Settings, Settings | None], Scheme]] = {
    "pack-quantized": _packed,
    "int-quantized": _int8,
    "float-quantized": _float,
    "naive-quantized": _naive,
    "mxfp4-pack-quantized": _as_named(MXFP4),
    "mxfp8-quantized": _as_named(Fp8Scheme(".weight_scale", MX_BLOCK)),
    "nvfp4-pack-quantized": _as_named(NVFP4),
}
