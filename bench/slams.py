"""SLAMS' ablation tables on a nature run: coarsening, gaps in time and noise, with 0, 1 and 2 extra modalities.

Temperature profiles of windows of states from degraded fields (``bench.cases.slams``): pixel SDA, the published latent
setting, and ours. Scored are the state's channels in units of their climatological spread: the paper's metric
(Wasserstein distance of the values, mean over levels), RMSE of the ensemble mean and of the members, which are draws
and compared as such whatever their number, CRPS, and the seconds that the members of a window take together.
Packages are given by path: one for any number of modalities, or several, of which each serves its own number of them.

Scores of a case are kept as it is done, so that an interrupted run goes on. One JSON line per degradation, way and
number of modalities, over all windows; the tables last.

    python -m bench.slams runs/nature --pixel runs/pixel --published runs/slams0 runs/slams1 runs/slams2 \\
        --ours runs/ours --output bench/results/slams.jsonl
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.cases.kept import digest_of, kept
from bench.cases.slams import DEGRADATIONS, WAYS, Extras, Truth, Way, analysed, scores, starts, truth_of
from lsda_fast.datasets import open_states
from lsda_fast.degradations import Degradation
from lsda_fast.errors import InputError
from lsda_fast.package import Package
from lsda_fast.package.files import package_hash

PERIOD = ("2001-12-01", "2002-03-31")
SCORES = ("wasserstein", "rmse", "member_rmse", "crps")

Column = tuple[str, int]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    arguments = parsed(argv)
    columns = columns_of(arguments)
    cases = list(run_cases(columns, arguments))
    rows = [
        summary(name, column, cases) | told(way) | {"period": list(arguments.period)}
        for name in arguments.cases
        for column, (way, *_) in columns.items()
    ]
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for score in (*SCORES, "seconds"):
        print(f"\n{score}\n{table(rows, score, arguments.cases).to_string(float_format=lambda v: f'{v:.3f}')}")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nature", type=Path, help="folder of the nature run")
    for way in WAYS:
        parser.add_argument(f"--{way}", nargs="+", type=Path, default=[], metavar="PACKAGE")
    parser.add_argument("--steps", nargs="+", default=[], metavar="[WAY=]STEPS", help="if not the way's own")
    parser.add_argument("--correct", nargs="+", default=[], metavar="[WAY=]ROUNDS", help="Langevin, if not its own")
    parser.add_argument("--start", nargs="+", default=[], metavar="[WAY=]TIME", help="of the first level, if not 1")
    parser.add_argument("--low", nargs="+", default=[], choices=list(WAYS), metavar="WAY", help="networks in bfloat16")
    parser.add_argument(
        "--limit",
        nargs="+",
        default=[],
        choices=("pixel", "published"),
        metavar="WAY",
        help="bound the gradient's steps",
    )
    parser.add_argument("--cases", nargs="+", default=list(DEGRADATIONS), choices=list(DEGRADATIONS), metavar="CASE")
    parser.add_argument("--modalities", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--states", type=int, default=29)
    parser.add_argument("--members", nargs="+", default=[], metavar="[WAY=]MEMBERS", help="4 if not given")
    parser.add_argument("--period", nargs=2, default=PERIOD, metavar=("FIRST", "LAST"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/slams.cases"), help="folder of finished cases")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    for option, (read, accepted) in NUMBERS.items():
        setattr(arguments, option, _by_way(getattr(arguments, option), f"--{option}", read, accepted))
    arguments.members = dict.fromkeys(WAYS, 4) | arguments.members
    return arguments


def columns_of(arguments: argparse.Namespace) -> dict[Column, tuple[Way, Package, str]]:
    """By way and number of modalities: the way, its package, and the package's hash."""
    columns: dict[Column, tuple[Way, Package, str]] = {}
    for name, way in WAYS.items():
        way = replace(way, sampler=_settings(way, name, arguments), low=name in arguments.low)
        packages = {}
        for path in getattr(arguments, name):
            package = Package.load(path).to(arguments.device)
            most = Extras.of(package).most(way)
            if most in packages:
                raise InputError(f"--{name} {path} takes {most} modalities, as another does; accepted is one of each")
            packages[most] = package, package_hash(path)[:12]
        for count in arguments.modalities:
            # The package with just as many; else the one with the most, of which some are left out.
            chosen = count if count in packages else max(packages, default=-1)
            if chosen >= count:
                columns[name, count] = (way, *packages[chosen])
    if not columns:
        raise InputError(f"no package came that serves; accepted: {', '.join(f'--{way} PACKAGE' for way in WAYS)}")
    return columns


def run_cases(
    columns: dict[Column, tuple[Way, Package, str]], arguments: argparse.Namespace
) -> Iterator[tuple[str, Column, dict[str, Any]]]:
    """Degradation, way and modalities, scores; from disk where done."""
    data = open_states(str(arguments.nature / "states_*.nc"))
    times = pd.DatetimeIndex(data["time"].values)
    first = starts(times, arguments.period, arguments.states, arguments.windows)
    for number, start in enumerate(first):
        for column, (way, package, digest) in columns.items():
            truth, M = cache(partial(truth_of, package, data, start, arguments.states)), arguments.members[column[0]]
            for name in arguments.cases:
                degradation = DEGRADATIONS[name]
                where = () if arguments.device == "cpu" else (arguments.device,)  # seconds are kept too
                key = digest_of(degradation, way, M, start, times[0], *where)
                file = f"{times[start]:%Y%m%dT%H}_{arguments.states}_{column[1]}_{digest}_{key}.json"
                case = partial(measured, package, way, column[1], truth, degradation, members=M, seed=start)
                yield name, column, kept(arguments.work / file, case)
        print(f"window {number + 1} of {len(first)}", flush=True)


def measured(
    package: Package, way: Way, count: int, truth: Callable[[], Truth], degradation: Degradation, **how: int
) -> dict[str, Any]:
    """Scores and seconds of one window."""
    states, seconds = analysed(package, way, count, truth(), degradation, **how)
    opposite = way.sampler["guidance"].antithetic and how["members"] > 1
    kind, alone = ("opposite pairs", how["members"] % 2) if opposite else ("independent", 0)
    return scores(package, states, truth(), kind=kind, alone=alone) | {"seconds": seconds, "members": how["members"]}


def summary(name: str, column: Column, cases: Sequence[tuple[str, Column, dict[str, Any]]]) -> dict[str, Any]:
    """One row: means over the windows, root mean squares of the RMSE."""
    mine = [found for case, way, found in cases if (case, way) == (name, column)]
    row: dict[str, Any] = {"bench": "slams", "case": name, **asdict(DEGRADATIONS[name])}
    row |= {"way": column[0], "modalities": column[1], "windows": len(mine), "members": mine[0]["members"]}
    for score in SCORES:
        levels = pd.DataFrame([found[score] for found in mine])
        root = score.endswith("rmse")
        by_level = np.sqrt((levels**2).mean()) if root else levels.mean()
        row[score] = float(np.sqrt((by_level**2).mean()) if root else by_level.mean())
        row[f"{score}_by_level"] = {level: round(float(value), 5) for level, value in by_level.items()}
    leads = {score: np.array([found[score] for found in mine]) for score in ("rmse_by_lead", "crps_by_lead")}
    row["rmse_by_lead"] = np.sqrt((leads["rmse_by_lead"] ** 2).mean(0)).round(5).tolist()
    row["crps_by_lead"] = leads["crps_by_lead"].mean(0).round(5).tolist()
    row["seconds"] = float(np.mean([found["seconds"] for found in mine]))
    return row


def told(way: Way) -> dict[str, Any]:
    """How the way sampled."""
    corrector = way.sampler.get("corrector")
    return {
        "steps": way.sampler["steps"],
        "start": way.sampler.get("start", 1.0),
        "corrections": corrector.rounds if corrector else 0,
        "limit": getattr(way.sampler["guidance"], "limit", False),
        "precision": "bfloat16" if way.low else "float32",
    }


def table(rows: Sequence[dict[str, Any]], score: str, order: Sequence[str]) -> pd.DataFrame:
    """Degradations by ways and numbers of modalities."""
    frame = pd.DataFrame(rows)
    columns = list(dict.fromkeys(zip(frame["way"], frame["modalities"])))
    wide = frame.pivot(index="case", columns=["way", "modalities"], values=score)
    return wide.reindex(index=list(order), columns=pd.MultiIndex.from_tuples(columns, names=["way", "modalities"]))


def _settings(way: Way, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The way's sampler, with the levels, the first of them, the corrections and the limit that were asked for."""
    settings = dict(way.sampler)
    for option in ("steps", "start"):
        if name in getattr(arguments, option):
            settings[option] = getattr(arguments, option)[name]
    if name in arguments.correct and settings.get("corrector"):
        rounds = arguments.correct[name]
        settings["corrector"] = replace(settings["corrector"], rounds=rounds) if rounds else None
    if name in arguments.limit:
        settings["guidance"] = replace(settings["guidance"], limit=True)
    return settings


def _by_way(texts: Sequence[str], option: str, read: Callable[[str], float | None], accepted: str) -> dict[str, Any]:
    """By way, from NUMBER for all of them or WAY=NUMBER."""
    numbers: dict[str, Any] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        value = read(number)
        if (name and name not in WAYS) or value is None:
            raise InputError(f"{option} {text} came; accepted: {accepted}, by itself or after one of "
                             f"{', '.join(f'{way}=' for way in WAYS)}")  # fmt: skip
        numbers |= dict.fromkeys([name] if name else WAYS, value)
    return numbers


def _whole(least: int) -> Callable[[str], int | None]:
    return lambda text: int(text) if text.isdecimal() and int(text) >= least else None


def _time(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


NUMBERS: dict[str, tuple[Callable[[str], float | None], str]] = {
    "steps": (_whole(1), "a number of at least 1"),
    "members": (_whole(1), "a number of at least 1"),
    "correct": (_whole(0), "a number of at least 0"),
    "start": (_time, "a time above 0, at most 1"),
}


if __name__ == "__main__":
    main()
