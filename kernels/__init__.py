"""The operations that have native kernels, one per file: the plain torch reference, its registration, the choice.

``use`` forces an implementation, ``trace`` tells which ones were taken and why, ``report`` is for ``lsda doctor``.
They are loaded when first used: a source checkout loads this file with ``lsda_fast`` itself, before torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsda_fast.kernels.registry import report, trace, use

__all__ = ["report", "trace", "use"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lsda_fast.kernels' has no attribute {name!r}")
    return getattr(import_module("lsda_fast.kernels.registry"), name)
