"""Configurations, and the architectures that they ask for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid
from lsda_fast.layout import StateLayout
from lsda_fast.models import AUTOENCODERS, build
from lsda_fast.training import TrainingConfig
from lsda_fast.training.architectures import autoencoder_architecture, forecaster_architecture
from lsda_fast.training.config import PRESETS, load_config


def layout(H: int, W: int, south: float = -90.0, north: float = 90.0) -> StateLayout:
    latitude = north - (north - south) * (np.arange(H) + 0.5) / H
    return StateLayout(Grid(latitude, np.arange(W) * 360.0 / W), tuple(Channel(v, None, "") for v in "abc"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_configuration(preset: str) -> None:
    config = load_config(preset)
    architecture = autoencoder_architecture(config, layout(96, 192))
    assert architecture.name in AUTOENCODERS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: 1", "colour: Extra inputs are not permitted"),
        ("denoiser: {settings: {}, steps: 3}", r"denoiser\.steps: Extra inputs"),
        ("autoencoder: {latent_channels: many}", r"autoencoder\.latent_channels: .*integer.*'many'"),
        ("autoencoder: {kind: pca}", r"autoencoder\.kind: .*'linear'"),
        ("lead_hours: -6", "lead_hours: .*greater than 0"),
        ("train: [2001]", "train"),
        ("a: [", "not YAML"),
        ("- 1", "a list came; accepted are keys with values"),
        ("\udcff", "not text; accepted is YAML"),
    ],
)
def test_bad_configurations_are_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        load_config(file)
    assert "\n" not in str(error.value)


def test_dates_need_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: [2000-03-31, 2001-11-30]")
    assert load_config(tmp_path / "c.yaml").train == ("2000-03-31", "2001-11-30")


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(InputError, match="'huge': no such file; presets are tiny, small, nature, paper"):
        load_config("huge")
    assert load_config("tiny", seed=4, lead_hours=None).model_copy(update={"seed": 0}) == load_config("tiny")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "convolutional"}, "'convolutional' needs a patch"),
        ({"kind": "linear", "kl": 1e-6}, "'linear' has no moments"),
        ({"kind": "residual_vit", "patch": 4, "kl": 1e-6}, "'residual_vit' has no moments"),
    ],
)
def test_autoencoders_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        autoencoder_architecture(TrainingConfig(autoencoder=settings), layout(8, 16))


VIT = {"width": 8, "depth": 2, "heads": 2, "windows": [[2, 2]], "global_every": 2}
CONVOLUTIONAL = {"width": 8, "depth": 1, "fine_width": 8}


@pytest.mark.parametrize(("kind", "settings"), [("residual_vit", VIT), ("residual_convolutional", CONVOLUTIONAL)])
def test_a_network_on_principal_components_begins_as_these(kind: str, settings: dict[str, Any]) -> None:
    config = TrainingConfig(autoencoder={"kind": kind, "latent_channels": 5, "patch": 4, "settings": settings})
    architecture = autoencoder_architecture(config, layout(8, 16))
    model: Any = build(AUTOENCODERS, architecture.name, architecture.settings)
    x = torch.randn(50, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    model.linear.fit(x)
    z = model.encode(x)
    assert torch.equal(z, model.linear.encode(x))
    assert torch.equal(model.decode(z), model.linear.decode(z))


@pytest.mark.parametrize(
    ("rows", "poles"),
    [((-90, 90), [True, True]), ((-30, 30), [False, False]), ((0, 90), [True, False]), ((-90, 0), [False, True])],
)
def test_networks_are_told_where_the_grid_ends(rows: tuple[int, int], poles: list[bool]) -> None:
    kind = {"kind": "residual_convolutional", "patch": 4}
    here, config = layout(8, 16, *rows), TrainingConfig(autoencoder=kind)
    for settings in (
        autoencoder_architecture(config, here).settings["residual"],
        forecaster_architecture(config, here).settings,
    ):
        assert (settings["periodic"], settings["poles"]) == (True, poles)
