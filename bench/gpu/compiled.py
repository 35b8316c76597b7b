"""Triton compiles each of its kernels for what is special about the arguments: hundreds over all cases, some seconds
each. Here it is done before anything is measured, by several processes at once, into the cache on disk: for the cases
of parity, the sizes that are timed, and whole analyses.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.gpu.run import Row, Run

__all__ = ["rows"]

MOST = 12


def rows(run: Run) -> Iterator[Row]:
    """One row."""
    begin, parts = time.monotonic(), min(MOST, os.cpu_count() or 1)
    command = [sys.executable, "-m", "bench.gpu.small", run.device.name, *(["--dry"] if run.dry else [])]
    # Of a dry run one part of many: there is nothing to compile.
    shares = [(0, 30)] if run.dry else [(part, parts) for part in range(parts)]
    asked = [["--derivatives", "--timed", f"--part={part}", f"--parts={count}"] for part, count in shares]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, *what], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for what in (["--analyses"], *asked)
    ]
    try:
        while run.left() > 1 and any(worker.poll() is None for worker in workers):
            time.sleep(0.1)
    finally:
        late = [worker for worker in workers if worker.poll() is None]
        for worker in late:
            worker.kill()
    failed = sum(worker.wait() != 0 for worker in workers if worker not in late)
    row = {"processes": len(workers), "seconds_taken": round(time.monotonic() - begin, 1), "ok": not failed}
    yield {**row, **({"skipped": f"{len(late)} processes were not done in time"} if late else {})}
