"""Whole programs on a second device: the same numbers as on the CPU, and nothing of theirs left there."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.cases.analysis import GUIDANCES, Twin, drawn
from bench.cases.papers import tiny as published
from lsda_fast.alignment.config import AlignmentConfig
from lsda_fast.alignment.pipeline import align
from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.watch import HostReadError, Watch
from lsda_fast.observations import Observations
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler
from lsda_fast.training import TrainingConfig, train
from lsda_fast.training.config import load_config
from lsda_fast.window_assimilator import WindowAssimilator

FEW: dict[str, Any] = {"steps": 3, "batch": 8, "warmup": 1, "validate_every": 2, "ema": 0.9}
NETWORK: dict[str, Any] = {"settings": {"width": 16, "depth": 1, "heads": 2, "calendar": 4}, "optimization": FEW}


def test_what_mixes_devices_is_seen(there: Callable[[], str]) -> None:
    device = there()
    ones = torch.ones(3, device=device)
    assert ones.device.type == device
    assert (2 * ones + torch.tensor(1.0)).tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError, match="on the CPU"):
        ones + torch.ones(3)
    with pytest.raises(RuntimeError, match="on the CPU"):
        torch.cat([torch.zeros(2), ones])
    assert torch.equal(ones.to("cpu"), torch.ones(3))


@pytest.fixture(scope="module")
def twins(tiny: ModuleType) -> dict[str, Twin]:
    """The published architecture, small; and convolutions."""
    return {"transformer": drawn(published("cpu")), "convolutional": drawn(tiny.package())}


CASES = [
    *(("convolutional", name, True) for name in GUIDANCES),
    *(("transformer", name, True) for name in ("preconditioned", "dps")),
    *(("convolutional", name, False) for name in ("gauss_newton", "mmps")),
]


@pytest.mark.parametrize(("package", "name", "fused"), CASES)
def test_analyses(twins: dict[str, Twin], package: str, name: str, fused: bool, there: Callable[[], str]) -> None:
    def analysed(twin: Twin) -> Tensor:
        sampler = Sampler(GUIDANCES[name], steps=2, block=2)
        return sampler(twin.prior(fused=fused), twin.likelihood(0.05), members=3, seed=1).z

    twin = twins[package]
    expected = analysed(twin)
    device = there()
    z = analysed(replace(twin, package=moved(twin.package, device)))
    assert z.device.type == device
    assert torch.allclose(z.to("cpu"), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


RECORDED = [
    *(("convolutional", name) for name, guidance in GUIDANCES.items() if not guidance.obstacle),
    ("transformer", "gauss_newton"),
]


@pytest.mark.parametrize(("package", "name"), RECORDED)
def test_nothing_in_a_block_goes_between_the_host_and_the_device(
    twins: dict[str, Twin], package: str, name: str, there: Callable[[], str]
) -> None:
    """Which a captured graph could not repeat."""
    device, twin = there(), twins[package]
    sampler = Sampler(GUIDANCES[name], steps=2, block=2)
    twin = replace(twin, package=moved(twin.package, device))
    prior, likelihood = twin.prior(fused=True), twin.likelihood(0.05)
    key = Key.of(0, range(2), antithetic=sampler.guidance.antithetic, device=prior.device)
    sampler.inputs(prior, likelihood)
    with Watch(prior.device, strict=True):
        sampler.block_of(prior, likelihood, key)
        z = torch.ones(2, device=device)
        with pytest.raises(HostReadError, match="between cpu and elsewhere in a block"):
            z.to("cpu")
        with pytest.raises(HostReadError, match="between cpu and elsewhere in a block"):
            z.copy_(torch.ones(2))
        one = torch.ones(())
        assert (one * z).device.type == device
        with pytest.raises(HostReadError, match="between cpu and elsewhere in a block"):
            one.to(device)
        with pytest.raises(HostReadError, match="shape depends on no value"):
            z.nonzero()


def moved(package: Package, device: str) -> Package:
    """A copy of the package on the device."""
    modules = {name: deepcopy(module) for name, module in package.modules.items()}
    return replace(package, modules=modules).to(device)


def same(one: Package, two: Package) -> bool:
    """Whether weights are alike, to rounding."""
    pairs = [(m.state_dict(), two.modules[name].state_dict()) for name, m in one.modules.items()]
    return all(
        torch.allclose(value, b[key].to("cpu"), rtol=1e-3, atol=1e-5) for a, b in pairs for key, value in a.items()
    )


GLOBAL: dict[str, Any] = {
    "checkpoint_minutes": 1e3,
    "autoencoder": {
        "kind": "residual_convolutional",
        "latent_channels": 8,
        "patch": 4,
        "latent_noise": 0.1,
        "settings": {"width": 16, "depth": 1, "fine_width": 8, "fine_depth": 1},
        "optimization": FEW,
    },
    "forecaster": {"settings": {"width": 8, "depth": 1, "patch": 2, "scales": 2}, "optimization": FEW},
    "background": {"perturbation": 0.2, "draws": 2},
    "whitening": {"kind": "zonal", "settings": {"rank": 8, "reach": 4.0}},
    "denoiser": {"condition_noise": 0.1, **NETWORK},
}
ALIGNED: dict[str, Any] = {
    "checkpoint_minutes": 1e3,
    "rewards": ["accuracy", "forecast"],
    "period": ("2001-03-20", "2001-04-20"),
    "lead_hours": 24,
    "dates": 12,
    "candidates": {"members": 6, "steps": 3},
    "pairs": {"count": 60, "top": 2, "quantile": 0.4},
    "objective": {"beta": 300.0, "anchor": 0.5},
    "optimization": FEW,
}


def test_training_and_alignment(daily: ModuleType, tmp_path: Path, there: Callable[[], str]) -> None:
    config = TrainingConfig(train=("2001-01-01", "2001-03-05"), validate=("2001-03-06", "2001-03-19"), **GLOBAL)
    expected = train(daily.GLOBE, config, tmp_path / "here")
    aligned = align(tmp_path / "here", daily.GLOBE, AlignmentConfig(**ALIGNED), tmp_path / "aligned here")
    device = there()
    assert same(expected, train(daily.GLOBE, config, tmp_path / "there", device=device))
    again = align(tmp_path / "here", daily.GLOBE, AlignmentConfig(**ALIGNED), tmp_path / "aligned", device=device)
    assert same(aligned, again)


MODALITIES: dict[str, Any] = {
    "checkpoint_minutes": 1e3,
    "variables": ["z500", "t850"],
    "modalities": {"pressure": {"kind": "in-situ", "variables": ["msl"]}},
    "autoencoder": {
        "kind": "multimodal",
        "latent_channels": 12,
        "patch": 4,
        "gaps": {"samples": 0.5, "modality": 0.4, "points": 0.3},
        "settings": {"width": 16, "depth": 1, "fine_width": 8},
        "optimization": FEW,
    },
    "window": {"hours": 24.0, "trajectory": {"rank": 4, "lags": 2}, **NETWORK},
}


def test_windows(daily: ModuleType, tiny: ModuleType, tmp_path: Path, there: Callable[[], str]) -> None:
    config = load_config("slams_tiny", **MODALITIES)
    package = train(daily.GLOBE, config, tmp_path / "here")
    times = daily.GLOBE.time[100:107].to_numpy()
    frame = tiny.table(20).frame.assign(time=np.resize(times, 40))
    observations = Observations.from_frame(frame.drop(columns="observation"))

    def analysed(package: Package) -> Any:
        run = WindowAssimilator(package, steps=2, block=2)
        return run(observations, background=daily.GLOBE.sel(time=times), members=3).analysis

    expected = analysed(package)
    device = there()
    assert same(package, train(daily.GLOBE, config, tmp_path / "there", device=device))
    found = analysed(moved(package, device))
    for name, scale in zip(package.layout.names, package.normalization.std):
        assert np.allclose(found[name], expected[name], rtol=0, atol=1e-3 * scale), name
