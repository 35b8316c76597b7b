"""Storages of known size and life in one piece of memory."""

import mmap
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

__all__ = ["Arena", "arranged"]

_ALIGNMENT = 64  # bytes, as torch's own allocations: a line of the cache, and the widest vector


_PAGE = 2**21  # bytes of a huge page, where the system has them


class Arena:
    """Memory on the host for recordings of which one runs at a time: they share it, as long as it is large enough."""

    def __init__(self) -> None:
        self._storage = torch.UntypedStorage(0)

    def of(self, size: int) -> torch.UntypedStorage:
        """At least so many bytes; in huge pages, where the system has them on request."""
        if self._storage.nbytes() < size:
            self._storage = _memory(size)
        return self._storage


def _memory(size: int) -> torch.UntypedStorage:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.UntypedStorage(size)
    # A page more than it takes: it may begin anywhere in one.
    try:
        pages = mmap.mmap(-1, -(-size // _PAGE) * _PAGE + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel that has none
        return torch.UntypedStorage(size)
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()


def arranged(sizes: Mapping[int, int], lives: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    """Where each storage begins, and the bytes that all take.

    Two storages share bytes where their lives do not overlap. The largest is placed first, each in the smallest hole
    between those that live with it (greedy by size; Pisarchyk & Lee 2020, arXiv:2001.03288).

    Parameters
    ----------
    sizes : mapping of int to int
        Bytes of every storage, by number.
    lives : mapping of int to (int, int)
        First and last moment of each.
    """
    begins: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    living: defaultdict[int, list[int]] = defaultdict(list)  # those placed, by moment
    for number in sorted(sizes, key=lambda n: (-sizes[n], lives[n])):
        size = -(-sizes[number] // _ALIGNMENT) * _ALIGNMENT
        moments = range(lives[number][0], lives[number][1] + 1)
        beside = sorted(spans[n] for n in {n for moment in moments for n in living[moment]})
        begins[number] = begin = _hole(beside, size)
        spans[number] = begin, begin + size
        for moment in moments:
            living[moment].append(number)
    return begins, max((end for _, end in spans.values()), default=0)


def _hole(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Where the smallest hole that holds ``size`` begins; behind all where none does."""
    best, least, end = -1, -1, 0
    for a, b in taken:
        if a - end >= size and (best < 0 or a - end < least):
            best, least = end, a - end
        end = max(end, b)
    return best if best >= 0 else end
