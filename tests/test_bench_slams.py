"""The command of SLAMS' tables on tiny packages: every way and number of modalities, and that it goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench import slams
from bench.cases.slams import DEGRADATIONS, Extras, Truth, scores, starts
from lsda_fast.diffusion import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.modalities import Modality
from lsda_fast.models import AUTOENCODERS, WINDOWS, build
from lsda_fast.package import Architecture, Package
from lsda_fast.trajectory import Window

GRID = Grid(np.linspace(78.75, -78.75, 8), np.arange(12) * 30.0)
TEMPERATURE = (Channel("t", 850.0, "K"), Channel("t", 500.0, "K"))
RAIN, OLR = Channel("precipitation", None, "kg m-2 s-1"), Channel("olr", None, "W m-2")
MOMENTS = {"t850": (280.0, 8.0), "t500": (255.0, 7.0), "precipitation": (3e-5, 4e-5), "olr": (240.0, 30.0)}
TIMES = pd.date_range("2001-12-01", periods=40, freq="6h")


def normalization(channels: tuple[Channel, ...]) -> Normalization:
    return Normalization(*np.array([MOMENTS[channel.name] for channel in channels]).T)


def package(path: Path, name: str, decoded: tuple[Channel, ...], beside: tuple[Channel, ...] = ()) -> Path:
    """Untrained networks on temperatures, with modalities among their channels or only encoded."""
    torch.manual_seed(0)
    layout = StateLayout(GRID, (*TEMPERATURE, *decoded))
    kinds = {RAIN: ("rain", "in-situ"), OLR: ("radiation", "satellite")}
    modalities = tuple(
        Modality(*kinds[c], StateLayout(GRID, (c,)), normalization((c,)), c in decoded) for c in (*decoded, *beside)
    )
    own = {m.name: {"channels": [layout.index(m.layout.names[0])] if m.decoded else 1} for m in modalities}
    encoder: dict[str, Any] = {"shape": layout.shape}
    if name == "slams":
        encoder |= {"latent_channels": 2, "widths": [3], "kernel": 3, "modalities": own}
    autoencoder = build(AUTOENCODERS, name, encoder)
    unet = {"latent_shape": autoencoder.latent_shape, "size": 3, "hidden": [4], "blocks": 1, "prediction": "eps"}
    made = Package(
        layout, normalization(layout.channels), Schedule.vp_cosine(), "eps",
        {"autoencoder": autoencoder, "window": build(WINDOWS, "unet", unet)},
        {"autoencoder": Architecture(name, encoder), "window": Architecture("unet", unet)},
        np.full(len(layout.channels), 0.1), whitened=False, modalities=modalities, window=Window(3, 6.0),
    )  # fmt: skip
    return made.save(path)


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layout = StateLayout(GRID, (*TEMPERATURE, RAIN, OLR))
    truth = normalization(layout.channels).denormalize(np.random.default_rng(0).standard_normal((40, *layout.shape)))
    (tmp_path / "nature").mkdir()
    layout.to_dataset(truth, dims=("time",), coords={"time": TIMES.to_numpy()}).to_netcdf(
        tmp_path / "nature" / "states_0.nc"
    )
    pixel = package(tmp_path / "pixel", "identity", ())
    ours = package(tmp_path / "ours", "identity", (RAIN, OLR))
    bare = package(tmp_path / "slams0", "slams", ())
    aided = package(tmp_path / "slams2", "slams", (), (RAIN, OLR))
    command = [
        tmp_path / "nature", "--pixel", pixel, "--published", bare, aided, "--ours", ours,
        "--steps", "pixel=2", "published=2", "ours=1", "--correct", "pixel=0", "--low", "published",
        "--limit", "published",
        "--cases", "coarsen 8", "gap 4", "noise 4",
        "--windows", 2, "--states", 5, "--members", 2, "published=1", "--period", "2001-12-01", "2001-12-05",
        "--work", tmp_path / "work", "--output", tmp_path / "slams.jsonl",
    ]  # fmt: skip
    slams.main([str(argument) for argument in command])
    rows = pd.DataFrame([json.loads(line) for line in (tmp_path / "slams.jsonl").read_text().splitlines()])
    columns = {("pixel", 0), *(("published", n) for n in (0, 1, 2)), *(("ours", n) for n in (0, 1, 2))}
    assert set(zip(rows["way"], rows["modalities"])) == columns
    assert len(rows) == 3 * len(columns)
    assert set(rows["windows"]) == {2}
    how = rows.groupby("way")[["steps", "corrections", "precision", "limit"]].first()
    assert list(how.loc["pixel"]) == [2, 0, "float32", True]
    assert list(how.loc["published"]) == [2, 1, "bfloat16", True]
    assert not slams.WAYS["published"].sampler["guidance"].limit
    assert dict(zip(rows["way"], rows["members"])) == {"pixel": 2, "published": 1, "ours": 2}
    for row in rows.to_dict("records"):
        assert list(row["wasserstein_by_level"]) == ["t850", "t500"]
        assert row["wasserstein"] == pytest.approx(np.mean(list(row["wasserstein_by_level"].values())), abs=1e-4)
        assert len(row["crps_by_lead"]) == 5
        assert row["seconds"] > 0
        ratio = row["member_rmse"] / row["rmse"]
        assert ratio > 1.001 if row["members"] > 1 else ratio == pytest.approx(1.0)
        assert np.isfinite([row["rmse"], row["crps"]]).all()
    # More observations, less error, whatever the untrained prior thinks.
    ours_rmse = rows[rows["way"] == "ours"].set_index(["case", "modalities"])["rmse"]
    assert ours_rmse["gap 4", 0] < ours_rmse["coarsen 8", 0]
    assert "wasserstein" in capsys.readouterr().out
    # A second run measures nothing again.
    monkeypatch.setattr(slams, "analysed", lambda *_, **__: pytest.fail("done again"))
    slams.main([str(argument) for argument in command])


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_members_are_draws_whatever_their_number(tmp_path: Path, members: int) -> None:
    """Error and CRPS of a member of ours, whose draws come in opposite pairs, against many ensembles of one."""
    ours = Package.load(package(tmp_path / "ours", "identity", (RAIN, OLR)))
    layout, spread = ours.layout, np.asarray(ours.normalization.std)[:, None, None]
    truth = Truth(np.zeros((1, *layout.shape)), {}, TIMES[:1])
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        y = spread * random.standard_normal((1, *layout.shape))
        pairs = [spread * random.standard_normal((1, *layout.shape)) for _ in range((members + 1) // 2)]
        draws = np.stack([sign * draw for draw in pairs for sign in (1, -1)][:members]) - y
        what = {"kind": "opposite pairs", "alone": members % 2} if members > 1 else {"kind": "independent"}
        found.append(scores(ours, draws, truth, **what))
    member = np.sqrt(np.mean([s["member_rmse"]["t850"] ** 2 for s in found]))
    crps = np.mean([s["crps"]["t850"] for s in found])
    assert member == pytest.approx(np.sqrt(2), rel=0.01)
    assert crps == pytest.approx(2 * np.pi**-0.5 if members == 1 else np.pi**-0.5, rel=0.02)


def test_modalities_of_a_package(tmp_path: Path) -> None:
    ours = Package.load(package(tmp_path / "ours", "identity", (RAIN, OLR)))
    extras = Extras.of(ours)
    assert [extras.channels(ours, n) for n in (0, 1, 2)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    beside = Extras.of(Package.load(package(tmp_path / "slams", "slams", (), (RAIN, OLR))))
    assert (beside.most(slams.WAYS["published"]), beside.most(slams.WAYS["pixel"])) == (2, 0)


def test_a_row_is_over_all_windows() -> None:
    """Roots of mean squares, by level and by lead; means of the rest."""
    names = ("wasserstein", "rmse", "member_rmse", "crps")
    windows = [
        {score: {"t850": value, "t500": value} for score in names}
        | {"rmse_by_lead": [value], "crps_by_lead": [value], "seconds": value, "members": 2}
        for value in (1.0, 7.0)
    ]
    row = slams.summary("gap 4", ("ours", 0), [("gap 4", ("ours", 0), found) for found in windows])
    assert (row["rmse"], row["member_rmse"], *row["rmse_by_lead"]) == (5.0, 5.0, 5.0)
    assert (row["wasserstein"], row["crps"], *row["crps_by_lead"], row["seconds"]) == (4.0, 4.0, 4.0, 4.0)


def test_the_published_degradations() -> None:
    assert len(DEGRADATIONS) == 14
    assert DEGRADATIONS["coarsen 4"] == DEGRADATIONS["noise 0.1"]


def test_windows_are_spread_over_the_period() -> None:
    assert starts(TIMES, ("2001-12-02", "2001-12-05"), 5, 3) == [4, 10, 15]
    with pytest.raises(InputError, match="2 windows of 16 do not fit"):
        starts(TIMES, ("2001-12-02", "2001-12-05"), 16, 2)


@pytest.mark.parametrize(("options", "sentence"), [
    ((), "no package came that serves"),
    (("--steps", "mine=3"), "--steps mine=3 came"),
    (("--pixel", "P", "--members", "ours=0"), "--members ours=0 came"),
])  # fmt: skip
def test_what_the_command_takes(options: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        slams.main(["nowhere", *options])
