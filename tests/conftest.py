"""Helper modules as fixtures (tests are imported without a path of their own), optional peers, slow tests."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tests_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """``linear_gaussian.py``: problems with a closed-form posterior."""
    return _load("linear_gaussian")


@pytest.fixture(scope="session")
def problem(toy: ModuleType) -> Any:
    """One of them, for a guided step: 50 correlated latents, 20 observations."""
    return toy.build("correlated", n=50, P=20)


@pytest.fixture(scope="session")
def tolerances() -> ModuleType:
    """``tolerances.py``: what sampling error allows."""
    return _load("tolerances")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """``tiny_package.py``: an untrained package with all parts."""
    return _load("tiny_package")


@pytest.fixture(scope="session")
def linear() -> ModuleType:
    """``linear_package.py``: a package whose analyses are known."""
    return _load("linear_package")


@pytest.fixture(scope="session")
def daily() -> ModuleType:
    """``daily_states.py``: archives to train on."""
    return _load("daily_states")


@pytest.fixture(scope="session")
def interrupted() -> Any:
    """``interruption.py``: progress that stops a run at a step."""
    return _load("interruption").Interruption


@pytest.fixture(scope="session")
def program() -> ModuleType:
    """``cli_world.py``: the command line in this process."""
    return _load("cli_world")


@pytest.fixture(scope="session")
def world(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained package and the files around it, for the command line."""
    return program.made(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def checks() -> ModuleType:
    """``kernel_checks.py``: what every native operation is held to."""
    return _load("kernel_checks")


@pytest.fixture(scope="session")
def fitted() -> Any:
    """A model of trajectories fitted to travelling waves, and these."""
    return _load("travelling_waves").fitted_waves()


@pytest.fixture(scope="session")
def azula() -> SimpleNamespace:
    """The peer's modules; what needs them is skipped, and says so, where it cannot be imported."""
    names = (
        "denoise",
        "noise",
        "sample",
        "linalg.covariance",
        "guidance.dps",
        "guidance.mmps",
        "guidance.repaint",
    )
    modules = {name.split(".")[-1]: pytest.importorskip(f"azula.{name}") for name in names}
    return SimpleNamespace(**modules)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow`` runs what takes minutes."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked slow are skipped, visibly, unless asked for by ``--slow`` or ``-m slow``."""
    if config.getoption("--slow") or "slow" in config.getoption("-m"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
