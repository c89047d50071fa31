"""Ops on CPU by own C++ kernels (``csrc/``), or by plain torch where they could not be built."""

from quire.ops.cpu.load import load

__all__ = ["load"]
