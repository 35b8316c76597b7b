"""The command ``assimilate``: an analysis of one state, or of a window of states.

Imports that take long are inside, so that ``lsda --help`` is quick.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsda_fast.cli.choice import choice_of, period_about, within
from lsda_fast.cli.options import (
    Device,
    PackagePath,
    check_output,
    check_plots,
    guidance_of,
    period_of,
    pick_device,
    robust_of,
)
from lsda_fast.cli.terminal import progress, say
from lsda_fast.errors import InputError

if TYPE_CHECKING:
    from pandas import Timestamp

    from lsda_fast.analysis import Analysis
    from lsda_fast.observations import Observations
    from lsda_fast.package import Package

__all__ = ["assimilate"]


def assimilate(
    package: PackagePath,
    output: Annotated[Path, typer.Option(help="Analysis to write, .nc or .zarr; departures beside it as CSV.")],
    background: Annotated[
        str | None, typer.Option(help="Background state; of a window, if any, the model run to calibrate.")
    ] = None,
    observations: Annotated[Path | None, typer.Option(help="Observations: CSV or Parquet.")] = None,
    fields: Annotated[str | None, typer.Option(help="Gridded fields to observe, NaN where there is nothing.")] = None,
    time: Annotated[str | None, typer.Option(help="Analysis time; needed where the background has several.")] = None,
    window: Annotated[
        str, typer.Option(help="Observations count within this of the analysis time; or FIRST/LAST: all its states.")
    ] = "3h",
    members: Annotated[int, typer.Option(min=1, help="Ensemble size.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all noise.")] = 0,
    recenter: Annotated[
        bool,
        typer.Option(help="Members about the average of their conditional means; else each depends on itself alone."),
    ] = True,
    background_check: Annotated[
        float, typer.Option(min=0.0, help="Largest O-B, in climatological standard deviations; 0 for any.")
    ] = 20.0,
    guidance: Annotated[str, typer.Option(help="lo, mmps, dps, repaint or none.")] = "lo",
    inner: Annotated[str, typer.Option(help="Inner solver of lo: gauss_newton, adam or lbfgs.")] = "gauss_newton",
    prior_covariance: Annotated[
        str | None,
        typer.Option(
            help="C_t of lo: isotropic (of one state the default), diagonal, stationary (of a window) or tweedie."
        ),
    ] = None,
    solver: Annotated[str, typer.Option(help="auto, renoise, ancestral, ddim, dpmpp_2m or heun.")] = "auto",
    steps: Annotated[int | None, typer.Option(min=1, help="Noise levels; the guidance's own when not given.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="lo_sda, slams or slams_published: for guidance, solver and steps.")
    ] = None,
    start: Annotated[float, typer.Option(help="Time of the first level; below 1 starts from the background.")] = 1.0,
    robust: Annotated[
        str, typer.Option(help="Cost of a departure: none, huber:THRESHOLD or varqc:GROSS_ERROR,WIDTH.")
    ] = "none",
    correction: Annotated[bool, typer.Option(help="The learned prior, or its linear-Gaussian part alone.")] = True,
    best_of: Annotated[int | None, typer.Option(help="Candidates to draw; the best --members are kept.")] = None,
    rewards: Annotated[str | None, typer.Option(help="What judges them, such as physics,observations.")] = None,
    reference: Annotated[str | None, typer.Option(help="States whose balance is aimed at.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Observations for --rewards observations.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for maps and statistics.")] = None,
    backend: Annotated[str, typer.Option(help="auto, reference or fused: the same analysis to rounding.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the networks: float32, or bfloat16 (fused only).")] = "float32",
    device: Device = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Say what it will take, and stop.")] = False,
) -> None:
    """Assimilate observations into a background, or into a window of states (--window FIRST/LAST)."""
    from lsda_fast.analysis_report import by_reason
    from lsda_fast.assimilator import Assimilator
    from lsda_fast.package import Package
    from lsda_fast.window_assimilator import WindowAssimilator, window_times

    tables = ("departures", *(() if best_of is None and rewards is None else ("rewards",)))
    check_output(output, background, observations, fields, reference, held_out, beside=tables)
    if report is not None:
        check_plots(report)
    if preset is not None and (guidance, inner, prior_covariance, solver) != ("lo", "gauss_newton", None, "auto"):
        raise InputError(
            f"--preset {preset} came with --guidance, --inner, --prior-covariance or --solver, which it stands for; "
            "accepted beside it is --steps"
        )
    of_window = "/" in window
    kind: Any = WindowAssimilator if of_window else Assimilator
    model = Package.load(package).to(pick_device(device))
    usual = kind.prior_covariance(model)
    chosen = lambda: guidance_of(guidance, inner, prior_covariance, usual)  # noqa: E731
    settings = _settings(preset, steps, guidance=chosen, solver=solver)
    settings |= {"start": start, "correction": correction, "robust": robust_of(robust)}
    choice = (best_of, rewards, reference, held_out)
    check = background_check or None
    assimilator = kind(model, **settings, backend=backend, precision=precision, background_check=check)
    candidates, choose = members, None
    if of_window:
        if any(option is not None for option in (time, *choice)):
            raise InputError(f"--window {window} takes no --time and none of the options of the best of N")
        ends = period_of(window, "--window")
        assert ends is not None
        states = None if model.window is None else window_times(ends, model.window.hours)
        table = _table(observations, fields, model, None if states is None else (states[0], states[-1]))
        given = {"observations": table, "window": ends, "background": _opened(background)}
    else:
        if background is None:
            raise InputError("--background did not come; accepted without one is --window FIRST/LAST")
        state = _state(background, time)
        candidates, choose = choice_of(model, state, members, *choice, window)
        table = _table(observations, fields, model, period_about(state, window))
        given = {"observations": within(table, state, window), "background": state}
    if plan:
        say(str(assimilator.plan(members=candidates, **given)))
        return
    result = _run(assimilator, given, candidates, seed, recenter)
    result = result if choose is None else choose(result)
    paths = result.save(output)
    used = result.departures[result.departures["used"]]
    what = "compared alone" if guidance == "none" else f"{result.downweighted} with less than half their weight"
    say(
        f"{paths[0]}: {members} members, {len(used)} of {len(result.departures)} observations "
        f"({what}), {result.seconds:.1f} s, "
        f"backend {assimilator.backend.name} ({assimilator.backend.reason}); "
        f"departures in {paths[1]}"
    )
    unused = by_reason(result.departures.loc[~result.departures["used"], "reason"], most=3)
    if len(unused):
        say("not used: " + "; ".join(f"{count} ({reason})" for reason, count in unused["observations"].items()))
    if result.candidates is not None:
        say(f"{paths[2]}: rewards of {candidates} candidates, the best {members} kept")
    if report is not None:
        say(f"{result.report(report)}: report")


def _settings(preset: str | None, steps: int | None, *, guidance: Callable[[], Any], solver: str) -> dict[str, Any]:
    """How is sampled: by a preset, or as the other options say."""
    from lsda_fast.presets import sampler_preset

    if preset is None:
        return {"guidance": guidance(), "solver": solver, "steps": steps}
    return sampler_preset(preset) | ({} if steps is None else {"steps": steps})


def _table(
    observations: Path | None, fields: str | None, model: "Package", period: "tuple[Timestamp, Timestamp] | None"
) -> "Observations":
    """Of the table all, of the fields the period, with the times that they had in training."""
    from lsda_fast.observations import Observations
    from lsda_fast.observations.fields import field_observations

    tables = [] if observations is None else [Observations.read(observations)]
    if fields is not None:
        shifts = {name: m.shift_hours for m in model.modalities for name in m.layout.names}
        tables.append(field_observations(_opened(fields), period=period, shift_hours=shifts))
    if not tables:
        raise InputError("neither --observations nor --fields came; accepted is one of them, or both")
    return tables[0] if len(tables) == 1 else Observations.joined(*tables)


def _opened(path: str | None) -> Any:
    from lsda_fast.datasets import open_states

    return None if path is None else open_states(path)


def _state(path: str, time: str | None) -> Any:
    from lsda_fast.forecast import one_state

    return one_state(_opened(path), time)


def _run(assimilator: Any, given: dict[str, Any], members: int, seed: int, recenter: bool) -> "Analysis":
    """The analysis, with progress on a CPU, where a run of few blocks has no use for recordings, and without graphs."""
    with progress() as update:
        look = lambda s: update("assimilate", s.level.index + 1, s.levels, {"members": f"{s.members[0]}.."})  # noqa: E731
        captured = assimilator.engine.graphs is not None and assimilator.package.device.type != "cpu"
        on_step = None if captured else look
        return assimilator(**given, members=members, seed=seed, recenter=recenter, on_step=on_step)
