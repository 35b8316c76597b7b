"""S^1/2 and its inverse: each kind against the covariance that it claims."""

import pickle
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.models import DiagonalWhitening, FullWhitening, Whitening, ZonalWhitening
from lsda_fast.models.zonal_whitening import row_taper

SHAPE = (2, 3, 8)
SIZE = 48


def homogeneous(count: int) -> tuple[Tensor, Tensor]:
    """Errors (count, 2, 3, 8) with the same statistics at every longitude, and their covariance (48, 48)."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((5, 6, 6)) + 1j * rng.standard_normal((5, 6, 6))
    mixing[[0, -1]] = mixing[[0, -1]].real  # the mean and the shortest wave are real
    mixing *= (1.0 + np.arange(5))[:, None, None] ** -1.0

    def filtered(noise: np.ndarray) -> np.ndarray:
        modes = np.fft.rfft(noise.reshape(-1, 6, 8), norm="ortho")
        return np.fft.irfft(np.einsum("mij,tjm->tim", mixing, modes), n=8, norm="ortho").reshape(len(noise), SIZE)

    root = filtered(np.eye(SIZE))
    errors = filtered(rng.standard_normal((count, SIZE)))
    return torch.tensor(errors).reshape(-1, *SHAPE), torch.tensor(root.T @ root)


ERRORS, TRUTH = homogeneous(4000)


def zonal(rank: int = 6, reach: float = 1e6, errors: Tensor = ERRORS) -> ZonalWhitening:
    whitening = ZonalWhitening(SHAPE, rank, reach).double()
    whitening.fit(errors)
    return whitening


def root(whitening: Whitening) -> Tensor:
    """The matrix of S^1/2, (48, 48)."""
    return whitening.color(torch.eye(SIZE, dtype=torch.float64).reshape(-1, *SHAPE)).reshape(SIZE, SIZE).T


def second_moment(errors: Tensor) -> Tensor:
    flat = errors.flatten(1)
    return flat.T @ flat / len(flat)


def fitted(kind: str) -> Any:
    module = {
        "diagonal": DiagonalWhitening(SHAPE),
        "full": FullWhitening(SHAPE),
        "zonal": ZonalWhitening(SHAPE, 6, 1e6),
        "low rank": ZonalWhitening(SHAPE, 2, 1e6),
        "short reach": ZonalWhitening(SHAPE, 4, 0.8),
    }[kind]
    module.fit(ERRORS.float())
    return module


@pytest.mark.parametrize("kind", ["diagonal", "full", "zonal", "low rank", "short reach"])
def test_whitening_undoes_colouring(kind: str) -> None:
    whitening = fitted(kind)
    u = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    z = whitening.color(u)
    torch.testing.assert_close(whitening.whiten(z), u, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whitening.color(whitening.whiten(u)), u, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(z, u, atol=0.1)
    torch.testing.assert_close(whitening.color(u[2:3]), z[2:3], rtol=1e-5, atol=1e-5)  # members do not mix


@pytest.mark.parametrize("kind", ["diagonal", "full", "zonal", "low rank"])
def test_the_covariance_is_the_root_and_its_adjoint_whatever_the_eigenvectors_have_lost(kind: str) -> None:
    whitening = fitted(kind).double()
    if isinstance(whitening, ZonalWhitening):
        whitening.real += 0.05 * torch.randn(whitening.real.shape, generator=torch.Generator().manual_seed(1))
    coloring, z = whitening.coloring(), ERRORS[:3]
    torch.testing.assert_close(coloring.covariance(z), coloring.color(coloring.adjoint(z)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["diagonal", "full", "zonal", "low rank"])
def test_wide_products_are_of_the_same_covariance_and_agree_to_float64(kind: str) -> None:
    whitening = fitted(kind)
    wide, z = whitening.wide_coloring(), ERRORS[:3]
    torch.testing.assert_close(wide.covariance(z).float(), whitening.coloring().covariance(z.float()))
    assert abs((wide.color(z) * ERRORS[3:6]).sum() - (z * wide.adjoint(ERRORS[3:6])).sum()) < 1e-11
    torch.testing.assert_close(wide.covariance(z), wide.color(wide.adjoint(z)), rtol=1e-12, atol=1e-12)


def test_what_is_made_for_all_analyses_is_made_again_where_the_covariance_changes() -> None:
    whitening, z = fitted("zonal"), ERRORS[:3]
    first = whitening.wide_coloring()
    assert whitening.wide_coloring().covariance(z).equal(first.covariance(z))
    kept = {t.data_ptr() for t in first.tensors}
    assert kept == {t.data_ptr() for t in whitening.wide_coloring().tensors}
    assert whitening.kept_bytes == sum(t.untyped_storage().nbytes() for t in first.tensors)
    copied = deepcopy(whitening)
    assert copied.kept_bytes == 0
    pickle.dumps(whitening)
    before = whitening.coloring().covariance(z.float())
    whitening.inflate(4.0)
    assert not kept & {t.data_ptr() for t in whitening.wide_coloring().tensors}
    torch.testing.assert_close(whitening.wide_coloring().covariance(z), 4 * first.covariance(z))
    torch.testing.assert_close(whitening.coloring().covariance(z.float()), 4 * before)
    torch.testing.assert_close(copied.wide_coloring().covariance(z), first.covariance(z))
    whitening.double()
    torch.testing.assert_close(whitening.coloring().covariance(z), 4 * first.covariance(z), rtol=1e-4, atol=1e-4)


def test_diagonal_is_the_spread_of_each_latent() -> None:
    whitening = fitted("diagonal")
    torch.testing.assert_close(whitening.std, ERRORS.square().mean(0).sqrt().float())
    assert torch.equal(whitening.color(torch.ones(1, *SHAPE))[0], whitening.std)


def test_full_makes_the_errors_uncorrelated() -> None:
    whitening = FullWhitening(SHAPE).double()
    whitening.fit(ERRORS)
    torch.testing.assert_close(
        second_moment(whitening.whiten(ERRORS)), torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-8
    )
    S = root(whitening) @ root(whitening).T
    torch.testing.assert_close(S, second_moment(ERRORS), rtol=0, atol=1e-8)
    assert (whitening.variance.diff() <= 0).all()  # leading ones first


def test_full_of_few_errors_stays_invertible() -> None:
    whitening = FullWhitening(SHAPE)
    whitening.fit(ERRORS[:10].float())
    u = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(whitening.whiten(u)).all()
    torch.testing.assert_close(whitening.whiten(whitening.color(u)), u, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["diagonal", "full", "zonal"])
def test_inflation_multiplies_the_covariance(kind: str) -> None:
    whitening = fitted(kind)
    u = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = whitening.color(u)
    whitening.inflate(4.0)
    torch.testing.assert_close(whitening.color(u), 2.0 * before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whitening.whiten(2.0 * before), u, rtol=1e-3, atol=1e-3)


def test_zonal_of_full_rank_is_the_sample_covariance_averaged_over_longitude() -> None:
    S = root(zonal()) @ root(zonal()).T
    rolled = torch.stack([second_moment(ERRORS[:200].roll(i, -1)) for i in range(8)]).mean(0)
    few = root(zonal(errors=ERRORS[:200]))
    torch.testing.assert_close(few @ few.T, rolled, rtol=0, atol=1e-4 * float(rolled.abs().max()))
    # 4000 errors in blocks of 6: the relative error of a covariance is about (6 / 4000)^1/2.
    assert float((S - TRUTH).norm() / TRUTH.norm()) < 0.06


def test_zonal_root_is_symmetric_but_for_the_spread() -> None:
    whitening = zonal(rank=3)
    spread = whitening.std.expand(SHAPE).reshape(-1, 1)
    spectral = root(whitening) / spread
    torch.testing.assert_close(spectral, spectral.T, rtol=0, atol=1e-6)
    assert torch.linalg.eigvalsh(spectral).min() > 0
    # Its derivative's transpose, as Gauss-Newton uses it, completes S.
    v = ERRORS[:3]
    (transposed,) = torch.func.vjp(whitening.color, torch.zeros_like(v))[1](v)
    S = spread * (spectral @ spectral.T) * spread.T
    torch.testing.assert_close(
        whitening.color(transposed).flatten(1), v.flatten(1) @ S, rtol=0, atol=1e-5 * float(S.abs().max())
    )


@pytest.mark.parametrize(("rank", "reach"), [(6, 1e6), (2, 1e6), (3, 1.0)])
def test_zonal_knows_no_meridian(rank: int, reach: float) -> None:
    whitening = zonal(rank, reach)
    u = ERRORS[:2]
    for function in (whitening.color, whitening.whiten):
        torch.testing.assert_close(function(u.roll(3, -1)), function(u).roll(3, -1), rtol=0, atol=1e-4)


def test_zonal_of_low_rank_keeps_the_total_variance() -> None:
    totals = []
    for rank in (6, 4, 1):
        spectral = root(zonal(rank)) / zonal(rank).std.expand(SHAPE).reshape(-1, 1)
        totals.append(float((spectral @ spectral.T).trace()))
    assert totals == pytest.approx([float(SIZE)] * 3, rel=1e-5)


def test_zonal_forgets_correlations_beyond_its_reach() -> None:
    matrix = root(zonal(reach=1.0))
    S = (matrix @ matrix.T).reshape(*SHAPE, *SHAPE)
    assert S[:, 0, :, :, 2].abs().max() < 1e-5 * S.abs().max()
    assert S[:, 0, :, :, 1].abs().max() > 0.01 * S.abs().max()
    near, full = zonal(reach=1.0), zonal()
    torch.testing.assert_close(near.std, full.std)


def test_the_taper_is_that_of_gaspari_and_cohn() -> None:
    """Their equation 4.10 at 0, 1/2, 1, 3/2 and 2 times its half-width; and it is a correlation."""
    np.testing.assert_allclose(row_taper(9, 2.0)[0, :5], [1, 0.684896, 5 / 24, 0.016493, 0], atol=1e-6)
    assert np.linalg.eigvalsh(row_taper(40, 6.0)).min() > -1e-10


def test_zonal_takes_an_even_number_of_columns() -> None:
    with pytest.raises(InputError, match="7 columns; accepted is an even number"):
        ZonalWhitening((2, 3, 7))
