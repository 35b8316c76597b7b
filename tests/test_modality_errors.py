"""What a prior does not know of modalities, as a part of R."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Grid, Normalization
from lsda_fast.layout import Channel, StateLayout
from lsda_fast.likelihood import likelihood_of
from lsda_fast.modalities import Modality
from lsda_fast.modality_errors import modality_channels, modality_errors, unexplained
from lsda_fast.models import WINDOWS, IdentityAutoencoder, StationaryTrajectories, build
from lsda_fast.observations.averages import blocks, field_averages, observing
from lsda_fast.package import Package
from lsda_fast.package.manifest import parts_of
from lsda_fast.trajectory import Window

SHAPE = (2, 4, 8)
GRID = Grid(np.array([67.5, 22.5, -22.5, -67.5]), np.arange(8) * 45.0)
LAYOUT = StateLayout(GRID, (Channel("t", 850.0, "K"), Channel("olr", None, "W m-2")))
UNITS = Normalization(np.array([250.0, 200.0]), np.array([2.0, 20.0]))
RADIATION = Modality("olr", "satellite", replace(LAYOUT, channels=LAYOUT.channels[1:]),
                     Normalization(UNITS.mean[1:], UNITS.std[1:]), True)  # fmt: skip


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def package(**changes: object) -> Package:
    """Latents that are the states; independent autoregressions of variance 1 for a prior; an untrained network."""
    z = noise(2000, *SHAPE)
    for t in range(1, len(z)):
        z[t] = 0.8 * z[t - 1] + 0.6 * z[t]
    model = StationaryTrajectories(SHAPE, rank=2, lags=1)
    model.fit(z.float(), [torch.arange(len(z))])
    network = build(WINDOWS, "unet", {"latent_shape": SHAPE, "hidden": [8], "blocks": 1, "prediction": "wiener"})
    modules = {"autoencoder": IdentityAutoencoder(SHAPE), "trajectory": model, "window": network}
    rest = {"window": Window(5, 6.0), "modalities": (RADIATION,), "block_errors": (np.zeros(2),)} | changes
    return Package(LAYOUT, UNITS, Schedule.vp_cosine(), "wiener", modules, {}, np.zeros(2), **rest)  # type: ignore


def test_it_is_what_neither_spread_nor_decoder_explain() -> None:
    error, spread, known = noise(400, 2, 8, 8), 0.6 * noise(400, 2, 8, 8, seed=1), np.array([[0.3, 2.0], [0.1, 0.0]])
    found = unexplained(error, spread, known)
    np.testing.assert_allclose(found[:, 0], np.sqrt([1 - 0.36 - 0.09, 0.16 - 0.01]), rtol=0.03)
    assert found[0, 1] == 0  # the decoder explains more than there is
    assert (unexplained(0.9 * spread, spread, np.zeros((2, 2))) == 0).all()


def test_what_is_missing_does_not_count() -> None:
    error, spread, known = noise(50, 1, 8, 8), torch.zeros(50, 1, 8, 8), np.zeros((3, 1))
    error[:, :, ::2] = torch.nan
    found = unexplained(error, spread, known)
    rows = torch.nan_to_num(error[:, :, 1::2]).square().mean().sqrt()
    np.testing.assert_allclose(found[:, 0], float(rows), rtol=1e-6)  # no whole block: that of the row before
    assert (unexplained(torch.full_like(error, torch.nan), spread, known) == 0).all()


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_a_prior_that_is_right_leaves_nothing_and_one_that_is_too_sure_what_it_lacks(size: float) -> None:
    p, T = package(), 201
    assert modality_channels(p) == [1]
    model = p.modules["trajectory"]
    x = model.restore(model.covariance(T).apply(noise(1, T, *SHAPE, seed=2).float(), torch.sqrt))[0]
    x[:, 1] *= size
    found = modality_errors(p, x, torch.zeros(T, 4))
    assert (found[:, 0] == 0).all()
    # Independent of the state: its error is its variance, its spread that of the prior.
    want = np.sqrt(size**2 - 1)
    assert found[0, 1] == pytest.approx(want, abs=0.05 if size > 1 else 0.25)
    assert found[1, 1] == pytest.approx(want / 2, abs=0.1 if size > 1 else 0.15)


def test_they_are_a_part_of_the_observations_errors() -> None:
    p = package(prior_errors=(np.array([0.0, 0.4]), np.array([0.0, 0.1])))
    p.reconstruction_error = np.array([0.05, 0.3], np.float32)
    np.testing.assert_allclose(p.errors, [[0.05, 0.5], [0.0, 0.1]], rtol=1e-6)
    point = field_averages(SHAPE, UNITS, blocks(SHAPE[1:], 1))
    variance = likelihood_of(observing(point, np.zeros(64), 3.0), error=p.errors).variance
    torch.testing.assert_close(variance[[0, 32]], torch.tensor([9 + (0.05 * 2) ** 2, 9 + (0.5 * 20) ** 2]))


def test_there_is_one_beside_each_error_of_reconstruction() -> None:
    with pytest.raises(InputError, match="1 prior_errors came; accepted are none, or 2"):
        package(prior_errors=(np.zeros(2),))
    with pytest.raises(InputError, match=r"prior_errors has shape \(1,\)"):
        package(prior_errors=(np.zeros(1), np.zeros(1)))


def test_the_manifest_keeps_them() -> None:
    p = package(prior_errors=(np.array([0.0, 0.4]), np.array([0.0, 0.1])))
    manifest = json.loads(json.dumps(p.manifest()))
    kept = parts_of(manifest, Path("manifest.json"))["prior_errors"]
    np.testing.assert_array_equal(kept, np.array(p.prior_errors, np.float32))


def test_states_that_have_the_modality_are_those_it_is_judged_at() -> None:
    """Known at one phase of the observed states alone; and never."""
    p, T = package(), 60
    x = noise(T, *SHAPE, seed=2).float()
    x[:, 1] *= 3
    known = torch.zeros(T, dtype=torch.bool)
    known[2::4] = True
    x[~known, 1] = torch.nan
    assert modality_errors(p, x, torch.zeros(T, 4))[0, 1] > 1.5
    x[:, 1] = torch.nan
    with pytest.warns(UserWarning, match="olr: no value at the states that modality errors are taken from"):
        assert modality_errors(p, x, torch.zeros(T, 4))[0, 1] == 0
