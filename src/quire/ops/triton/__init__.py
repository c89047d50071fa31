"""The ops on NVIDIA GPUs. Importing this imports Triton; its interpreter runs the kernels on CPU tensors."""

from quire.ops.triton.ops import TritonOps

__all__ = ["TritonOps"]
