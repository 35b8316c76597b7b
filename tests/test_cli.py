"""The command line: a contract of files, what every command prints, and help."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import typer
import xarray as xr

import lsda_fast
from lsda_fast import cli
from lsda_fast.alignment.rewards import REWARDS
from lsda_fast.grid import StateLayout
from lsda_fast.package import Package


def test_a_package_is_aligned_by_one_command(program: ModuleType, world: Any, tmp_path: Path) -> None:
    def judge(candidates: torch.Tensor, case: Any) -> torch.Tensor:
        return torch.exp(-(candidates - case.reference).square().mean((1, 2, 3)))

    reward = mock.Mock(side_effect=judge)
    reward.name = "near"
    period = ("--period", "2001-06-20/2001-07-10", "--lead", "24h")
    options = ("--config", "align_tiny", *period, "--output", tmp_path / "P")
    with mock.patch.dict(REWARDS, near=lambda settings: reward):
        code, out, err = program.lsda("align", world.package, world.states, "--rewards", "near", *options)
    assert (code, err) == (0, "")
    assert re.match(
        rf"{tmp_path / 'P'}: \d+ of 160 pairs, \d+ held out, \d+ dates, held_out_loss_at_start 0.6931,", out
    )
    described = program.lsda("inspect", tmp_path / "P").out
    assert "alignment 1" in described
    assert "on near, 2001-06-20" in " ".join(described.split())
    code, _, err = program.lsda(
        "align", world.package, world.states, "--rewards", "fame", *options[:-1], tmp_path / "Q"
    )
    assert code == 2
    assert "rewards 'fame' came; accepted, each once, are" in " ".join(err.split())


def test_training_prints_its_scores_and_leaves_a_package(program: ModuleType, world: Any) -> None:
    code, out, err = world.trained
    assert (code, err) == (0, "")
    assert out.startswith(f"{world.package}: ")
    assert out.count("\n") == 1
    assert "denoiser_validation" in out
    assert Package.load(world.package).layout.names == tuple(program.UNITS)
    log = (world.folder / "package.work" / "log.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in log} == {"denoiser"}


def test_a_forecast_says_when_it_is_valid(program: ModuleType, world: Any, tmp_path: Path) -> None:
    background = xr.load_dataset(world.background)
    assert background["time"].values == np.datetime64(program.VALID)
    assert background["forecast_reference_time"].values == np.datetime64(program.INITIAL)
    arguments = ("forecast", world.package, "--initial", world.states, "--time", program.INITIAL, "--lead", "48h")
    code, out, err = program.lsda(*arguments, "--output", tmp_path / "two[days].nc")
    # Brackets are part of the name, and no markup.
    assert (code, out, err) == (0, f"{tmp_path}/two[days].nc: forecast valid at 2001-07-12T00:00\n", "")
    arguments = ("forecast", world.package, "--initial", world.background)
    code, _, _ = program.lsda(*arguments, "--output", tmp_path / "again.nc")
    assert code == 0
    two, again = (xr.load_dataset(tmp_path / f"{name}.nc") for name in ("two[days]", "again"))
    for name in program.UNITS:
        np.testing.assert_allclose(two[name], again[name], rtol=1e-6)


def test_scores_are_json_with_null_for_what_is_undefined(program: ModuleType, world: Any, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    scores: dict[int, Any] = {}
    for members in (1, 4):
        output = tmp_path / f"A{members}.nc"
        assert program.assimilate(world, output, "--members", members).code == 0
        code, out, err = program.lsda("verify", output, world.states, "--json")
        assert (code, err) == (0, "")
        scores[members] = json.loads(out, parse_constant=refuse)
        assert list(scores[members]) == [*program.UNITS, "normalized"]
    assert all(np.isfinite(value) for row in scores[4].values() for value in row.values())
    assert {name for name, value in scores[1]["msl"].items() if value is None} == {"spread", "spread_skill"}
    code, out, _ = program.lsda("verify", world.background, world.states, "--json")
    background = json.loads(out)
    assert scores[4]["normalized"]["rmse"] < 0.9 * background["normalized"]["rmse"]
    code, out, err = program.lsda("verify", tmp_path / "A4.nc", world.truth)
    assert (code, err) == (0, "")
    assert "z500" in out
    assert "crps" in out
    assert "…" not in out  # on however narrow a terminal
    by_climate = json.loads(
        program.lsda("verify", tmp_path / "A4.nc", world.truth, "--json", "--package", world.package).out
    )
    std = Package.load(world.package).normalization.std
    relative = [by_climate[name]["rmse"] / s for name, s in zip(program.UNITS, std, strict=True)]
    assert by_climate["normalized"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(relative))), rel=1e-5)


def test_the_version(program: ModuleType) -> None:
    assert program.lsda("--version") == (0, f"lsda_fast {lsda_fast.__version__}\n", "")


def test_what_is_in_a_package_and_on_this_machine(program: ModuleType, world: Any) -> None:
    code, out, err = program.lsda("inspect", world.package)
    assert (code, err) == (0, "")
    for word in (
        "3 channels on 8 x 10 points, regional",
        "z500 t850 msl",
        "12 x 1 x 1",
        "24 h",
        "linear",
        "wiener",
        "numbers of statistics",
    ):
        assert word in out
    code, out, err = program.lsda("doctor")
    assert (code, err) == (0, "")
    for word in ("lsda_fast", "torch", "device cpu", "backend reference", "matplotlib"):
        assert word in out


@pytest.mark.parametrize("command", ["", *typer.main.get_command(cli.app).commands])  # type: ignore[attr-defined]
def test_help(program: ModuleType, command: str) -> None:
    code, out, err = program.lsda(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: lsda {command}".strip() in out


def test_the_installed_program(program: ModuleType, world: Any, tmp_path: Path) -> None:
    # What the installed script does, from an installation or a checkout.
    installed = [sys.executable, "-c", "import sys; from lsda_fast.cli import main; sys.argv[0] = 'lsda'; main()"]

    def run(*arguments: object) -> Any:
        command = [*installed, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        return program.Result(done.returncode, done.stdout, done.stderr)

    nothing = run()
    assert (nothing.code, nothing.err) == (0, "")
    assert "assimilate" in nothing.out
    options = ("--background", world.background, "--observations", world.observations, "--output", tmp_path / "A.nc")
    more = ("--members", 2, "--robust", "huber:3", "--report", tmp_path / "report")
    code, out, err = run("assimilate", world.package, *options, *more)
    # No progress bars, and no library's warnings, where nobody looks.
    assert (code, err) == (0, "")
    assert re.search(r"60 of 60 observations \(\d+ with less than half their weight\)", out)
    assert run("inspect", "nowhere") == (
        2,
        "",
        "lsda: nowhere: no manifest.json there; accepted is the folder of a package\n",
    )


def test_an_error_of_the_program_is_not_hidden(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StateLayout, "to_array", broken)
    monkeypatch.setattr(sys, "argv", ["lsda", "verify", str(world.background), str(world.truth)])
    with pytest.raises(ZeroDivisionError):
        cli.main()
