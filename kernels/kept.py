"""What is made of tensors and kept while they stay as they are."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Mark", "State", "has_values", "holds", "is_kept", "keep", "mark_of", "state_of", "unchanged"]

_KEPT: Any = WeakTensorKeyDictionary()


def keep(tensors: Iterable[Tensor]) -> None:
    """These are kept for all analyses, and are not written to."""
    for t in tensors:
        _KEPT[t] = True


def is_kept(t: Tensor) -> bool:
    """Whether a tensor is one that is kept."""
    return t in _KEPT


class Mark(NamedTuple):
    """How a tensor was: so often written to, at this address, in this form.

    The memory is kept, else another's could come to lie where it was. What is written through ``t.data`` torch does
    not count.
    """

    version: int
    address: int
    form: tuple
    memory: torch.UntypedStorage


def mark_of(t: Tensor) -> Mark | None:
    """How a tensor is; None for inference tensors, of which torch does not count what is written."""
    return None if t.is_inference() else Mark(*_state(t))


def holds(mark: Mark, t: Tensor) -> bool:
    """Whether a tensor is as it was."""
    return not t.is_inference() and mark[:3] == _state(t)[:3]


def _state(t: Tensor) -> tuple[int, int, tuple, torch.UntypedStorage]:
    # No values are read: what watches over who does has nothing to say.
    with torch._C.DisableTorchFunction():
        memory = t.untyped_storage()
    return t._version, memory.data_ptr(), (t.dtype, t.shape, t.stride(), t.storage_offset()), memory


State = list[tuple[Tensor, Mark]]


def state_of(tensors: Iterable[Tensor]) -> State | None:
    """These tensors and how they are; None where that cannot be told of all of them."""
    marked = [(t, mark_of(t)) for t in tensors]
    return [(t, mark) for t, mark in marked if mark] if all(mark for _, mark in marked) else None


def unchanged(state: State, tensors: Iterable[Tensor]) -> bool:
    """Whether the tensors are those of the state, as they were."""
    tensors = list(tensors)
    return len(state) == len(tensors) and all(t is own and holds(mark, own) for (t, mark), own in zip(state, tensors))


def has_values() -> bool:
    """Whether what is computed now can be kept: under a dispatch mode it may be without values."""
    return _get_current_dispatch_mode() is None
