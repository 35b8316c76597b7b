"""Is there an NVIDIA GPU that torch can use, and if not, why not?"""

import os

import torch

__all__ = ["cuda_missing"]


def cuda_missing() -> str:
    """Why CUDA cannot be used, in one sentence; empty when it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.is_available():
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"torch finds no GPU or driver with CUDA_VISIBLE_DEVICES={visible!r}"
    return f"torch finds no NVIDIA GPU, or its driver is too old for CUDA {torch.version.cuda}"
