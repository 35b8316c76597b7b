"""The C++ operations under the address and undefined-behaviour sanitizers, in a program of their own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++17", "-O1", "-g", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@pytest.mark.slow
def test_no_step_outside_and_no_undefined_behaviour(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = [str(ROOT / "tests" / "cpp" / "driver.cpp"), *map(str, sorted((ROOT / "csrc" / "cpu").glob("*.cpp")))]
    program = tmp_path / "driver"
    subprocess.run([compiler, *FLAGS, *SANITIZE, f"-I{ROOT / 'csrc'}", *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr
