"""compute-sanitizer over the small cases: out of bounds, races, barriers; each tool in a process of its own.

Torch's caching allocator is off there, which would hide what reads past the end. Without the program the cases run
without it, so that the way there is tried; on a GPU that is said.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.gpu.run import Row, Run, without_paths

__all__ = ["rows"]

TOOLS = ("memcheck", "racecheck", "synccheck")
PLACES = ("/usr/local/cuda/bin", "/opt/nvidia/compute-sanitizer")


def rows(run: Run) -> Iterator[Row]:
    """One row a tool."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(PLACES))
    cases = [sys.executable, "-m", "bench.gpu.small", run.device.name, "--most=8000"]
    if program is None or run.dry:
        yield {
            "tool": None,
            "why": "dry run" if run.dry else "no compute-sanitizer here",
            **_watched(cases, run.left()),
        }
        return
    for i, tool in enumerate(TOOLS):
        if run.left() < 15:
            yield {"tool": tool, "skipped": "no time left"}
            continue
        command = [program, f"--tool={tool}", "--error-exitcode=9", "--print-limit=3", *cases]
        yield {"tool": tool, **_watched(command, run.left() / (len(TOOLS) - i))}


def _watched(command: list[str], seconds: float) -> Row:
    begin = time.monotonic()
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=max(seconds - 2, 1))
        except BaseException as error:  # the section's deadline among them
            os.killpg(process.pid, signal.SIGKILL)  # with the program that the tool has started
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {"skipped": f"not done in {seconds:.0f} s"}
    lines = (stdout + stderr).strip().splitlines()
    said = [line for line in lines if line.startswith("=========") or line.endswith(" calls")]
    row = {"ok": process.returncode == 0, "exit": process.returncode, "seconds": round(time.monotonic() - begin, 1)}
    return {
        **row,
        "said": [without_paths(line)[:200] for line in (said[:2] + said[-2:] if process.returncode else said[-2:])],
    }
