"""A linear observation operator laid out for the kernels, once: y_p = sum_k weight_pk x[index_pk].

Forward, the stencil lies point by point, (K, P), so that neighbouring observations are read together. The transpose is
a gather over the entries of each cell, in the order of their observations, so that no two threads add to one cell and
the order of every sum is fixed: for C++ in jagged diagonals by tiles of cells (csrc/core/obs_adjoint.h), for a GPU
simply cell after cell. An entry of weight 0 counts as absent there.
Many observations in an order of their own would wait for the memory: for C++ they are sorted by place here, with the
stencil once more in that order, and the operations put every number where the caller has it, with the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lsda_fast.errors import InputError
from lsda_fast.kernels import native
from lsda_fast.kernels.registry import kinds_on

__all__ = ["COLUMNS", "SORTED", "TILES", "ObservationPlan", "starts"]

_MOST = 2**31

# Tensors of a transpose in tiles, and of one by columns.
TILES, COLUMNS = 5, 3

# Those of a stencil sorted by place, behind a transpose in tiles.
SORTED = 4

# Observations from which on sorting gains (bench/operators.py: 100,000 do), and the share of them that lie before the
# one ahead of them above which it is worth its pass.
_MANY, _UNSORTED = 2**16, 0.05


@dataclass(frozen=True)
class ObservationPlan:
    """The stencil of P observations on N cells; made by ``from_stencil``.

    Parameters
    ----------
    index : Tensor of int32, shape (K, P)
        Into the flattened state.
    weight : Tensor, shape (K, P)
    cells : int
        N.
    transpose : list of Tensor
        For C++ cell, length, observation, weight and tile of csrc/core/obs_adjoint.h, and where the observations are
        sorted row and rank (P,), the order and its inverse, and index and weight in it; for a GPU start (cells + 1),
        observation and weight (entries); empty where no native code reads it.
    """

    index: Tensor
    weight: Tensor
    cells: int
    transpose: list[Tensor]

    @classmethod
    def from_stencil(
        cls,
        index: Tensor,
        weight: Tensor,
        cells: int,
        *,
        dtype: torch.dtype | None = None,
        round_up: Callable[[int], int] | None = None,
    ) -> "ObservationPlan":
        """Lay out a stencil.

        Parameters
        ----------
        index : Tensor of int64, shape (P, K)
        weight : Tensor, shape (P, K)
            Both as in ``StencilOperator``.
        cells : int
            N.
        dtype : torch.dtype, optional
            Of the plan's weights; that of ``weight`` when not given.
        round_up : callable, optional
            The length of what depends on which points are observed: the tensors of the transpose are filled up to it,
            with what is never read.

        Raises
        ------
        InputError
            Shapes that differ, a stencil of no points, an index outside the state, or sizes beyond int32.
        """
        if index.ndim != 2 or index.shape != weight.shape:
            raise InputError(f"index {tuple(index.shape)}, weight {tuple(weight.shape)}; accepted: (P, K) twice")
        if index.shape[1] == 0:
            raise InputError(f"a stencil of no points {tuple(index.shape)}; accepted: (P, K) with K of 1 or more")
        if cells >= _MOST or index.numel() >= _MOST:
            raise InputError(f"{cells} cells, {index.numel()} stencil points; accepted: fewer than 2^31 of each")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < cells:
            raise InputError(f"index from {int(index.min())} to {int(index.max())}; accepted: 0 to {cells - 1}")
        by_point = index.T.to(torch.int32).contiguous()
        weights = weight.T.to(dtype or weight.dtype).contiguous()
        transpose = _transpose(by_point, weights, cells)
        if round_up:
            transpose = [pad(t, (0, round_up(len(t)) - len(t))) if t.ndim == 1 else t for t in transpose]
        return cls(by_point, weights, cells, transpose)

    @property
    def size(self) -> int:
        """P."""
        return self.index.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return self.index, self.weight, *self.transpose

    @property
    def arguments(self) -> tuple[Tensor, Tensor, list[Tensor], int]:
        """What the operations take."""
        return self.index, self.weight, self.transpose, self.cells


def _transpose(index: Tensor, weight: Tensor, cells: int) -> list[Tensor]:
    """In the layout of the native code that would read it."""
    kinds = kinds_on(index.device)
    if not kinds:
        return []
    if kinds[0] == "cpu":
        width, by_place = native.load("cpu").code.build_info()["tile"], _by_place(index, weight)
        tiles = _jagged_diagonals(index, weight, cells, width)
        if by_place:
            tiles[2] = by_place[1][tiles[2].long()]
        return tiles + by_place
    return _columns(index, weight, cells)


def _by_place(index: Tensor, weight: Tensor) -> list[Tensor]:
    """The stencil sorted by first points, its observations and where each is; nothing where that is not worth it."""
    first = index[:1].flatten()
    if len(first) < _MANY or float((first.diff() < 0).float().mean()) < _UNSORTED:
        return []
    row = first.argsort(stable=True)
    return [row.to(torch.int32), row.argsort().to(torch.int32), index[:, row], weight[:, row]]


def _entries(index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The entries that are not 0, observation by observation, sorted by cell; and their cells."""
    entry = weight.T.flatten().nonzero().flatten()
    cell, order = index.T.flatten()[entry].sort(stable=True)
    return entry[order], cell


def _columns(index: Tensor, weight: Tensor, cells: int) -> list[Tensor]:
    entry, cell = _entries(index, weight)
    start = torch.searchsorted(cell, torch.arange(cells + 1, dtype=cell.dtype, device=cell.device))
    return [start.to(torch.int32), (entry // len(index)).to(torch.int32), weight.T.flatten()[entry]]


def _jagged_diagonals(index: Tensor, weight: Tensor, cells: int, width: int) -> list[Tensor]:
    points = index.shape[0]
    weights = weight.T.flatten()
    entry, cell = _entries(index, weight)
    touched, which, count = cell.unique_consecutive(return_inverse=True, return_counts=True)
    touched = touched.long()  # the key below is beyond int32
    rank = torch.arange(len(entry)) - (count.cumsum(0) - count)[which]

    # Cells of a tile by their number of entries, most first.
    tiles = -(-cells // width)
    most = int(count.max()) if len(count) else 0
    order = (touched // width * (most + 1) + (most - count)).argsort(stable=True)
    touched, count = touched[order], count[order]
    tile = touched // width
    first_cell = starts(torch.bincount(tile, minlength=tiles))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first_cell[tile])[which]

    # Columns of a tile: as many as its fullest cell has entries.
    columns = torch.zeros(tiles, dtype=torch.int64).scatter_reduce_(0, tile, count, "amax")
    first_column = starts(columns)
    column = first_column[cell // width] + rank
    length = torch.bincount(column, minlength=int(first_column[-1]))
    target = starts(length)[column] + place
    first_entry = starts(torch.bincount(cell // width, minlength=tiles))
    entry = torch.empty_like(entry).scatter_(0, target, entry)
    return [
        (touched % width).to(torch.int32),
        length.to(torch.int32),
        (entry // points).to(torch.int32),
        weights[entry],
        torch.stack([first_cell, first_column, first_entry], dim=1).contiguous(),
    ]


def starts(sizes: Tensor) -> Tensor:
    """0 and the running sums: where each of the consecutive pieces begins, and the end."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
