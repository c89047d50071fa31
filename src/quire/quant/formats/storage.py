"""How the linear layers of one checkpoint are stored: known from its headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quire.quant.formats.scheme import FLOATS, Part, Scheme
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import CheckpointError, misshapen
from quire.weights.tensor_types import TYPES

_PLAIN = (*FLOATS, *(name for name, info in TYPES.items() if info.block > 1))
_CODES = (".qweight", ".weight_packed")  # what quantised modules have in place of a ``.weight``


@dataclass(frozen=True)
class Storage:
    """``scheme_of``: how a module's weights are stored; ``None``: plain, as one tensor of floats or GGUF blocks.

    ``at_load``: the method that quantises plain weights as they are read. ``kv_scales``: there are scales of keys and
    values too.
    """

    checkpoint: Checkpoint
    scheme_of: Callable[[str], Scheme | None]
    at_load: str | None = None
    kv_scales: bool = False

    def tensors(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Mapping[str, Part]:
        """The tensors of a module by name; optional ones only where they are there.

        ``stack``: that many matrices in one tensor, laid end to end (experts). Raises ``CheckpointError`` for a tensor
        that is missing, or of a wrong shape or type.
        """
        scheme = self.scheme_of(module)
        if scheme is None:
            return self._plain(module, outputs, inputs, stack)
        names = self.checkpoint.names()
        parts = {module + suffix: part for suffix, part in scheme.parts(outputs, inputs).items()}
        parts = {name: part for name, part in parts.items() if not part.optional or name in names}
        for name, part in parts.items():
            self._check_shape(name, part, stack)
            if (type := self.checkpoint.info(name).type) not in part.types:
                raise CheckpointError(
                    f"The tensor {name} has the type {type}, but its quantisation calls for {' or '.join(part.types)}."
                )
        return parts

    def _plain(self, module: str, outputs: int, inputs: int, stack: int) -> Mapping[str, Part]:
        names = self.checkpoint.names()
        # Experts in one tensor have no module of their own in Transformers: the parameter is named as the map says.
        name = module if module in names and module + ".weight" not in names else module + ".weight"
        if name not in names and (codes := [module + ending for ending in _CODES if module + ending in names]):
            raise CheckpointError(
                f"{codes[0]} is of a quantised layer, but config.json has no quantization_config that says how to read "
                "it; fetch the checkpoint again with the config that belongs to it."
            )
        check_type(name, self.checkpoint.info(name).type)
        part = Part(((outputs, inputs),), _PLAIN)
        self._check_shape(name, part, stack)
        return {name: part}

    def _check_shape(self, name: str, part: Part, stack: int) -> None:
        shapes = [(stack, *shape) if stack > 1 else shape for shape in part.shapes]
        if (actual := self.checkpoint.info(name).shape) not in shapes:
            raise misshapen(name, actual, shapes[0])


def check_type(name: str, type: str) -> None:
    """Raises ``CheckpointError`` for a type that plain weights, norms and biases can't be read from."""
    if type not in _PLAIN:
        raise CheckpointError(
            f"The tensor {name} has the type {type}, where plain weights are {', '.join(FLOATS)}: convert it, or, if "
            "it is quantised, fetch what says how (scales, state, quantization_config), which is missing."
        )
