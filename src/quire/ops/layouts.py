"""Kernel layouts: the few shapes in which a linear layer's weights lie in memory.

``unpacked`` forms are what checkpoint readers produce and what the reference ops compute with. A backend packs them
once, at load, into the order its kernels read (``ops.pack``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Dense:
    """Plain weights ``[N, K]`` (out, in) in float32, float16 or bfloat16."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.weight.shape[0], self.weight.shape[1])

    def dequantize(self) -> torch.Tensor:
        """float32 ``[N, K]``."""
        return self.weight.float()


@dataclass(frozen=True)
class GroupedInt:
    """Integers with a scale, and maybe a minimum, for each group of ``group`` inputs.

    ``w[n, k] = scale[n, k // group] * q[n, k] + minimum[n, k // group]``. ``bits`` 4: q in 0..15 (uint8, one a byte
    here); ``bits`` 8: q in -128..127 (int8). Scales are float16 where that is exact, else float32.
    """

    q: torch.Tensor  # [N, K] uint8 (bits 4) or int8 (bits 8)
    scale: torch.Tensor  # [N, K // group] float16 | float32
    minimum: torch.Tensor | None  # like scale
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.q.shape[0], self.q.shape[1])

    def dequantize(self) -> torch.Tensor:
        """float32 ``[N, K]``."""
        n, k = self.shape
        w = self.q.float().view(n, k // self.group, self.group) * self.scale.float()[..., None]
        if self.minimum is not None:
            w = w + self.minimum.float()[..., None]
        return w.view(n, k)


Layout = Dense | GroupedInt
