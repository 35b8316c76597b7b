"""The atmosphere of the nature run as a forecast model: what a package's own learned one approximates.

It runs beside, in the generator's own environment (bench/nature_forecast.py), a second of a core for 48 hours.
"""

import json
import os
import subprocess
import weakref
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.package import Package

__all__ = ["NatureForecast", "nature"]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-nature/bin/python"


class NatureForecast:
    """Forecasts by the nature run's model; see ``ForecastModel``.

    Parameters
    ----------
    package : Package
        Its channels and points must be the run's.
    folder : path
        Of the nature run.
    python : path
        The interpreter of its environment.
    workers : int, optional
        Models that run side by side, one for each core that this process may use when not given.

    Raises
    ------
    InputError
        No such interpreter or run, or a package with other channels or points.
    """

    def __init__(
        self, package: Package, folder: str | Path, python: str | Path = PYTHON, workers: int | None = None
    ) -> None:
        checkpoint = Path(folder) / "checkpoint.msgpack"
        for path, what in ((Path(python), "interpreter (make nature-env)"), (checkpoint, "checkpoint of a nature run")):
            if not path.exists():
                raise InputError(f"{path}: no such {what}")
        self.package = package
        layout, count = package.layout, workers or len(os.sched_getaffinity(0))
        command = [str(python), "-m", "bench.nature_forecast", str(Path(folder).resolve())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        self._workers = [_Worker(command, environment) for _ in range(count)]
        grid = layout.grid
        header = {"channels": layout.names, "latitude": list(grid.latitude), "longitude": list(grid.longitude)}
        for worker in self._workers:
            worker.send(header)
            worker.receive(0)

    def __call__(self, x: Tensor, time: np.datetime64, hours: float) -> Tensor:
        """See `ForecastModel`; InputError for a lead that is not whole steps of half an hour."""
        if hours <= 0 or (2 * hours) % 1:
            raise InputError(f"lead {hours:g} h; accepted are multiples of the model's half hour")
        states = self.package.denormalize(x).astype(np.float32)
        parts = np.array_split(states, max(1, min(len(states), len(self._workers))))  # a worker takes a state or more
        for worker, part in zip(self._workers, parts):
            call = {"time": str(time.astype("datetime64[s]")), "hours": hours, "count": len(part)}
            worker.send(call, part.tobytes())
        later = b"".join(worker.receive(part.nbytes) for worker, part in zip(self._workers, parts))
        return self.package.normalize(np.frombuffer(bytearray(later), np.float32).reshape(states.shape)).to(x)


class _Worker:
    """One process of bench/nature_forecast.py."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe)
        self._input, self._output = (cast(BinaryIO, p) for p in (self._process.stdin, self._process.stdout))
        weakref.finalize(self, _end, self._process)

    def send(self, call: dict[str, Any], states: bytes = b"") -> None:
        self._input.write((json.dumps(call) + "\n").encode() + states)
        self._input.flush()

    def receive(self, size: int) -> bytes:
        """So many bytes; InputError with what it refuses, or if it has ended."""
        answer = self._output.readline()
        if not answer:
            raise InputError(f"the nature run's model ended with status {self._process.wait()}; it says why above")
        if error := json.loads(answer)["error"]:
            raise InputError(error)
        return self._output.read(size)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends with its input."""
    process.communicate()


def nature(package: Package) -> NatureForecast:
    """The model of the run in ``runs/nature``, for ``lsda align --forecast-model bench.cases.nature_model:nature``."""
    return NatureForecast(package, ROOT / "runs/nature")
