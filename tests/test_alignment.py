"""``align`` from states to package: preferences are learned, and an interruption changes nothing."""

import functools
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from torch import Tensor, nn

from lsda_fast.alignment.candidates import Candidates, draw_candidates
from lsda_fast.alignment.case import Case
from lsda_fast.alignment.config import PRESETS, AlignmentConfig, CandidatesConfig, load_config
from lsda_fast.alignment.data import load_states
from lsda_fast.alignment.pipeline import _Run, align
from lsda_fast.alignment.rewards import REWARDS, register_reward
from lsda_fast.alignment.rewards.forecast import ForecastSkill
from lsda_fast.alignment.sharing import check_source
from lsda_fast.calendar import calendar
from lsda_fast.cli.describe import describe
from lsda_fast.errors import InputError
from lsda_fast.package import Package
from lsda_fast.package.files import package_hash
from lsda_fast.package.prior import to_latent
from lsda_fast.training import train
from lsda_fast.training.config import load_config as training_config
from lsda_fast.training.loop import Log
from lsda_fast.training.work import Work

ROOT = Path(__file__).parents[1]
PERIOD = ("2001-03-22", "2001-04-20")
SMALL: dict[str, Any] = {
    "checkpoint_minutes": 1e-9,  # every step
    "period": PERIOD,
    "lead_hours": 24,
    "dates": 24,
    "perturbation": 0.0,  # less than in training: what is preferred is a narrower prior
    "candidates": {"members": 8, "steps": 3},
    "pairs": {"count": 200, "top": 2, "quantile": 0.3},
    "objective": {"beta": 300.0, "repeats": 2},
    "optimization": dict(steps=12, batch=16, accumulate=2, lr=3e-4, warmup=2, validate_every=3, ema=0.9),
}


def states(days: int = 120) -> xr.Dataset:
    """Daily states of an AR(1) process, smooth in space."""
    rng = np.random.default_rng(0)
    latitude, longitude = np.linspace(50.0, 38.0, 6), np.linspace(0.0, 14.0, 8)
    row, column = np.deg2rad(8 * latitude)[:, None], np.deg2rad(8 * longitude)[None]
    modes = np.stack([np.cos(m * column + m) * np.cos(n * row + 2 * n) for m, n in np.ndindex(3, 3)]).reshape(9, -1)
    state, fields = np.zeros((2, 9)), np.empty((days, 2, 6, 8))
    for day in range(-30, days):
        state = 0.9 * state + 0.19**0.5 * rng.standard_normal((2, 9))
        fields[max(day, 0)] = (state @ modes + 0.02 * rng.standard_normal((2, 48))).reshape(2, 6, 8)
    units = {"z500": ("m2 s-2", 5e4, 800.0), "t850": ("K", 280.0, 8.0)}
    dims = ("time", "latitude", "longitude")
    data = {
        name: (dims, (mean + std * fields[:, c]).astype(np.float32), {"units": unit})
        for c, (name, (unit, mean, std)) in enumerate(units.items())
    }
    return xr.Dataset(
        data, {"time": pd.date_range("2001-01-01", periods=days), "latitude": latitude, "longitude": longitude}
    )


@dataclass(frozen=True)
class Near:
    """The closer to the reference analysis, or to the state a day later, the better."""

    name: str
    later: bool = False

    def __call__(self, candidates: Tensor, case: Case) -> Tensor:
        aim = case.later[24.0] if self.later else case.reference
        return torch.exp(-(candidates - aim).square().mean((1, 2, 3)))


class Broken:
    name = "broken"

    def __call__(self, candidates: Tensor, case: Case) -> Tensor:
        return torch.full((len(candidates),), torch.nan)


@pytest.fixture(scope="module", autouse=True)
def rewards() -> Iterator[None]:
    register_reward("near", lambda settings: Near("near"))
    register_reward("next", lambda settings: Near("next", later=True))
    register_reward("broken", lambda settings: Broken())
    yield
    for name in ("near", "next", "broken"):
        del REWARDS[name]


@dataclass(frozen=True)
class World:
    parent: Path
    aligned: Path
    package: Package
    states: xr.Dataset


def small(*names: str, **changes: Any) -> AlignmentConfig:
    return AlignmentConfig(rewards=list(names or ("near",)), **{**SMALL, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder, dataset = tmp_path_factory.mktemp("alignment"), states()
    config = training_config(
        "tiny",
        train=("2001-01-01", "2001-03-10"),
        validate=("2001-03-11", "2001-03-21"),
        background={"perturbation": 0.5},
    )
    train(dataset, config, folder / "parent")
    return World(
        folder / "parent", folder / "aligned", align(folder / "parent", dataset, small(), folder / "aligned"), dataset
    )


def same(one: Any, two: Any) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_alignment_raises_the_held_out_preference_and_changes_the_denoiser_alone(world: World) -> None:
    scores = world.package.provenance["alignments"][0]["scores"]
    assert scores["held_out_accuracy_at_start"] == 0.5
    assert scores["held_out_loss_at_start"] == pytest.approx(np.log(2), abs=1e-6)
    assert scores["held_out_accuracy"] > 0.7
    assert scores["held_out_loss"] < 0.9 * np.log(2)
    parent = Package.load(world.parent)
    changed = [name for name, module in parent.modules.items() if not same(module, world.package.modules[name])]
    assert changed == ["denoiser"]


def test_the_package_says_where_it_comes_from(world: World, tmp_path: Path) -> None:
    record = world.package.provenance["alignments"][0]
    assert record["parent"] == package_hash(world.parent)
    assert record["rewards"] == ["near"]
    assert record["period"] == ["2001-03-22 00:00:00", "2001-04-20 00:00:00"]
    assert AlignmentConfig(**record["configuration"]) == small()
    again = align(world.aligned, world.states, small("near", "next"), tmp_path / "twice")
    assert again.provenance["alignments"][0] == record
    assert again.provenance["alignments"][1]["parent"] == package_hash(world.aligned)
    row = describe(again)["alignment 2"]
    assert row.startswith("on near, next, 2001-03-22 00:00:00 .. 2001-04-20 00:00:00, by dpo, ")
    assert row.endswith(f"from the package {package_hash(world.aligned)[:12]}")


def test_an_interrupted_alignment_goes_on_to_the_same_tables_and_weights(
    interrupted: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "package"
    stops = [("backgrounds", 3), ("candidates", 5), ("rewards", 2), ("pairs", 1), ("denoiser", 5)]
    for stage, step in stops:
        with pytest.raises(KeyboardInterrupt):
            align(world.parent, world.states, small(), output, resume=True, progress=interrupted(stage, step))
        assert not output.exists()
    # In the middle of a part, too: what was being written is not there.
    monkeypatch.setattr("lsda_fast.alignment.pipeline.judge", lambda *_: pytest.fail("judged again"))
    last = interrupted("", 0)
    package = align(world.parent, world.states, small(), output, resume=True, progress=last)
    # A step's checkpoint is written after its report.
    assert [done for stage, done in last.seen if stage == "denoiser"] == list(range(5, 13))
    assert package.manifest() == world.package.manifest()
    assert same(package.modules["denoiser"], world.package.modules["denoiser"])
    one, two = (Path(f"{folder}.work") for folder in (output, world.aligned))
    for part in sorted(p.relative_to(two) for p in two.rglob("*") if p.suffix in (".safetensors", ".parquet", ".json")):
        assert (one / part).read_bytes() == (two / part).read_bytes()


def test_a_part_that_fails_leaves_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Candidates, path: Path, time: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Candidates, "save", fails)
    with pytest.raises(KeyboardInterrupt):
        align(world.parent, world.states, small(), tmp_path / "package")
    monkeypatch.undo()
    assert not list((tmp_path / "package.work" / "candidates").glob("*.safetensors"))
    assert same(
        align(world.parent, world.states, small(), tmp_path / "package", resume=True).modules["denoiser"],
        world.package.modules["denoiser"],
    )


def test_candidates_depend_on_seed_date_and_member_alone(world: World, tmp_path: Path) -> None:
    shards = sorted((Path(f"{world.aligned}.work") / "candidates").glob("*.safetensors"))
    assert len(shards) == 24
    parent = Package.load(world.parent)
    few = load_states(world.states, parent, small(dates=2))
    x_b = few.background(1, parent, 0.0, 0)
    config = CandidatesConfig(members=8, steps=3)
    drawn = draw_candidates(parent, x_b, few.season(1), config, few.seed(1, 0))
    kept = Candidates.load(shards[-1])
    assert all(torch.equal(a, b) for a, b in zip(drawn, kept))
    torch.testing.assert_close(kept.background, parent.autoencoder.encode(x_b[None])[0])
    other = draw_candidates(parent, x_b, few.season(1), config, few.seed(0, 0))
    assert not torch.equal(other.z, drawn.z)
    assert len({row.numpy().tobytes() for row in drawn.z}) == 8


def run_of(world: World, folder: Path, **changes: Any) -> _Run:
    """The stages of an alignment in this folder."""
    config, parent = small(**changes), Package.load(world.parent)
    states = load_states(world.states, parent, config)
    return _Run(parent, "", states, [Near("near")], Work(folder, config, torch.device("cpu"), Log(None)), config)


def test_pairs_come_with_the_analysis_the_background_and_the_season_of_their_date(world: World, tmp_path: Path) -> None:
    run = run_of(world, tmp_path)
    states, date = run.states, run.states.dates[3]
    candidates = sorted((Path(f"{world.aligned}.work") / "candidates").glob("*.safetensors"))
    pairs = pd.DataFrame({"time": states.times[date], "draw": 0, "winner": [5, 2], "loser": [1, 7]})
    found, drawn = run._latents(pairs, candidates), Candidates.load(candidates[3])
    analysis = run.parent.autoencoder.encode(states.x[[date]]).expand(2, -1, -1, -1)
    for part, z in ((found.winner, drawn.z[[5, 2]]), (found.loser, drawn.z[[1, 7]]), (found.analysis, analysis)):
        torch.testing.assert_close(to_latent(run.parent, part, drawn.background[None]), z, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.background, drawn.background.expand_as(found.background))
    assert torch.equal(found.calendar, states.season(3).expand(2, 4))


def test_the_perturbation_is_that_of_the_packages_training_where_none_is_asked_for(
    world: World, tmp_path: Path
) -> None:
    run = run_of(world, tmp_path, perturbation=None)
    run._background(2, tmp_path / "x.safetensors")
    trained, none = (run.states.background(2, run.parent, scale, run.config.seed) for scale in (0.5, 0.0))
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], trained)
    assert not torch.equal(trained, none)


def test_a_background_is_the_forecast_from_its_own_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Package.load(world.parent)
    states = load_states(world.states, parent, small())
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, season: Tensor) -> Tensor:
            seen.append(season)
            return x

    monkeypatch.setitem(parent.modules, "forecaster", Spy())
    states.background(3, parent, 0.0, 0)
    begun = states.times[states.dates[[3]]] - pd.Timedelta(hours=parent.lead_hours)
    np.testing.assert_array_equal(seen[0], calendar(begun))


@pytest.mark.parametrize("lead", [24, 48])
def test_forecasts_are_verified_their_lead_after_the_date(world: World, lead: int) -> None:
    parent = Package.load(world.parent)
    states = load_states(world.states, parent, small(lead_hours=lead))
    dates = states.times[states.dates]
    assert (states.times[states.before] == dates - pd.Timedelta("1D")).all()
    assert (states.times[states.after] == dates + pd.Timedelta(hours=lead)).all()
    assert list(states.case(0, parent, states.x[0]).later) == [lead]


def test_other_rewards_take_the_candidates_of_an_earlier_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(f"{world.aligned}.work")
    run = functools.partial(align, world.parent, world.states, candidates_from=work)
    with pytest.raises(InputError, match="candidates of other seed; accepted are the same"):
        run(small(seed=1), tmp_path / "seed")
    with pytest.raises(InputError, match="no working folder of an alignment"):
        align(world.parent, world.states, small(), tmp_path / "none", candidates_from=tmp_path)
    assert not list(tmp_path.iterdir())  # what stands in the way of the next attempt
    alone = align(world.parent, world.states, small("next"), tmp_path / "alone")
    monkeypatch.setattr("lsda_fast.alignment.pipeline.draw_candidates", lambda *_: pytest.fail("drawn again"))
    assert same(run(small("next"), tmp_path / "taken").modules["denoiser"], alone.modules["denoiser"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("period", ("2001-03-23", "2001-04-20")),
        ("dates", 23),
        ("draws", 2),
        ("perturbation", 0.1),
        ("seed", 1),
        ("candidates", {"members": 8, "steps": 4}),
    ],
)
def test_candidates_of_other_settings_or_inputs_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(small().model_dump_json())
    (tmp_path / "states.json").write_text('{"times": "1"}')
    check_source(tmp_path, small("next"), {"times": "1"})
    with pytest.raises(InputError, match=f"candidates of other {name}; accepted"):
        check_source(tmp_path, small(**{name: value}), {"times": "1"})
    with pytest.raises(InputError, match="candidates of other times; accepted"):
        check_source(tmp_path, small(), {"times": "2"})


def test_an_anchor_at_the_reference_analyses_makes_those_of_other_dates_likelier(world: World, tmp_path: Path) -> None:
    objective = {**SMALL["objective"], "units": "latent", "anchor": 10.0, "toward": 1.0}
    work = Path(f"{world.aligned}.work")
    package = align(world.parent, world.states, small(objective=objective), tmp_path / "package", candidates_from=work)
    scores = package.provenance["alignments"][0]["scores"]
    assert scores["held_out_loss_at_start"] == pytest.approx(np.log(2), abs=1e-6)
    assert scores["held_out_loss"] < 0  # the preference's part is never negative


def test_a_share_of_the_change_lies_between_the_reference_and_the_whole_of_it(world: World, tmp_path: Path) -> None:
    config = small(optimization={**SMALL["optimization"], "share": 0.25})
    package = align(
        world.parent, world.states, config, tmp_path / "package", candidates_from=Path(f"{world.aligned}.work")
    )
    reference, whole, part = (
        p.modules["denoiser"].state_dict() for p in (Package.load(world.parent), world.package, package)
    )
    for name, start in reference.items():
        torch.testing.assert_close(part[name], 0.75 * start + 0.25 * whole[name])
    scores = [p.provenance["alignments"][0]["scores"] for p in (world.package, package)]
    assert scores[0]["held_out_loss"] < scores[1]["held_out_loss"] < np.log(2)


def test_draws_are_further_backgrounds_of_the_same_dates(world: World) -> None:
    parent = Package.load(world.parent)
    one, two = (load_states(world.states, parent, small(dates=3, draws=draws)) for draws in (1, 2))
    assert [two.name(i) for i in range(6)] == [n + draw for n in map(one.name, range(3)) for draw in ("", "_1")]
    first, again, other = one.background(1, parent, 0.5, 0), *(two.background(i, parent, 0.5, 0) for i in (2, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(two.background(3, parent, 0.0, 0), one.background(1, parent, 0.0, 0))


def test_the_reward_table_has_a_row_per_candidate(world: World) -> None:
    work = Path(f"{world.aligned}.work")
    rows = pd.read_parquet(work / "rewards" / "20010420T000000.parquet")
    assert rows.columns.tolist() == ["time", "draw", "member", "candidate", "near"]
    assert rows["member"].tolist() == list(range(8))
    parent = Package.load(world.parent)
    z = Candidates.load(work / "candidates" / "20010420T000000.safetensors").z
    truth = parent.normalize(parent.layout.to_array(world.states.sel(time="2001-04-20")))
    expected = torch.exp(-(parent.autoencoder.decode(z) - truth).square().mean((1, 2, 3)))
    np.testing.assert_allclose(rows["near"], expected, rtol=1e-5)


def test_forecasts_are_those_of_the_model_that_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["def still(package): return lambda x, time, hours: x"]
    lines += ["def half(package): return lambda x, time, hours: x[:, :1]"]
    (tmp_path / "judging_models.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(InputError, match=r"gave \(1, 1, 6, 8\); accepted is a tensor of what it was given, \(1, 2,"):
        align(world.parent, world.states, small(forecast_model="judging_models:half"), tmp_path / "half")
    assert not (tmp_path / "half.work").exists()
    named = small("forecast", forecast_model="judging_models:still", optimization={"steps": 0})
    align(world.parent, world.states, named, tmp_path / "named", candidates_from=f"{world.aligned}.work")
    rows = pd.read_parquet(tmp_path / "named.work" / "rewards" / "20010420T000000.parquet")
    parent = Package.load(world.parent)
    z = Candidates.load(Path(f"{world.aligned}.work") / "candidates" / "20010420T000000.safetensors").z
    values = parent.layout.to_array(world.states.sel(time=["2001-04-20", "2001-04-21"]))
    now, later = parent.normalize(values)
    case = Case(parent, np.datetime64("2001-04-20", "ns"), now, now, {24.0: later})
    expected = ForecastSkill(lambda x, time, hours: x, lead=24.0)(parent.autoencoder.decode(z).detach(), case)
    np.testing.assert_allclose(rows["forecast"], expected, rtol=1e-5)


def test_low_rank_updates_become_plain_weights(world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    objective = {**SMALL["objective"], "lora": {"rank": 2, "alpha": 4.0}}
    package = align(world.parent, world.states, small(objective=objective), tmp_path / "package")
    parent = Package.load(world.parent).modules["denoiser"].state_dict()
    changed = set()
    for name, value in package.modules["denoiser"].state_dict().items():
        difference = value - parent[name]
        if difference.any():
            changed.add(name)
            assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 2
    assert "head.weight" in changed
    assert all(name.endswith(".weight") and not name.startswith("embed") for name in changed)
    assert package.provenance["alignments"][0]["scores"]["held_out_accuracy"] > 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name: str) -> None:
    assert load_config(name, rewards=["near"]).rewards == ["near"]


def test_the_papers_preset_has_the_papers_numbers() -> None:
    c = load_config("align_paper")
    assert (c.candidates.members, c.pairs.count, c.objective.strength) == (32, 4000, 8000.0)
    assert (c.optimization.lr, c.optimization.batch, c.optimization.steps) == (1e-5, 32, 500)


def without(package: Path, name: str, to: Path) -> Path:
    """A copy of the package that lacks a module."""
    model = Package.load(package)
    del model.modules[name], model.architectures[name]
    return model.save(to)


BAD: dict[str, tuple[Any, str]] = {
    "reward": (lambda w, f: (w.parent, small("good"), f / "P"), "rewards 'good' came; accepted, each once, are"),
    "broken reward": (lambda w, f: (w.parent, small("broken"), f / "P"), "reward broken at .* not finite"),
    "itself": (lambda w, f: (w.parent, small(), w.parent), "is the package itself; accepted is another output"),
    "period": (
        lambda w, f: (w.parent, small(period=("2002-01-01", "2002-02-01")), f / "P"),
        "0 of 0 dates have a state 24 h earlier and one 24 h later",
    ),
    "no forecaster": (
        lambda w, f: (without(w.parent, "forecaster", f / "Q"), small(), f / "P"),
        "the package has no forecast model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(world: World, tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    package, config, output = make(world, tmp_path)
    with pytest.raises(InputError, match=message):
        align(package, world.states, config, output)


def test_a_working_folder_belongs_to_one_package(world: World, tmp_path: Path) -> None:
    shutil.copytree(f"{world.aligned}.work", tmp_path / "P.work")
    with pytest.raises(InputError, match="holds an earlier run; go on with --resume"):
        align(world.parent, world.states, small(), tmp_path / "P")
    with pytest.raises(InputError, match="inputs with other package; accepted are the same inputs, or another output"):
        align(world.aligned, world.states, small(), tmp_path / "P", resume=True)


def test_the_benchmark_compares_packages_and_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("bench_alignment", ROOT / "bench" / "alignment.py")
    assert spec is not None
    assert spec.loader is not None
    bench: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    world.states.to_netcdf(tmp_path / "states_0.nc")
    options = ["--period", "2001-03-22", "2001-04-10", "--states", "3", "--members", "2", "--physics", "near"]
    output = tmp_path / "rows.jsonl"
    command = [str(tmp_path), str(world.parent), "--aligned", f"A={world.aligned}", f"same={world.parent}", *options]
    command += ["--methods", "ObsFree", "Repaint", "--work", str(tmp_path / "work"), "--output", str(output)]
    bench.main(command)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3
    # Three states and two packages: Repaint at two densities, ObsFree once for both; and forecasts of the truths.
    assert len(list((tmp_path / "work").iterdir())) == 3 * 2 * (2 + 1) + 3
    for row in rows:
        assert row["states"] == 3
        assert row["wrmse"].keys() == {"z500", "t850"}
        normalised = (
            sum((row["wrmse"][n] / s) ** 2 for n, s in zip(("z500", "t850"), world.package.normalization.std)) / 2
        )
        assert row["mse"] == pytest.approx(normalised)
        assert row["mse_mean"] <= row["mse"]
        assert 0 < row["physics"] < 1
        if row["package"] == "same":
            assert all(value == [0.0, 0.0, 0.0] for value in row["change"].values())
        elif row["package"] == "A":
            reference = next(r for r in rows if (r["observed"], r["method"]) == (row["observed"], row["method"]))
            assert row["change"]["mse"][0] == pytest.approx(row["mse"] / reference["mse"] - 1, abs=1e-5)
            assert row["forecast"] - row["excess"] == pytest.approx(reference["forecast"] - reference["excess"])
            shrunk = row["wrmse"]["z500"] / reference["wrmse"]["z500"] - 1
            assert row["change"]["mse_z500"][0] == pytest.approx(shrunk, abs=1e-5)
    monkeypatch.setattr(bench, "score", lambda *_: pytest.fail("done again"))
    bench.main(command)
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
