"""The commands: each opens its inputs, calls the Python function of the same name, and writes or prints the result.

Imports that take long are inside the commands, so that ``lsda --help`` is quick.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lsda_fast.cli.assimilate import assimilate
from lsda_fast.cli.options import Device, PackagePath, check_output, check_plots, period_of, pick_device
from lsda_fast.cli.terminal import print_rows, print_table, progress, say

__all__ = ["app"]

app = typer.Typer(
    name="lsda",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        import lsda_fast

        say(f"lsda_fast {lsda_fast.__version__}")
        raise typer.Exit


@app.callback()
def lsda(
    version: Annotated[
        bool, typer.Option("--version", help="The version, and nothing else.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fast latent score-based data assimilation."""


@app.command()
def train(
    data: Annotated[list[str], typer.Argument(help="States: netCDF, Zarr or GRIB; several files or a pattern.")],
    output: Annotated[Path, typer.Option(help="Folder of the package to write.")],
    config: Annotated[
        str, typer.Option(help="A YAML file, or a preset: tiny, small, nature, paper, slams, or slams_... (README).")
    ] = "small",
    train_period: Annotated[str | None, typer.Option("--train", help="Training period, FIRST/LAST.")] = None,
    validate_period: Annotated[str | None, typer.Option("--validate", help="Validation period, FIRST/LAST.")] = None,
    lead: Annotated[str | None, typer.Option(help="Lead of the forecast model, such as 24h.")] = None,
    variables: Annotated[str | None, typer.Option(help="Channels or variables, separated by commas.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    device: Device = "auto",
) -> None:
    """Train a package: autoencoder, then forecast model, background statistics and denoiser, or a prior of windows."""
    from lsda_fast.calendar import hours
    from lsda_fast.datasets import open_states
    from lsda_fast.training.config import load_config
    from lsda_fast.training.pipeline import train as run

    settings = load_config(
        config,
        train=period_of(train_period, "--train"),
        validate=period_of(validate_period, "--validate"),
        lead_hours=None if lead is None else hours(lead, "lead"),
        variables=None if variables is None else variables.split(","),
        seed=seed,
    )
    dataset = open_states(data if len(data) > 1 else data[0])
    with progress() as update:
        package = run(dataset, settings, output, resume=resume, device=pick_device(device), progress=update)
    scores = package.provenance["scores"]
    say(f"{output}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))


@app.command()
def align(
    package: PackagePath,
    data: Annotated[list[str], typer.Argument(help="Reference states: netCDF, Zarr or GRIB; several or a pattern.")],
    output: Annotated[Path, typer.Option(help="Folder of the aligned package to write.")],
    rewards: Annotated[str | None, typer.Option(help="Such as accuracy,forecast,physics.")] = None,
    config: Annotated[str, typer.Option(help="A preset (align_tiny, align_nature, align_paper) or a YAML file.")] = (
        "align_paper"
    ),
    period: Annotated[str | None, typer.Option(help="Alignment period, FIRST/LAST; never the test's.")] = None,
    lead: Annotated[str | None, typer.Option(help="Lead of the forecasts that are rewarded, such as 48h.")] = None,
    forecast_model: Annotated[
        str | None, typer.Option(help="MODULE:FUNCTION that makes the model of these; the package's own by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    candidates_from: Annotated[
        Path | None, typer.Option(help="Working folder (OUTPUT.work) of a run with other rewards: take its candidates.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Align a package's prior with rewards: candidates, preference pairs, fine-tuning."""
    from lsda_fast.alignment.config import load_config
    from lsda_fast.alignment.pipeline import align as run
    from lsda_fast.calendar import hours
    from lsda_fast.datasets import open_states

    settings = load_config(
        config,
        rewards=None if rewards is None else [name.strip() for name in rewards.split(",")],
        period=period_of(period, "--period"),
        lead_hours=None if lead is None else hours(lead, "lead"),
        forecast_model=forecast_model,
        seed=seed,
    )
    dataset = open_states(data if len(data) > 1 else data[0])
    with progress() as update:
        aligned = run(
            package,
            dataset,
            settings,
            output,
            resume=resume,
            candidates_from=candidates_from,
            device=pick_device(device),
            progress=update,
        )
    record = aligned.provenance["alignments"][-1]
    pairs, scores = record["pairs"], record["scores"]
    say(
        f"{output}: {pairs['train']} of {pairs['wanted']} pairs, {pairs['held_out']} held out, {pairs['dates']} dates, "
        + ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
    )


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

    check_output(output, initial)
    state = run(Package.load(package).to(pick_device(device)), open_states(initial), lead=lead, time=time)
    write_dataset(state, output)
    say(f"{output}: forecast valid at {state['time'].values.astype('datetime64[m]')}")


app.command()(assimilate)


@app.command()
def verify(
    analysis: Annotated[str, typer.Argument(help="Analysis or forecast.")],
    truth: Annotated[str, typer.Argument(help="What to compare it with.")],
    package: Annotated[
        Path | None, typer.Option(help="Package whose climate normalises the last row, not the truth's own spread.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Scores as JSON.")] = False,
) -> None:
    """Score a state or an ensemble: WRMSE, bias, CRPS, spread over skill."""
    from lsda_fast.datasets import open_states
    from lsda_fast.package import Package
    from lsda_fast.verification import verify as run

    model = None if package is None else Package.load(package)
    layout, climate = (None, None) if model is None else (model.layout, model.normalization)
    table = run(open_states(analysis), open_states(truth), layout=layout, normalization=climate)
    if as_json:
        clean = table.astype(object).where(table.notna(), None)
        sys.stdout.write(json.dumps(clean.to_dict(orient="index"), indent=1, allow_nan=False) + "\n")
    else:
        by = "the truth's own spread" if package is None else f"the climate of {package}"
        print_table(table, f"{analysis} against {truth}; normalized by {by}")


@app.command()
def inspect(package: PackagePath) -> None:
    """Show what is in a package, and where it comes from."""
    from lsda_fast.cli.describe import describe
    from lsda_fast.package import Package

    print_rows(describe(Package.load(package)).items())


@app.command()
def doctor() -> None:
    """Show what is installed, and which backend is taken on this machine."""
    from lsda_fast.doctor import report

    print_rows(report(), header=("item", "value", "note"))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for maps and the page.")] = Path("demo-output"),
    members: Annotated[int, typer.Option(min=2, help="Ensemble size.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of truth, observations and members.")] = 0,
) -> None:
    """The whole story on the built-in model: truth, background, observations, analyses, scores, maps."""
    from lsda_fast.demo import run

    check_plots(output)
    with progress() as update:
        result = run(output, members=members, seed=seed, progress=update)
    for title, table in result.tables.items():
        print_table(table.T, title)
    say(f"{result.page}: maps and scores")
