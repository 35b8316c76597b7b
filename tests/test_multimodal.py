"""Multimodal autoencoders: gaps as Gaussian conditioning has them, masks to the bit, grids of their own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.grid import Grid
from lsda_fast.models import build_autoencoder
from lsda_fast.models.gaps import PatchGaussian
from lsda_fast.models.regrid import Regrid

STATE = Grid(90.0 - 22.5 * (np.arange(8) + 0.5), np.arange(16) * 22.5)
COARSE = Grid(90.0 - 45.0 * (np.arange(4) + 0.5), np.arange(8) * 45.0)
# Two levels of temperature and rain are decoded; OLR comes on a grid of its own, or not at all.
MODALITIES = {
    "state": {"channels": [0, 1]},
    "rain": {"channels": [2]},
    "olr": {"channels": 1, "grid": COARSE.to_dict()},
}
SHAPE = (3, 8, 16)
SETTINGS: dict[str, dict[str, Any]] = {
    "multimodal": {
        "linear": {"shape": SHAPE, "latent_channels": 6, "patch": [4, 4]},
        "residual": {"shape": SHAPE, "latent_channels": 6, "patch": 4, "width": 16, "depth": 1, "fine_width": 8},
    },
    "slams": {"shape": SHAPE, "latent_channels": 5},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, channels: int, seed: int) -> Tensor:
    """Fields on the state's grid that are correlated in space and between channels."""
    x = random(count, channels, 8, 16, seed=seed)
    x = sum(x.roll((i, j), (-2, -1)) for i in range(3) for j in range(3)) / 3
    return (x + x.mean(1, keepdim=True) * channels**0.5) / 2**0.5


@pytest.fixture(scope="module", params=SETTINGS)
def model(request: pytest.FixtureRequest) -> Any:
    """Either autoencoder in double precision, without zeros that would hide a mistake."""
    torch.manual_seed(0)
    settings = {**SETTINGS[request.param], "modalities": MODALITIES, "grid": STATE.to_dict()}
    module: Any = build_autoencoder(request.param, **settings)
    module.double().eval()
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if request.param == "multimodal":
        module.fit(smooth(80, 4, seed=1))
    return module


def given(seed: int = 2) -> tuple[Tensor, Tensor]:
    return smooth(2, 3, seed), random(2, 1, 4, 8, seed=seed)


def blanked(x: Tensor, where: Any) -> Tensor:
    x = x.clone()
    x[where] = torch.nan
    return x


SUBSETS: dict[str, Any] = {
    "everything": (),
    "no rain": ("rain",),
    "no state": ("state",),
    "OLR alone": ("state", "rain"),
    "nothing": ("state", "rain", "olr"),
}


@pytest.mark.parametrize("case", SUBSETS)
def test_any_subset_gives_finite_latents_and_states(model: Any, case: str) -> None:
    x, olr = given()
    for name in SUBSETS[case]:
        if name == "olr":
            olr = torch.full_like(olr, torch.nan)
        else:
            x = blanked(x, (slice(None), MODALITIES[name]["channels"]))
    z = model.encode(x, {"olr": olr})
    assert z.shape == (2, *model.latent_shape)
    assert model.decode(z).shape == (2, *SHAPE)
    assert model.decode(z).isfinite().all()


def test_all_missing_is_the_same_as_never_given(model: Any) -> None:
    x, olr = given()
    assert torch.equal(model.encode(x, {"olr": torch.full_like(olr, torch.nan)}), model.encode(x))
    assert torch.equal(model.encode(x, {}), model.encode(x))
    assert not torch.equal(model.encode(x, {"olr": olr}), model.encode(x))


def test_a_decoded_modality_may_come_beside_the_state(model: Any) -> None:
    x, _ = given()
    apart = blanked(x, (slice(None), 2))
    assert torch.equal(model.encode(apart, {"rain": x[:, 2:]}), model.encode(x))


def test_gradients_reach_what_is_known_and_nothing_else(model: Any) -> None:
    x, olr = given()
    hole = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    x = blanked(x, hole).requires_grad_()
    olr = blanked(olr, (slice(None), slice(None), slice(1), slice(3))).requires_grad_()
    z = model.encode(x, {"olr": olr})
    assert z.isfinite().all()
    dx, dolr = torch.autograd.grad(z.square().sum(), (x, olr))
    assert (dx[hole] == 0).all()
    assert (dx[~hole] != 0).all()
    assert (dolr[..., :1, :3] == 0).all()
    assert (dolr[..., 2:, :] != 0).all()


def test_a_member_does_not_see_the_gaps_of_another(model: Any) -> None:
    x, olr = given()
    gappy = torch.cat([blanked(x[:1], (slice(None), 1, slice(3))), x[1:]])
    one, two = model.encode(gappy, {"olr": olr}), model.encode(x, {"olr": olr})
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=1e-13)
    assert not torch.allclose(one[0], two[0])


def test_gaps_are_filled_with_the_conditional_mean() -> None:
    states = smooth(300, 2, seed=4)
    gaussian = PatchGaussian((2, 8, 16), (4, 4)).double()
    gaussian.fit(states)
    x = smooth(3, 2, seed=5)
    hole = torch.rand(x.shape, generator=torch.Generator().manual_seed(6)) < 0.4
    hole[1] = False
    hole[2, :, :4, :4] = True
    filled = gaussian(blanked(x, hole))
    assert torch.equal(filled[~hole], x[~hole])
    torch.testing.assert_close(filled[2, :, :4, :4], gaussian.mean[:, :4, :4])
    patches = (states - states.mean(0)).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 32)
    B = patches.T @ patches / len(patches)
    B += 1e-4 * B.diagonal().mean() * torch.eye(32, dtype=B.dtype)
    U = hole[0, :, :4, :4].flatten()
    a = (x[0] - states.mean(0))[:, :4, :4].flatten()
    expected = B[U][:, ~U] @ torch.linalg.solve(B[~U][:, ~U], a[~U])
    got = (filled[0] - states.mean(0))[:, :4, :4].flatten()[U]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_the_linear_part_of_half_a_state_is_the_regression_on_it() -> None:
    """Of all linear estimates from the known numbers, E[z | x_K] has the least error in the sample it was fitted to."""
    linear = {"shape": (2, 8, 16), "latent_channels": 6, "patch": [4, 4]}
    residual = {**SETTINGS["multimodal"]["residual"], "shape": (2, 8, 16), "zero_head": True}
    module: Any = build_autoencoder(
        "multimodal", linear=linear, residual=residual, modalities={"state": {"channels": [0, 1]}}
    )
    module.double().eval()
    states = smooth(300, 2, seed=7)
    module.fit(states)
    z = module.encode(states)
    torch.testing.assert_close(z, module.linear.encode(states))
    patches = (states - states.mean(0))[:, 0].unfold(1, 4, 4).unfold(2, 4, 4)
    known = patches.reshape(-1, 16)
    target = z.permute(0, 2, 3, 1).reshape(-1, 6)
    best = known @ torch.linalg.lstsq(known, target).solution
    got = module.encode(blanked(states, (slice(None), 1))).permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(got, best, rtol=0, atol=2e-3)


def test_a_modality_that_does_not_fit_is_refused(model: Any) -> None:
    x, olr = given()
    with pytest.raises(InputError, match="'wind' came; accepted are state, rain, olr"):
        model.encode(x, {"wind": olr})
    with pytest.raises(InputError, match=r"\(4, 7\) points came; accepted are \(4, 8\)"):
        model.encode(x, {"olr": olr[..., :7]})
    with pytest.raises(InputError, match=r"'rain' came with shape .*accepted is \(2, 1, 8, 16\)"):
        model.encode(x, {"rain": x})


def test_standardised_latents_decode_to_the_same_states() -> None:
    torch.manual_seed(1)
    module: Any = build_autoencoder("slams", shape=SHAPE, modalities={"all": {"channels": [0, 1, 2]}})
    module.double().eval()
    x = smooth(20, 3, seed=10)
    before = module.decode(module.encode(x))
    for _ in range(2):  # again changes nothing
        module.standardize(x)
    z = module.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(5).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(5).double())
    torch.testing.assert_close(module.decode(z), before)


# Regridding

REGION = Grid(np.linspace(60.0, 30.0, 13), np.linspace(350.0, 380.0, 16) - 360.0)
TARGETS = {
    "finer": Grid(np.linspace(59.0, 31.0, 40), np.linspace(-9.0, 19.0, 50)),
    "coarser": Grid(np.linspace(56.0, 34.0, 4), np.linspace(-5.0, 15.0, 5)),
    "uneven": Grid(np.array([58.0, 57.0, 50.0, 41.0, 33.0]), np.linspace(-9.0, 18.0, 7)),
    "named 0..360": Grid(np.linspace(56.0, 34.0, 5), np.linspace(352.0, 358.0, 7)),
    "itself": REGION,
}


def linear_field(grid: Grid) -> Tensor:
    longitude = (grid.longitude + 180) % 360 - 180
    return torch.from_numpy(3 * grid.latitude[:, None] - 2 * longitude)[None, None]


@pytest.mark.parametrize("target", TARGETS)
def test_a_linear_field_is_regridded_exactly(target: str) -> None:
    got = Regrid(REGION, TARGETS[target])(linear_field(REGION))
    torch.testing.assert_close(got, linear_field(TARGETS[target]), rtol=0, atol=1e-4)


def test_a_source_ends_half_a_spacing_beyond_its_last_points_or_at_a_pole() -> None:
    region = Grid(50.0 - 2.5 * np.arange(5), 2.5 * np.arange(9))
    near = Grid(np.array([52.0, 51.0, 45.0, 39.0, 38.0]), np.array([-2.0, -1.0, 10.0, 21.0, 22.0]))
    known = ~Regrid(region, near)(torch.ones(1, 1, 5, 9))[0, 0].isnan()
    inside = torch.tensor([False, True, True, True, False])
    assert known.equal(inside[:, None] & inside)
    north = Grid(np.array([88.0, 85.0, 82.0]), np.arange(4) * 90.0)
    poles = Grid(np.array([90.0, 85.0]), np.arange(4) * 90.0)
    assert not Regrid(north, poles)(torch.ones(1, 1, 3, 4)).isnan().any()


def test_longitudes_wrap_and_means_are_kept_round_the_globe() -> None:
    fine = Grid(89.75 - 0.5 * np.arange(360), 0.25 + 0.5 * np.arange(720))
    wave = torch.from_numpy(np.cos(np.deg2rad(fine.longitude - 10.0)))[None, None, None].expand(1, 1, 360, 720)
    got = Regrid(fine, STATE)(wave)[0, 0]
    expected = np.cos(np.deg2rad(STATE.longitude - 10.0)) * np.sinc(22.5 / 360)  # a wave's mean over a cell
    np.testing.assert_allclose(got, np.broadcast_to(expected, (8, 16)), atol=1e-4)
    assert got.mean(1).abs().max() < 1e-6


def test_gaps_have_no_weight_and_what_is_mostly_missing_is_missing() -> None:
    fine = Grid(90.0 - 5.625 * (np.arange(32) + 0.5), np.arange(64) * 5.625)
    x = torch.ones(1, 1, 32, 64)
    x[..., :8, :32] = torch.nan
    got = Regrid(fine, STATE)(x)[0, 0]
    assert got[0, 2].isnan()
    known = ~got.isnan()
    torch.testing.assert_close(got[known], torch.ones(int(known.sum())))
    assert known[2:].all()
    assert Regrid(REGION, STATE)(linear_field(REGION)).isnan().sum() > 100
