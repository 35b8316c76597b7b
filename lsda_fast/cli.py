"""The command line: ``lsda``. It only builds what Python builds.

Exit codes: 0 done, 1 an error of the program, 2 bad input, 3 no observation could be used, 4 non-finite members.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lsda_fast.errors import InputError, NonFiniteError

__all__ = ["app", "main"]

app = typer.Typer(
    name="lsda",
    help="Fast latent score-based data assimilation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stdout, stderr = Console(), Console(stderr=True)
# typer carries a click of its own, under no public name
UsageError: Any = typer.BadParameter.mro()[1]

PackagePath = Annotated[Path, typer.Argument(help="Folder of a package.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


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


@app.command()
def train(
    data: Annotated[list[str], typer.Argument(help="States: netCDF, Zarr or GRIB; several files or a pattern.")],
    output: Annotated[Path, typer.Option(help="Folder of the package to write.")],
    config: Annotated[str, typer.Option(help="A preset (tiny, small, nature, paper) or a YAML file.")] = "small",
    train_period: Annotated[str | None, typer.Option("--train", help="Training period, FIRST/LAST.")] = None,
    validate_period: Annotated[str | None, typer.Option("--validate", help="Validation period, FIRST/LAST.")] = None,
    lead: Annotated[str | None, typer.Option(help="Lead of the forecast model, such as 24h.")] = None,
    variables: Annotated[str | None, typer.Option(help="Channels or variables, separated by commas.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    device: Device = "auto",
) -> None:
    """Train a package: autoencoder, forecast model, background statistics, denoiser."""
    from lsda_fast.datasets import open_states
    from lsda_fast.forecast import hours
    from lsda_fast.training.config import load_config
    from lsda_fast.training.pipeline import train as run

    settings = load_config(
        config,
        train=_period(train_period, "--train"),
        validate=_period(validate_period, "--validate"),
        lead_hours=None if lead is None else hours(lead),
        variables=None if variables is None else variables.split(","),
        seed=seed,
    )
    dataset = open_states(data if len(data) > 1 else data[0])
    with _progress() as update:
        package = run(dataset, settings, output, resume=resume, device=_device(device), progress=update)
    scores = package.provenance["scores"]
    _say(f"{output}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))


@app.command()
def forecast(
    package: PackagePath,
    initial: Annotated[str, typer.Option(help="States to start from.")],
    output: Annotated[Path, typer.Option(help="File to write, .nc or .zarr.")],
    time: Annotated[str | None, typer.Option(help="Initial time; needed where there are several.")] = None,
    lead: Annotated[str | None, typer.Option(help="Time span, a multiple of the package's lead.")] = None,
    device: Device = "auto",
) -> None:
    """Forecast with the package's learned model: the background of an analysis."""
    from lsda_fast.datasets import open_states, write_dataset
    from lsda_fast.forecast import forecast as run
    from lsda_fast.package import Package

    _check_output(output)
    state = run(Package.load(package).to(_device(device)), open_states(initial), lead=lead, time=time)
    write_dataset(state, output)
    _say(f"{output}: forecast valid at {state['time'].values.astype('datetime64[m]')}")


@app.command()
def assimilate(
    package: PackagePath,
    background: Annotated[str, typer.Option(help="Background state.")],
    observations: Annotated[Path, typer.Option(help="Observations: CSV or Parquet.")],
    output: Annotated[Path, typer.Option(help="Analysis to write, .nc or .zarr; departures beside it as CSV.")],
    time: Annotated[str | None, typer.Option(help="Analysis time; needed where the background has several.")] = None,
    window: Annotated[str, typer.Option(help="Observations count within this of the analysis time.")] = "3h",
    members: Annotated[int, typer.Option(min=1, help="Ensemble size.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed; a member's numbers depend on it and on its number alone.")
    ] = 0,
    guidance: Annotated[str, typer.Option(help="lo, mmps, dps, repaint or none.")] = "lo",
    inner: Annotated[str, typer.Option(help="Inner solver of lo: gauss_newton, adam or lbfgs.")] = "gauss_newton",
    prior_covariance: Annotated[
        str, typer.Option(help="C_t of lo: isotropic, diagonal, stationary or tweedie.")
    ] = "isotropic",
    solver: Annotated[str, typer.Option(help="auto, renoise, ancestral, ddim, dpmpp_2m or heun.")] = "auto",
    steps: Annotated[int | None, typer.Option(min=1, help="Noise levels; the guidance's own when not given.")] = None,
    start: Annotated[float, typer.Option(help="Time of the first level; below 1 starts from the background.")] = 1.0,
    correction: Annotated[bool, typer.Option(help="The learned prior, or its linear-Gaussian part alone.")] = True,
    report: Annotated[Path | None, typer.Option(help="Folder for maps and statistics.")] = None,
    device: Device = "auto",
) -> None:
    """Assimilate observations into a background."""
    from lsda_fast.assimilator import Assimilator
    from lsda_fast.datasets import open_states
    from lsda_fast.observations import Observations
    from lsda_fast.package import Package

    _check_output(output)
    if report is not None:
        _check_plots(report)
    model = Package.load(package).to(_device(device))
    assimilator = Assimilator(
        model,
        _guidance(guidance, inner, prior_covariance),
        solver=solver,
        steps=steps,
        start=start,
        correction=correction,
    )
    state = _one_time(open_states(background), time)
    table = Observations.read(observations)
    if "time" in state.coords and table.frame["time"].notna().any():
        table = table.window(state["time"].values, window, window)
    with _progress() as update:
        result = assimilator(
            state,
            table,
            members=members,
            seed=seed,
            on_step=lambda s: update("assimilate", s.level.index + 1, s.levels, {"members": f"{s.members[0]}.."}),
        )
    paths = result.save(output)
    used = result.departures[result.departures["used"]]
    _say(
        f"{paths[0]}: {members} members, {len(used)} of {len(result.departures)} observations, {result.seconds:.1f} s; "
        f"departures in {paths[1]}"
    )
    if report is not None:
        _say(f"{result.report(report)}: report")


@app.command()
def verify(
    analysis: Annotated[str, typer.Argument(help="Analysis or forecast.")],
    truth: Annotated[str, typer.Argument(help="What to compare it with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Scores as JSON.")] = False,
) -> None:
    """Score a state or an ensemble: WRMSE, bias, CRPS, spread over skill."""
    from lsda_fast.datasets import open_states
    from lsda_fast.verification import verify as run

    table = run(open_states(analysis), open_states(truth))
    if as_json:
        clean = table.astype(object).where(table.notna(), None)
        sys.stdout.write(json.dumps(clean.to_dict(orient="index"), indent=1, allow_nan=False) + "\n")
    else:
        print_table(table, f"{analysis} against {truth}")


@app.command()
def inspect(package: PackagePath) -> None:
    """Show what is in a package."""
    from lsda_fast.package import Package

    model = Package.load(package)
    grid = model.layout.grid
    rows = {
        "state": f"{len(model.layout.channels)} channels on {grid.shape[0]} x {grid.shape[1]} points, "
        + ("global" if grid.periodic else "regional"),
        "channels": " ".join(model.layout.names),
        "latent": " x ".join(map(str, model.latent_shape)),
        "schedule": repr(model.schedule),
        "prediction": model.prediction + (", whitened by the background error" if model.whitened else ""),
        "forecast lead": f"{model.lead_hours:g} h",
    }
    for name, module in model.modules.items():
        count = sum(p.numel() for p in module.parameters())
        rows[name] = f"{model.architectures[name].name}, {count / 1e6:.2f} M parameters"
    for key in ("train", "validation", "scores"):
        if key in model.provenance:
            rows[key] = str(model.provenance[key])
    table = Table(show_header=False, box=None)
    for key, value in rows.items():
        table.add_row(escape(key), escape(value))
    stdout.print(table)


@app.command()
def doctor() -> None:
    """Show what is installed, and which backend is taken on this machine."""
    from lsda_fast.doctor import report

    table = Table("item", "value", "note")
    for row in report():
        table.add_row(*(escape(str(cell)) for cell in row))
    stdout.print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for maps and the page.")] = Path("demo-output"),
    members: Annotated[int, typer.Option(min=2, help="Ensemble size.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of truth, observations and members.")] = 0,
) -> None:
    """The whole story on the built-in model: truth, background, observations, analyses, scores, maps."""
    from lsda_fast.demo import run

    _check_plots(output)
    with _progress() as update:
        result = run(output, members=members, seed=seed, progress=update)
    for title, table in result.tables.items():
        print_table(table.T, title)
    _say(f"{result.page}: maps and scores")


def print_table(table: Any, title: str) -> None:
    """A data frame as a table on the terminal."""
    shown = Table(title=escape(title), title_justify="left")
    for column in ["", *map(str, table.columns)]:
        shown.add_column(escape(column), justify="right" if column else "left")
    for key, row in table.iterrows():
        cells = ("" if v != v else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        shown.add_row(*(escape(cell) for cell in (str(key), *cells)))
    stdout.print(shown)


def _guidance(name: str, inner: str, prior_covariance: str) -> Any:
    from lsda_fast import guidance as g

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


def _say(text: str) -> None:
    """A line of the result; a path is printed as it is, however long and with whatever brackets."""
    stdout.print(text, markup=False, highlight=False, soft_wrap=True)


def _check_output(path: Path) -> None:
    """Refuse before the work what cannot be written after it."""
    if path.suffix not in (".nc", ".zarr"):
        raise InputError(f"--output {path}; accepted are names that end in .nc or .zarr")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: its folder does not exist")
    if not os.access(path.parent, os.W_OK) or (path.suffix == ".nc" and path.is_dir()):
        raise InputError(f"--output {path} cannot be written; accepted is a file in a folder that is open to writing")


def _check_plots(folder: Path) -> None:
    """Refuse a page that cannot be drawn or written."""
    if find_spec("matplotlib") is None:
        raise InputError("maps need matplotlib: pip install 'lsda_fast[plots]'")
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{folder} cannot be written; accepted is a folder, or a new name in one")


def _one_time(dataset: Any, time: str | None) -> Any:
    from lsda_fast.forecast import select_time

    return select_time(dataset, time)


def _period(text: str | None, option: str) -> tuple[str, str] | None:
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{option} {text!r}; accepted is FIRST/LAST, such as 2000-01-01/2006-12-31")
    return parts[0], parts[1]


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind):
        raise InputError(f"--device {name!r} is unknown; accepted: cpu, cuda, cuda:1, auto")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} sees no CUDA device here")
    return name


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, dict[str, Any]], None]]:
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
