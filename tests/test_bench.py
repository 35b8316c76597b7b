"""The benchmarks' own machinery: that all can start, what is kept of an interrupted run, what is told apart."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench import alignment, skill
from bench.cases.kept import kept_arrays
from bench.gpu.device import Cpu
from bench.gpu.sanitizer import _watched
from bench.head import peak
from lsda_fast.datasets import open_states
from lsda_fast.demo import built_in_package

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "bench").rglob("*.py")
    if path.name not in ("__main__.py", "__init__.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_can_start(module):
    importlib.import_module(module)


def test_an_interrupted_case_leaves_nothing_and_is_made_again(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    path = tmp_path / "cases" / "a.npz"
    with pytest.raises(KeyboardInterrupt):
        kept_arrays(path, interrupted)
    assert not path.exists()
    for made in ([1.0, 2.0], [3.0]):  # the second is read
        found = kept_arrays(path, lambda made=made: {"x": np.array(made), "kind": "independent"})
        assert (found["x"].tolist(), str(found["kind"])) == ([1.0, 2.0], "independent")


def test_skill_is_of_the_states_that_were_asked_for(tmp_path, monkeypatch):
    """Another number of states has others behind the same number."""
    states = open_states(str(ROOT / "lsda_fast/data/demo/states.nc"))
    package = ROOT / "lsda_fast/data/demo/package"
    layout = built_in_package().layout

    def twins(package, nature, period, count):
        for number in range(count):
            truth = states.isel(time=0) + 10.0 * number / count
            yield number, truth, truth + 1.0, None

    def analysed(package, method, background, observations, members, seed):
        return {"ensemble": layout.to_array(background)[None], "seconds": 1.0, "kind": "independent"}

    monkeypatch.setattr(skill, "twins", twins)
    monkeypatch.setattr(skill, "analysed", analysed)
    monkeypatch.setattr(skill, "open_states", lambda _: states)
    for count in (2, 4):
        options = ["--states", str(count), "--members", "1", "--methods", "DPS", "--work", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["x", str(tmp_path), str(package), *options])
        assert skill.main() is None
    assert len(list(tmp_path.glob("*.npz"))) == 2 * (2 + 4)


def test_a_score_below_zero_has_no_relative_change():
    base = pd.Series(np.linspace(1.0, 2.0, 20))
    assert alignment.change(0.5 * base, base, False)[0] == pytest.approx(-0.5)
    assert alignment.change(0.25 * base, base, True)[0] == pytest.approx(-0.5)
    assert alignment.change(base - 1.5, base, False) is None


def test_a_precision_holds_within_another():
    x, dtypes = torch.ones(2, 2), []
    with Cpu().precision("bfloat16"):
        dtypes.append((x @ x).dtype)
        with Cpu().precision("float32"):
            dtypes.append((x @ x).dtype)
    assert dtypes == [torch.bfloat16, torch.float32]


def test_memory_is_measured_without_changing_the_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert peak(lambda: torch.ones(1000)) == 4000
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_is_out_of_time_ends_with_all_that_it_started(tmp_path):
    """As a sanitizer starts the program that it watches."""
    number = tmp_path / "number"
    command = ["sh", "-c", f"sleep 60 & echo $! > {number}; wait"]
    assert "skipped" in _watched(command, 3)
    state = Path(f"/proc/{number.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
