"""The program around the commands: errors that a user can meet become one line and an exit code."""

import sys
from typing import Any

import typer

from lsda_fast.cli.commands import app
from lsda_fast.cli.terminal import stderr
from lsda_fast.errors import InputError, NonFiniteError

__all__ = ["main"]

# typer carries a click of its own, under no public name
UsageError: Any = typer.BadParameter.mro()[1]


def main() -> None:
    """Run the program and turn the errors a user can meet into one line and an exit code."""
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], standalone_mode=False))
    except UsageError as error:
        _fail(error.format_message(), 2)
    except InputError as error:
        from lsda_fast.assimilator import NoObservationsError

        _fail(str(error), 3 if isinstance(error, NoObservationsError) else 2)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    except NonFiniteError as error:
        _fail(str(error), 4)


def _fail(message: str, code: int) -> None:
    # Messages of other libraries come with line breaks.
    line = " ".join(message.split())
    stderr.print(f"lsda: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
