"""Stencils taken into a head's weight: the same observations of trajectories, from fewer sums; else left alone."""

from collections import Counter

import pytest
import torch

from lsda_fast.models import AUTOENCODERS, build
from lsda_fast.models.merged_head import merge
from lsda_fast.models.tangent import Increments, PatchTangent
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.observations.averages import blocks
from lsda_fast.package.trajectory_decoder import TrajectoryDecoder
from lsda_fast.prior import Derivative

SHAPE, LATENT, T = (2, 12, 16), (5, 3, 4), 3
SIZE = 2 * 12 * 16
SETTINGS = {"shape": SHAPE, "latent_channels": 5, "patch": 4, "width": 8, "depth": 1}


def tangent() -> PatchTangent:
    torch.manual_seed(0)
    decoder = build(AUTOENCODERS, "convolutional", SETTINGS).double().requires_grad_(False)
    increments = Increments(torch.randn(30, *LATENT).double(), periodic=True)
    return PatchTangent(decoder.decode, torch.zeros(1, *LATENT).double(), increments, Counter())


def means(factor: int) -> SparseAffine:
    """Of blocks of the first and the last state, in random order, both channels."""
    made = blocks(SHAPE[1:], factor, area=torch.linspace(0.2, 1.0, 12).numpy())
    cells, weight = torch.from_numpy(made.cells), torch.from_numpy(made.weights)
    starts = torch.tensor([0, SIZE // 2, 2 * SIZE, 2 * SIZE + SIZE // 2])
    index, weight = (starts[:, None, None] + cells).flatten(0, 1), weight.repeat(4, 1)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(1))
    return SparseAffine(index[order], weight[order], torch.rand(len(index)).double(), (T * 2, *SHAPE[1:]))


@pytest.mark.parametrize("factor", [4, 3, 5], ids=["patches", "across patches", "with smaller blocks at the edges"])
def test_means_over_blocks_are_those_of_states(factor: int) -> None:
    network, operator = tangent(), means(factor)
    (head,) = network.heads()
    merged = merge(head, operator.index, operator.weight, SIZE)
    assert merged is not None
    assert 2 * merged.plan.size <= SIZE
    assert (merged.weight != 0).any(1).equal((operator.weight != 0).any(1))
    v, d = torch.randn(2, 2, T, *LATENT).double()
    r = torch.randn(2, len(operator.index)).double()
    plain, headed = (
        TrajectoryDecoder(network, None, SHAPE, T, 4, headed).observe(operator) for headed in (False, True)
    )
    expected, got = (Derivative.of(observed, v) for observed in (plain, headed))
    for a, b in ((got.value, expected.value), (got.jvp(d), expected.jvp(d)), (got.vjp(r), expected.vjp(r))):
        torch.testing.assert_close(a, b)


def test_points_of_no_weight_and_empty_stencils() -> None:
    (head,) = tangent().heads()
    operator = means(4)
    padded = operator.index.repeat(1, 2)[:, :20]
    weight = torch.cat([operator.weight, torch.zeros(len(padded), 4)], 1)
    weight[3] = 0.0
    merged, plain = merge(head, padded, weight, SIZE), merge(head, operator.index, operator.weight, SIZE)
    assert merged is not None
    assert plain is not None
    assert merged.plan.size == plain.plan.size + 1  # the sum of nothing
    assert merged.weight.sum() == plain.weight.sum() - 1
    assert merge(head, padded[:0], weight[:0], SIZE) is None


@pytest.mark.parametrize("what", ["single cells", "no two alike"])
def test_what_gains_nothing_is_left_alone(what: str) -> None:
    (head,) = tangent().heads()
    index = torch.arange(SIZE)[:, None] if what == "single cells" else means(4).index.repeat(20, 1)
    weight = torch.ones(index.shape) if what == "single cells" else torch.rand(index.shape)
    assert merge(head, index, weight.double(), SIZE) is None
