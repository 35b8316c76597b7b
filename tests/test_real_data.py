"""Real data: analyses of ERA-Interim states and of radiosondes, by the benchmarks' own functions."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lsda_fast.datasets import open_states
from lsda_fast.package import Package
from lsda_fast.training import train
from lsda_fast.training.config import TrainingConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LSDA_SHARED", ROOT.parent / "shared"))
STATES = SHARED / "data" / "gridded" / "era_interim_western_europe_2000_2008.nc"
SOUNDINGS = SHARED / "data" / "observations" / "radiosondes_20081208_12z.csv.gz"

pytestmark = pytest.mark.skipif(
    not (STATES.exists() and SOUNDINGS.exists()), reason=f"shared data not here: {STATES.name}, {SOUNDINGS.name}"
)


def bench(name: str) -> ModuleType:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def quick() -> TrainingConfig:
    """The preset ``small`` without its network, and with two folds: components and regressions alone."""
    periods = {"train": ("2000-01-01", "2006-12-31"), "validate": ("2007-01-01", "2007-12-31")}
    config = load_config("small", **periods)
    optimization = config.denoiser.optimization.model_copy(update={"steps": 0})
    return config.model_copy(
        update={
            "forecaster": config.forecaster.model_copy(update={"folds": 2}),
            "denoiser": config.denoiser.model_copy(update={"optimization": optimization}),
        }
    )


@pytest.fixture(scope="session")
def era(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of western Europe; its working folder, with the fold models, stands beside it."""
    folder = tmp_path_factory.mktemp("era") / "package"
    train(open_states(STATES), quick(), folder)
    return folder


def test_analyses_of_a_year_not_seen_match_optimal_interpolation(era: Path) -> None:
    arguments = argparse.Namespace(
        states=STATES, package=era, period=("2008-01-01", "2008-12-31"), dates=8, fractions=(0.1,), members=16,
        methods=["LO-SDA"], steps=None, no_correction=True, seed=0,
    )  # fmt: skip
    rows = {row["method"]: row for row in bench("reanalysis").measure(arguments)}
    assert rows["LO-SDA"]["dates"] == 8
    assert rows["OI"]["rmse"] < 0.6 * rows["background"]["rmse"]
    # Without the correction LO-SDA is optimal interpolation in 64 components. It can be better than the one in all 429
    # numbers: truncation drops modes that the background predicts badly, and that the sample covariance knows badly.
    assert 0.90 < rows["LO-SDA"]["ratio_to_oi"] < 1.03
    assert rows["LO-SDA"]["crps"] < 1.1 * rows["OI"]["crps"]
    assert 0.7 < rows["LO-SDA"]["spread_skill"] < 1.4


def test_soundings_are_closer_to_the_analysis_where_they_were_withheld(era: Path) -> None:
    radiosondes = bench("radiosondes")
    package = Package.load(era)
    table = radiosondes.soundings(SOUNDINGS, package)
    assert len(table) == 18
    splits = radiosondes.withheld_departures(package, STATES, table, members=8, every=10)
    assert len(splits) == 13
    assert (splits["kept"] == 4).all()
    assert (splits["withheld"] == 10).all()
    before, after = np.sqrt((splits[["O-B", "O-A"]] ** 2).mean())
    assert after < before
