"""What options say: text to a guidance, a period or a device, and outputs that cannot be written, found out early."""

import os
from collections.abc import Callable, Sequence
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from lsda_fast.errors import InputError

__all__ = [
    "Device",
    "PackagePath",
    "check_output",
    "check_plots",
    "guidance_of",
    "period_of",
    "pick_device",
    "robust_of",
]

PackagePath = Annotated[Path, typer.Argument(help="Folder of a package.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


def guidance_of(name: str, inner: str, prior_covariance: str | None, usual: str) -> Any:
    """The guidance that ``--guidance``, ``--inner`` and ``--prior-covariance``, or the usual one, name."""
    from lsda_fast import guidance as g

    if name != "lo" and (inner != "gauss_newton" or prior_covariance is not None):
        raise InputError(f"--guidance {name} came with --inner or --prior-covariance, which are of lo")
    prior_covariance = prior_covariance or usual
    inner_solvers = {"gauss_newton": g.GaussNewton, "adam": g.Adam, "lbfgs": g.LBFGS}
    if inner not in inner_solvers:
        raise InputError(f"--inner {inner!r} is unknown; accepted: {', '.join(inner_solvers)}")
    choices: dict[str, Callable[[], g.Guidance]] = {
        "lo": lambda: g.LatentOptimization(inner_solvers[inner](), prior_covariance=prior_covariance),
        "mmps": g.MMPS,
        "dps": g.DPS,
        "repaint": g.Repaint,
        "none": g.ObsFree,
    }
    if name not in choices:
        raise InputError(f"--guidance {name!r} is unknown; accepted: {', '.join(choices)}")
    return choices[name]()


def robust_of(text: str) -> Any:
    """The cost that ``--robust`` names: none, huber[:threshold] or varqc[:gross error[,width]]."""
    from lsda_fast import guidance as g

    name, _, numbers = text.partition(":")
    costs: dict[str, tuple[Any, int]] = {
        "none": (lambda: None, 0),
        "huber": (g.Huber, 1),
        "varqc": (g.VariationalQC, 2),
    }
    accepted = "none, huber[:THRESHOLD], varqc[:GROSS_ERROR[,WIDTH]]"
    try:
        values = [float(number) for number in numbers.split(",")] if numbers else []
    except ValueError:
        raise InputError(f"--robust {text!r}; accepted: {accepted}, with numbers") from None
    if name not in costs or len(values) > costs[name][1]:
        raise InputError(f"--robust {text!r}; accepted: {accepted}")
    return costs[name][0](*values)


def period_of(text: str | None, option: str) -> tuple[str, str] | None:
    """First and last of FIRST/LAST."""
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{option} {text!r}; accepted is FIRST/LAST, such as 2000-01-01/2006-12-31")
    return parts[0], parts[1]


def pick_device(name: str) -> str:
    """The device by torch's name; InputError where there is none."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind):
        raise InputError(f"--device {name!r} is unknown; accepted: cpu, cuda, cuda:1, auto")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} sees no CUDA device here")
    return name


def check_output(path: Path, *inputs: str | Path | None, beside: Sequence[str] = ()) -> None:
    """Refuse before the work what cannot be written after it, and to write over what is read.

    ``beside``: kinds of tables that are written too (``A.departures.csv``).
    """
    from lsda_fast.datasets import check_writable, table_beside

    try:
        check_writable(path)
    except InputError as error:
        raise InputError(f"--output {error}") from error
    names = (str(given) for given in inputs if given is not None)
    read = {Path(name).resolve() for given in names for name in (given, *glob(given, recursive=True))}
    for written in (path, *(table_beside(path, kind) for kind in beside)):
        if written.resolve() in read:
            also = "" if written == path else f": {written} is written beside it, and"
            raise InputError(f"--output {path}{also} is an input; accepted is another name")
        if written != path and written.is_dir():
            raise InputError(f"--output {path}: {written}, which is written beside it, is a folder")


def check_plots(folder: Path) -> None:
    """Refuse a page that cannot be drawn or written."""
    if find_spec("matplotlib") is None:
        raise InputError("maps need matplotlib: pip install 'lsda_fast[plots]'")
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{folder} cannot be written; accepted is a folder, or a new name in one")
    from lsda_fast.report import check_page

    check_page(folder)
