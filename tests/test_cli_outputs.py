"""Outputs that cannot be, or are not finite: one sentence, an exit code, and nothing left behind."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
import xarray as xr

from lsda_fast.datasets import open_states
from lsda_fast.guidance import LatentOptimization
from lsda_fast.package import Package

BAD: dict[str, tuple[Callable[[Any], Sequence[object]], int, str]] = {
    "output is an input": (
        lambda a: a.analysis(output=a.world.background),
        2,
        "is an input; accepted is another name",
    ),
    "output matches an input": (
        lambda a: a.analysis(output=a.world.background, background=a.world.folder / "backgro*.nc"),
        2,
        "is an input; accepted is another name",
    ),
    "departures are an input": (
        lambda a: a.analysis(output=a.folder / "A.nc", observations=a.written("A.departures.csv", "time")),
        2,
        "A.departures.csv is written beside it, and is an input; accepted is another name",
    ),
    "a folder for departures": (
        lambda a: a.analysis(output=a.folded("A.departures.csv") / "A.nc"),
        2,
        "A.departures.csv, which is written beside it, is a folder",
    ),
    "folder not there": (lambda a: a.analysis(output="deeper/A.nc"), 2, "A.nc: its folder does not exist"),
    "report is a file": (
        lambda a: a.analysis("--report", a.written("page", "")),
        2,
        "page cannot be written; accepted is a folder",
    ),
    "demo into a file": (lambda a: ("demo", "--output", a.written("d", "")), 2, "d cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_gets_one_sentence(program: ModuleType, world: Any, tmp_path: Path, case: str) -> None:
    program.check(BAD[case], world, tmp_path)


@pytest.mark.parametrize("where", ["guidance", "decoder"])
def test_members_that_are_not_finite_are_named_and_nothing_is_written(
    program: ModuleType, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    guide, sentence = LatentOptimization.guide, "members \\[1\\] of seed 5 are not finite"

    def broken(self: LatentOptimization, z_t: torch.Tensor, context: Any) -> Any:
        estimate = guide(self, z_t, context)
        # 1e38 is finite, and its square is not.
        estimate.z0[1] = torch.nan if where == "guidance" else 3e38
        return estimate

    monkeypatch.setattr(LatentOptimization, "guide", broken)
    if where == "decoder":
        sentence = "members \\[.*1.*\\] of seed 5 are not finite"  # or all, where their common mean is not either
    program.refused(program.assimilate(world, tmp_path / "A.nc", "--members", 3, "--seed", 5), 4, sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["forecast", "assimilate"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    program: ModuleType, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(Package, "load", lambda *_: pytest.fail("worked before looking"))
    case = {"forecast": ("forecast", world.package, "--initial", world.states, "--output", tmp_path / "A.nc")}
    result = program.lsda(*case[command]) if command in case else program.assimilate(world, tmp_path / "A.nc")
    program.refused(result, 2, "A.nc cannot be written; accepted is a file in a folder that is open to writing")


@pytest.mark.parametrize("command", ["forecast", "assimilate"])
def test_a_full_disk_leaves_nothing_behind(
    program: ModuleType, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(self: xr.Dataset, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    initial = ("--initial", world.states, "--time", program.INITIAL)
    result = (
        program.lsda("forecast", world.package, *initial, "--output", tmp_path / "A.nc")
        if command == "forecast"
        else program.assimilate(world, tmp_path / "A.nc")
    )
    program.refused(result, 2, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_goes_on_into_the_next_cycle_and_a_season_is_verified_at_once(
    program: ModuleType, world: Any, tmp_path: Path
) -> None:
    """One member, the default, is a state; what differs in the settings is told by the file."""
    first = program.assimilate(world, tmp_path / "A1.nc")
    assert first.code == 0
    forecast = program.lsda("forecast", world.package, "--initial", tmp_path / "A1.nc", "--output", tmp_path / "B2.nc")
    assert forecast.code == 0
    observations = pd.read_csv(world.observations)
    observations["time"] = str(xr.open_dataset(tmp_path / "B2.nc")["time"].values)
    observations.to_csv(tmp_path / "O2.csv", index=False)
    files = {"background": tmp_path / "B2.nc", "observations": tmp_path / "O2.csv"}
    second = program.assimilate(world, tmp_path / "A2.nc", "--no-correction", **files)
    assert (second.code, second.err) == (0, "")
    told = [xr.open_dataset(tmp_path / f"A{n}.nc").attrs["correction"] for n in (1, 2)]
    assert told == ["True", "False"]
    code, out, err = program.lsda("verify", tmp_path / "A[12].nc", world.states, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["z500"]["rmse"] > 0


def test_a_store_and_a_file_of_one_name_keep_their_own_tables(program: ModuleType, world: Any, tmp_path: Path) -> None:
    for suffix in (".nc", ".zarr"):
        assert program.assimilate(world, tmp_path / f"A{suffix}").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "A.departures.csv", "A.nc", "A.zarr", "A.zarr.departures.csv",
    ]  # fmt: skip


def test_what_a_link_leads_to_is_written(program: ModuleType, world: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for suffix in (".nc", ".zarr"):
        link, target = tmp_path / f"A{suffix}", tmp_path / "disk" / f"real{suffix}"
        link.symlink_to(target)
        for _ in range(2):
            assert program.assimilate(world, link).code == 0
        assert link.is_symlink()
        assert "z500" in open_states(target)
    assert len(list((tmp_path / "disk").iterdir())) == 2


def test_a_table_of_departures_is_a_table_of_observations_as_often_as_asked(
    program: ModuleType, world: Any, tmp_path: Path
) -> None:
    observations = world.observations
    for turn in range(3):
        assert program.assimilate(world, tmp_path / f"A{turn}.nc", observations=observations).code == 0
        observations = tmp_path / f"A{turn}.departures.csv"
    assert len(pd.read_csv(observations)) == len(pd.read_csv(world.observations))


def test_observations_without_times_are_used_with_a_word(program: ModuleType, world: Any, tmp_path: Path) -> None:
    pd.read_csv(world.observations).assign(time="").to_csv(tmp_path / "O.csv", index=False)
    code, _, err = program.assimilate(world, tmp_path / "A.nc", observations=tmp_path / "O.csv")
    assert code == 0
    assert "no observation has a time: all are used" in err


def test_observations_are_compared_alone_without_guidance(program: ModuleType, world: Any, tmp_path: Path) -> None:
    code, out, _ = program.assimilate(world, tmp_path / "A.nc", "--guidance", "none", "--steps", 2)
    assert code == 0
    assert "observations (compared alone)" in " ".join(out.split())


def test_a_report_replaces_reports_alone(program: ModuleType, world: Any, tmp_path: Path) -> None:
    page = tmp_path / "site" / "index.html"
    page.parent.mkdir()
    page.write_text("my own page")
    code, _, err = program.assimilate(world, tmp_path / "A.nc", "--report", page.parent)
    assert code == 2
    assert "index.html is no report of lsda_fast; accepted is a folder without such a page" in " ".join(err.split())
    assert page.read_text() == "my own page"
    page.unlink()
    for _ in range(2):
        assert program.assimilate(world, tmp_path / "A.nc", "--report", page.parent).code == 0
