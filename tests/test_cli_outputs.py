"""Outputs that cannot be, or are not finite: one sentence, an exit code, and nothing left behind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import xarray as xr

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
