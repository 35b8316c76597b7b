"""Analyses and trainings on a second device, which tests/other_device makes of the CPU, in a process of its own.

A device is registered with torch for as long as a process lives.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_programs_go_where_they_are_sent() -> None:
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/other_device/programs.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
