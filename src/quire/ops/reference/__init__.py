"""The ops in plain torch, float32, on any device: oracle of the tests and fallback where no kernel was built."""

from quire.ops.reference.ops import ReferenceOps

__all__ = ["ReferenceOps"]
