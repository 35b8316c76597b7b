"""What is made of tensors and kept while they stay as they are."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["State", "is_kept", "keep", "state_of", "unchanged"]

State = list[tuple[Tensor, int]]

_KEPT: Any = WeakTensorKeyDictionary()


def keep(tensors: Iterable[Tensor]) -> None:
    """These are kept for all analyses, and are not written to."""
    for t in tensors:
        _KEPT[t] = True


def is_kept(t: Tensor) -> bool:
    """Whether a tensor is one that is kept."""
    return t in _KEPT


def state_of(tensors: Iterable[Tensor]) -> State | None:
    """These tensors and how often each was written to; None where nothing made of them may be kept.

    That is so of inference tensors, which do not count it, and under a dispatch mode, which may be without values.
    """
    tensors = list(tensors)
    if any(t.is_inference() for t in tensors) or _get_current_dispatch_mode() is not None:
        return None
    return [(t, t._version) for t in tensors]


def unchanged(state: State, tensors: Iterable[Tensor]) -> bool:
    """Whether the tensors are those of the state, as they were."""
    tensors = list(tensors)
    return len(state) == len(tensors) and all(
        t is own and not t.is_inference() and t._version == version for (t, version), own in zip(state, tensors)
    )
