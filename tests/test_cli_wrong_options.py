"""Options that are wrong: one sentence, an exit code, and nothing left behind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BAD: dict[str, tuple[Callable[[Any], Sequence[object]], int, str]] = {
    "guidance": (
        lambda a: a.analysis("--guidance", "hope"),
        2,
        "'hope' is unknown; accepted: lo, mmps, dps, repaint, none",
    ),
    "inner": (lambda a: a.analysis("--inner", "newton"), 2, "'newton' is unknown; accepted: gauss_newton, adam, lbfgs"),
    "solver": (lambda a: a.analysis("--solver", "rk9"), 2, "'rk9' is unknown; accepted: renoise, ancestral, ddim"),
    "covariance": (
        lambda a: a.analysis("--prior-covariance", "round"),
        2,
        "'round' is unknown; accepted: isotropic, diagonal",
    ),
    "inner of another guidance": (
        lambda a: a.analysis("--guidance", "dps", "--inner", "adam"),
        2,
        "--guidance dps came with --inner or --prior-covariance, which are of lo",
    ),
    "covariance of another guidance": (
        lambda a: a.analysis("--guidance", "none", "--prior-covariance", "tweedie"),
        2,
        "--guidance none came with --inner or --prior-covariance, which are of lo",
    ),
    "held out for nobody": (
        lambda a: a.analysis("--best-of", 2, "--rewards", "physics", "--held-out", a.world.observations),
        2,
        "--held-out is for --rewards observations; --rewards physics has no use for it",
    ),
    "tweedie with Adam": (
        lambda a: a.analysis("--inner", "adam", "--prior-covariance", "tweedie"),
        2,
        "prior_covariance='tweedie' came with Adam.*; accepted is GaussNewton",
    ),
    "stationary where whitened": (lambda a: a.analysis("--prior-covariance", "stationary"), 2, "stationary"),
    "members 0": (lambda a: a.analysis("--members", 0), 2, "'--members'.* 1"),
    "members a few": (lambda a: a.analysis("--members", "few"), 2, "'--members'.* valid int"),
    "steps 0": (lambda a: a.analysis("--steps", 0), 2, "'--steps'.* 1"),
    "seed below 0": (lambda a: a.analysis("--seed", -1), 2, "'--seed'.* 0"),
    "start 0": (lambda a: a.analysis("--start", 0), 2, "accepted is 0 <= stop < start <= 1"),
    "window": (lambda a: a.analysis("--window", "soon"), 2, "window 'soon' is not a time span; accepted are hours"),
    "window beyond all time": (lambda a: a.analysis("--window", "9999999"), 2, "a window from 9999999 before 2001"),
    "fewer candidates than members": (
        lambda a: a.analysis("--best-of", 2, "--members", 3),
        2,
        "2 candidates for 3 members came; accepted are two at least",
    ),
    "physics without winds": (
        lambda a: a.analysis("--best-of", 4),
        2,
        "the physics reward needs geopotential .* z500, t850, msl",
    ),
    "accuracy without a truth": (
        lambda a: a.analysis("--best-of", 4, "--rewards", "accuracy"),
        2,
        "the accuracy reward needs the reference analysis",
    ),
    "rewards without a name": (
        lambda a: a.analysis("--best-of", 4, "--rewards", ""),
        2,
        "accepted, each once, are accuracy",
    ),
    "held-out observations without rewards": (
        lambda a: a.analysis("--held-out", "nowhere.csv"),
        2,
        "are for --rewards; it did not come",
    ),
    "another option": (lambda a: a.analysis("--fast"), 2, "No such option: --fast"),
    "another command": (lambda a: ("dance",), 2, "No such command 'dance'"),
    "an option missing": (lambda a: ("forecast", a.world.package), 2, "Missing option '--initial'"),
    "device": (lambda a: a.analysis("--device", "abacus"), 2, "'abacus' is unknown; accepted: cpu, cuda"),
    "device number": (lambda a: a.analysis("--device", "cuda:one"), 2, "'cuda:one' is unknown"),
    "device not there": (lambda a: a.analysis("--device", "cuda"), 2, "sees no CUDA device here"),
    "lead": (
        lambda a: a.prediction("--time", "2001-07-10", "--lead", "36h"),
        2,
        "lead 36 h; accepted are multiples of .* 24 h",
    ),
    "lead that is none": (
        lambda a: a.prediction("--time", "2001-07-10", "--lead", "soon"),
        2,
        "lead 'soon' is not a time span",
    ),
    "period": (lambda a: a.training("--train", "2001"), 2, "--train '2001'; accepted is FIRST/LAST"),
    "period that is none": (lambda a: a.training("--train", "then/now"), 2, "not dates"),
    "period without states": (
        lambda a: a.training("--train", "1990-01-01/1990-02-01"),
        2,
        "training period holds no states",
    ),
    "configuration": (
        lambda a: a.training("--config", "huge"),
        2,
        "configuration 'huge': no such file; presets are tiny, small",
    ),
    "variables": (lambda a: a.training("--variables", "z500,q850"), 2, "has no q850; it has z500, t850, msl"),
    "an earlier run": (
        lambda a: ("train", a.world.states, "--output", a.world.package, "--config", "tiny"),
        2,
        "holds an earlier run; go on with --resume, or remove it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_gets_one_sentence(program: ModuleType, world: Any, tmp_path: Path, case: str) -> None:
    program.check(BAD[case], world, tmp_path)
