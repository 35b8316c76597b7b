"""The command line: ``lsda``. It only builds what Python builds.

Exit codes: 0 done, 1 an error of the program, 2 bad input, 3 no observation could be used, 4 non-finite members.
"""

from lsda_fast.cli.commands import app
from lsda_fast.cli.program import main

__all__ = ["app", "main"]
