"""Observations made of features at once: the stencil taken into the head's weight, place by place.

A mean over a block of cells, or an interpolation between cells of one patch, is a sum of rows of the head's weight at
one place of the features. Where that leaves fewer sums than there were cells, with few distinct ones (blocks that lie
alike in their patches have the same), it saves their projection:

    y_p = sum_j w_pj sum_tf weight[row_pj, t, f] features[f, place_pj, t]
        = sum_g sum_tf merged[kind_pg, t, f] features[f, place_pg, t]

with g the places that the points j of an observation lie at.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.models.head import Head

__all__ = ["Merged", "merge"]

_KINDS = 4  # distinct sums, at most, as multiples of the head's own rows


class Merged(NamedTuple):
    """``plan`` for sums of cells of one state, and the stencil (P, G) that makes observations of them."""

    plan: HeadPlan
    where: Tensor
    weight: Tensor


def merge(head: Head, index: Tensor, weight: Tensor, size: int) -> Merged | None:
    """The stencil ``index``, ``weight`` (P, K) over states of ``size`` numbers each, or None where that gains nothing.

    ``Merged.where`` counts the sums of state after state, as ``index`` does their numbers.
    """
    if not index.numel():
        return None
    state, cell = index // size, index % size
    place, row = head.at(cell)
    h, w = head.grid
    site = state * (h * w) + place
    # Points of an observation in the order of their sites, those without weight last.
    last = torch.iinfo(site.dtype).max
    order = torch.where(weight != 0, site * len(head.weight) + row, last).argsort(dim=1, stable=True)
    site, row, weight = (t.gather(1, order) for t in (site, row, weight))
    counts = weight != 0
    fresh = torch.ones_like(counts)
    fresh[:, 1:] = (site[:, 1:] != site[:, :-1]) & counts[:, 1:]
    group = fresh.flatten().cumsum(0) - 1
    begin = fresh.flatten().nonzero()[:, 0]
    rank = torch.arange(len(group), device=group.device) - begin[group]
    longest = int(rank.max()) + 1
    rows = row.new_full((len(begin), longest), -1)
    weights = weight.new_zeros(rows.shape)
    rows[group, rank] = torch.where(counts, row, -1).flatten()
    weights[group, rank] = weight.flatten()
    kinds, kind = torch.cat([rows.double(), weights.double()], 1).unique(dim=0, return_inverse=True)
    if len(kinds) > _KINDS * len(head.weight):
        return None
    sites = site.flatten()[begin]
    state, place = sites // (h * w), sites % (h * w)
    sums, at = (place * len(kinds) + kind).unique(return_inverse=True)
    if 2 * len(sums) > len(cell.unique()):
        return None
    table = head.weight.new_zeros(len(kinds), *head.weight.shape[1:])
    for rows_j, weights_j in zip(kinds[:, :longest].T.long(), kinds[:, longest:].T.to(table)):
        table += weights_j[:, None, None] * head.weight[rows_j.clamp_min(0)]
    plan = HeadPlan.from_rows(table, head.neighbours(), sums // len(kinds), sums % len(kinds))
    # Back to one row an observation, whose groups lie behind one another.
    which = fresh.cumsum(1) - 1
    most = int(which.max()) + 1
    first = group.reshape(fresh.shape)[:, :1]
    groups = first + torch.arange(most, device=index.device)
    real = torch.arange(most, device=index.device) <= which[:, -1:]
    groups = torch.where(real, groups, first)
    present = real & counts.flatten()[begin][groups]
    return Merged(plan, (state * len(sums) + at)[groups], present.to(weight.dtype))
