"""What a person sees: lines and tables on standard output, progress and errors on standard error."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["print_rows", "print_table", "progress", "say", "stderr", "warn"]

stdout, stderr = Console(), Console(stderr=True)


def say(text: str) -> None:
    """A line of the result; a path is printed as it is, however long and with whatever brackets."""
    stdout.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """A line beside the result."""
    stderr.print(f"lsda: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_table(table: Any, title: str) -> None:
    """A data frame as a table on the terminal."""
    shown = Table(title=escape(title), title_justify="left")
    for column in ["", *map(str, table.columns)]:
        shown.add_column(escape(column), justify="right" if column else "left")
    for key, row in table.iterrows():
        cells = ("" if v != v else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        shown.add_row(*(escape(cell) for cell in (str(key), *cells)))
    _print_whole(shown, always=True)


def _print_whole(shown: Table, always: bool = False) -> None:
    """Cells uncut, on lines longer than the terminal where need be: what goes to a file; what has numbers, always."""
    wide = Measurement.get(stdout, stdout.options.update_width(1000), shown).maximum
    whole = always or not stdout.is_terminal
    Console(width=max(stdout.width, wide) if whole else stdout.width).print(shown)


def print_rows(rows: Iterable[Iterable[object]], header: tuple[str, ...] = ()) -> None:
    """Rows of text in columns, in a box where there is a header."""
    shown = Table(*header) if header else Table(show_header=False, box=None)
    for row in rows:
        shown.add_row(*(escape(str(cell)) for cell in row))
    _print_whole(shown)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int, dict[str, Any]], None]]:
    """A progress bar per stage, on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int, values: dict[str, Any]) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, note="")
            note = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
            bar.update(tasks[stage], completed=done, total=total, note=note)

        yield update
