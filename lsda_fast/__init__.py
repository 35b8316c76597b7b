"""Fast latent score-based data assimilation.

``import lsda_fast as lsda`` is quick: every public name is loaded from its module when it is first used.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsda_fast.analysis import Analysis
    from lsda_fast.assimilator import Assimilator
    from lsda_fast.datasets import open_states
    from lsda_fast.diffusion import DDIM, Ancestral, DPMpp2M, Heun, Langevin, Renoise, Schedule
    from lsda_fast.errors import InputError, NonFiniteError
    from lsda_fast.grid import Grid, Normalization
    from lsda_fast.guidance import (
        DPS,
        LBFGS,
        MMPS,
        Adam,
        GaussNewton,
        LatentOptimization,
        Likelihood,
        ObsFree,
        Repaint,
    )
    from lsda_fast.kernels.robust import Huber, VariationalQC
    from lsda_fast.layout import StateLayout
    from lsda_fast.observations import ObservationOperator, Observations
    from lsda_fast.package import Package
    from lsda_fast.prior import Prior
    from lsda_fast.sampler import Sampler
    from lsda_fast.window_assimilator import WindowAssimilator

    __version__: str

__all__ = [
    "DDIM",
    "DPS",
    "LBFGS",
    "MMPS",
    "Adam",
    "Analysis",
    "Ancestral",
    "Assimilator",
    "DPMpp2M",
    "GaussNewton",
    "Grid",
    "Heun",
    "Huber",
    "InputError",
    "Langevin",
    "LatentOptimization",
    "Likelihood",
    "NonFiniteError",
    "Normalization",
    "ObsFree",
    "ObservationOperator",
    "Observations",
    "Package",
    "Prior",
    "Renoise",
    "Repaint",
    "Sampler",
    "Schedule",
    "StateLayout",
    "VariationalQC",
    "WindowAssimilator",
    "open_states",
]

_MODULES = {
    "analysis": ("Analysis",),
    "assimilator": ("Assimilator",),
    "datasets": ("open_states",),
    "diffusion": ("DDIM", "Ancestral", "DPMpp2M", "Heun", "Langevin", "Renoise", "Schedule"),
    "errors": ("InputError", "NonFiniteError"),
    "grid": ("Grid", "Normalization"),
    "guidance": (
        "DPS",
        "LBFGS",
        "MMPS",
        "Adam",
        "GaussNewton",
        "LatentOptimization",
        "Likelihood",
        "ObsFree",
        "Repaint",
    ),
    "kernels.robust": ("Huber", "VariationalQC"),
    "layout": ("StateLayout",),
    "observations": ("ObservationOperator", "Observations"),
    "package": ("Package",),
    "prior": ("Prior",),
    "sampler": ("Sampler",),
    "window_assimilator": ("WindowAssimilator",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value = _version()
        elif name in _MODULE_OF:
            value = getattr(import_module(f"lsda_fast.{_MODULE_OF[name]}"), name)
        else:
            raise AttributeError(f"module 'lsda_fast' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """The installed version; in a checkout that is not installed, pyproject.toml's."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lsda_fast")
    except PackageNotFoundError:
        import tomllib

        text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])


def _kernels_of_checkout() -> None:
    """Register ../kernels as ``lsda_fast.kernels``, where a source checkout keeps it.

    Not by the repository root on ``__path__``: that would make ``lsda_fast.setup`` and ``lsda_fast.tests``.
    """
    here = Path(__file__).resolve().parent
    source = here.parent / "kernels" / "__init__.py"
    if (here / "kernels").is_dir() or not source.is_file():
        return
    spec = spec_from_file_location(f"{__name__}.kernels", source)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = globals()["kernels"] = module
    spec.loader.exec_module(module)


_kernels_of_checkout()
