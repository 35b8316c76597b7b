"""The frame of all sections: a time budget each, rows as JSON lines when they are made, errors that stop one section.

A section is a function of ``Run`` that yields rows. A row with ``ok`` false is a failure; a section that raises, or
that is stopped at its deadline, becomes such a row, and the next one goes on. Time that a section leaves goes to the
next. No row has a path of this machine.
"""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, TextIO

from bench.gpu.device import Device

__all__ = ["OutOfTime", "Row", "Run", "Section", "because", "run_sections", "without_paths"]

Row = dict[str, Any]


class OutOfTime(Exception):
    """The section's deadline has passed."""


@dataclass
class Run:
    """What a section is given.

    Parameters
    ----------
    device : Device
    dry : bool
        Tiny sizes, few repeats.
    deadline : float
        Of the section, on the clock of ``time.monotonic``.
    rows : list of dict
        Of all sections before.
    """

    device: Device
    dry: bool
    deadline: float = float("inf")
    rows: list[Row] = field(default_factory=list)

    def left(self) -> float:
        """Seconds to the section's deadline."""
        return self.deadline - time.monotonic()

    def attempt(self, labels: Row, measure: Callable[[], Row], *, least: float = float("-inf")) -> Row:
        """``labels`` with what is measured, or with its error; not tried with less than ``least`` seconds left."""
        if self.left() < least:
            return {**labels, "skipped": "no time left"}
        try:
            return {**labels, **measure()}
        except OutOfTime:
            raise
        except Exception as error:
            return {**labels, "ok": False, "error": because(error)}

    def found(self, section: str, **labels: Any) -> Iterator[Row]:
        """Rows made so far, with these values."""
        for row in self.rows:
            if row["section"] == section and labels.items() <= row.items():
                yield row


class Section(NamedTuple):
    """A section and its share of the time."""

    name: str
    share: float
    rows: Callable[[Run], Iterator[Row]]


def run_sections(sections: list[Section], run: Run, seconds: float, file: TextIO) -> list[Row]:
    """All sections within ``seconds``; every row is on disk before the next is made."""
    total, end = sum(section.share for section in sections), time.monotonic()
    for section in sections:
        end += seconds * section.share / total
        run.deadline, begin = end, time.monotonic()
        for row in _guarded(section, run):
            row = {"section": section.name, **row}
            run.rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
        row = {"section": section.name, "ok": True, "seconds": round(time.monotonic() - begin, 2)}
        run.rows.append(row)
        file.write(json.dumps(row) + "\n")
    return run.rows


def because(error: BaseException) -> str:
    """Type and first line of an error, paths left out."""
    lines = str(error).strip().splitlines() or [""]
    return without_paths(f"{type(error).__name__}: {lines[0]}")


def without_paths(text: str) -> str:
    """Three dots for every path."""
    return re.sub(r"(?:/[\w.+-]+){2,}/?", "...", text)


def _guarded(section: Section, run: Run) -> Iterator[Row]:
    rows = section.rows(run)
    while True:
        try:
            with _until(run.left(), run.device):
                row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            yield {"ok": False, "error": because(error)}
            return
        yield row


@contextmanager
def _until(seconds: float, device: Device) -> Iterator[None]:
    """OutOfTime after so many seconds, as soon as Python runs; every second again, where somebody takes it."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not device.capturing:
            raise OutOfTime("stopped at the section's deadline")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
