"""Modules that keep what is made of their buffers for all analyses."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lsda_fast.kernels.kept import State, has_values, keep, state_of, unchanged

__all__ = ["Keeping"]

_MOST = 8  # things that are kept, the latest

Made = TypeVar("Made")


class Keeping(nn.Module):
    """Base; nothing of what is kept goes into a copy, or to disk."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, tuple[State, Any]] = {}

    def kept(self, name: str, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, made once for all analyses, and again where a buffer has changed.

        On a CPU alone, where it takes a tenth of one member's analysis: elsewhere it is soon made, and its memory is
        the analysis'. Nor is kept what is made under a dispatch mode, which may be without values.
        """
        buffers = list(self.buffers())
        if any(t.device.type != "cpu" for t in buffers):
            return make()
        seen, made = self._made.get(name, ([], None))
        if seen and unchanged(seen, buffers):
            return made
        new, state = make(), state_of(buffers)
        if state and has_values():
            self._made.pop(name, None)
            self._made[name] = state, new
            keep(_tensors(new))
            while len(self._made) > _MOST:
                del self._made[next(iter(self._made))]
        return new

    @property
    def kept_bytes(self) -> int:
        """Of what is kept."""
        tensors = {t.untyped_storage().data_ptr(): t for _, made in self._made.values() for t in _tensors(made)}
        return sum(t.untyped_storage().nbytes() for t in tensors.values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}


def _tensors(made: Any) -> list[Tensor]:
    """All in what is kept."""
    if isinstance(made, Keeping):
        return [*made.buffers(), *(t for _, own in made._made.values() for t in _tensors(own))]
    made = getattr(made, "tensors", made)
    return [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
