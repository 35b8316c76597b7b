"""The GPU command: all of its code on the CPU, with what a GPU machine may lack taken away; its frame; its sizes."""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from bench.cases.papers import ARCHITECTURES, layout
from bench.cases.table import CASES
from bench.gpu import __main__ as command
from bench.gpu import parity
from bench.gpu.device import Cpu, Times
from bench.gpu.run import Run, Section, because, run_sections
from bench.gpu.table import table
from bench.gpu.workloads import WORKLOADS
from lsda_fast import kernels
from lsda_fast.kernels import registry
from lsda_fast.training import architectures
from lsda_fast.training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = (
    "environment",
    "ceilings",
    "compiled",
    "parity",
    "analyses",
    "graphs",
    "operations",
    "networks",
    "latency",
    "memory",
    "breakdown",
    "sanitizer",
)
# Needed for files and training, not for an analysis.
ABSENT = ("pydantic", "netCDF4", "zarr", "cf_xarray", "pint", "h5netcdf", "yaml", "typer", "rich", "matplotlib")


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The rows and what was printed."""
    folder = tmp_path_factory.mktemp("gpu") / "new"
    code = (
        "import runpy, sys;"
        f"sys.modules.update(dict.fromkeys({ABSENT}));"
        f"sys.argv = ['bench.gpu', '--output', {str(folder)!r}, '--dry-run'];"
        "runpy.run_module('bench.gpu', run_name='__main__', alter_sys=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()], done.stdout


def test_every_section_runs_to_its_end(dry):
    rows, printed = dry
    assert tuple(row["section"] for row in rows if set(row) == {"section", "ok", "seconds"}) == SECTIONS
    assert all(row.get("ok", True) for row in rows)
    assert not any("skipped" in row for row in rows)
    assert " rows, 0 skipped, 0 failed" in printed


def test_every_operation_is_compared_and_timed(dry):
    kernels.report()
    found = {
        section: {row["operation"] for row in dry[0] if row["section"] == section and "operation" in row}
        for section in ("parity", "operations")
    }
    assert found["parity"] == found["operations"] == set(registry.OPERATIONS)
    assert set(WORKLOADS) == set(registry.OPERATIONS)


def test_nothing_tells_which_machine_it_was(dry):
    text = json.dumps(dry[0])
    assert platform.node() not in text
    assert str(ROOT) not in text
    assert sys.prefix not in text


def frame(*sections, seconds=60.0):
    """The rows of these sections, as kept and as written."""
    file = StringIO()
    made = [Section(f.__name__, 1.0, f) for f in sections]
    rows = run_sections(made, Run(Cpu(), True), seconds, file)
    assert [json.loads(line) for line in file.getvalue().splitlines()] == rows
    return rows


def test_a_section_that_fails_is_a_row_and_the_next_goes_on():
    def broken(run):
        yield {"first": 1}
        raise ValueError("no file /home/someone/of/mine.txt\nand more")

    def whole(run):
        yield {"seen": [row["section"] for row in run.rows]}

    rows = frame(broken, whole)
    assert rows[0] == {"section": "broken", "first": 1}
    assert rows[1] == {"section": "broken", "ok": False, "error": "ValueError: no file ..."}
    assert rows[3] == {"section": "whole", "seen": ["broken"] * 3}


def test_a_section_is_stopped_at_its_deadline_and_what_it_leaves_is_the_next_ones():
    def endless(run):
        yield {"left": run.left()}
        while True:
            time.sleep(0.01)

    def after(run):
        yield {"left": run.left()}

    rows = frame(endless, after, seconds=6)
    assert rows[0]["left"] <= 3
    assert rows[1]["error"] == "OutOfTime: stopped at the section's deadline"
    # Seconds, because a busy machine may be late by one.
    assert 0 < rows[3]["left"] <= 3
    assert frame(after, after, seconds=60)[2]["left"] > 30


def test_an_operation_without_cases_is_a_failure(monkeypatch):
    monkeypatch.setattr(parity, "CASES", {})
    rows = list(parity.rows(Run(Cpu(), True)))
    assert [row["operation"] for row in rows] == sorted(registry.OPERATIONS)
    assert all(not row["ok"] and row["error"] == "no cases in bench/cases/table.py" for row in rows)


def test_a_kernel_that_is_wrong_is_found(checks, monkeypatch):
    checks.isas()
    natives = registry.OPERATIONS["adam_step"].natives
    right = natives["cpu"]

    def wrong(outputs, *arguments):
        right.fill(outputs, *arguments)
        outputs[0][..., -1:] += 1e-3

    monkeypatch.setitem(natives, "cpu", replace(right, fill=wrong))
    monkeypatch.setattr(parity, "CASES", {"adam_step": CASES["adam_step"]})
    row = next(row for row in parity.rows(Run(Cpu(), True)) if row["operation"] == "adam_step" and "taken" in row)
    assert not row["ok"]
    assert "times torch's error" in row["errors"][0]


def test_the_published_set_up_is_that_of_the_preset():
    config, state = load_config("paper"), layout(128, 256)
    latent = (69, 32, 64)
    expected = {
        "autoencoder": architectures.autoencoder_architecture(config, state),
        "denoiser": architectures.denoiser_architecture(config, latent),
        "whitening": architectures.whitening_architecture(config, state, latent),
    }
    expected["denoiser"].settings["prediction"] = "x0"
    assert {name: (made.name, made.settings) for name, made in expected.items()} == ARCHITECTURES


def test_targets_are_beside_what_was_found():
    idle = {"section": "graphs", "guidance": "LO-SDA", "captured": True, "ok": True}
    rows = [
        {**idle, "package": "papers", "idle": 0.02},
        {**idle, "package": "built-in", "idle": 0.3},
        {"section": "memory", "package": "papers", "precision": "float32", "members": 1, "measured": 95, "off": 0.05},
    ]
    for members, rate in ((8, 0.7), (16, 0.4)):
        network = {"section": "networks", "package": "papers", "members": members, "captured": True, "tflop_per_s": 1.0}
        for part in ("decoder jvp", "decoder vjp"):
            rows.append({**network, "part": part, "of_matrix_rate": rate, "ms": {"p50": 1.0}})
    lines = {line[:66].strip(): line[66:].split() for line in table(Run(Cpu(), True, rows=rows))}
    assert lines["published size, 16 members, decoder derivatives: share of the rate"][2:] == ["0.400", "missed"]
    assert lines["papers, LO-SDA as a graph: idle share"] == ["<=", "0.03", "0.020"]
    assert lines["built-in, LO-SDA as a graph: idle share"] == ["<=", "0.03", "0.300", "missed"]
    assert lines["published size, LO-SDA of one member: seconds"] == ["not", "measured"]


def test_quantiles_and_errors_in_words():
    assert Times.of([3.0]) == (3.0, 3.0, 3.0)
    assert Times.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (1.8, 3.0, 4.2)
    assert because(OSError("at /a/b.py: no")) == "OSError: at ...: no"


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "cuda_missing", lambda: "none here")
    assert command.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "no GPU: none here; --dry-run runs on the CPU\n"
    assert not list(tmp_path.iterdir())
