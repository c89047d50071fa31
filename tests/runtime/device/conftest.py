"""The GPU's runner, on the GPU where there is one, else with its kernels in Triton's interpreter."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined, so before the first import
