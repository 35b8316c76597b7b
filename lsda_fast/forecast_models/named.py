"""A forecast model by its name: a user's function that makes it, for configurations and the command line."""

import sys
from importlib import import_module
from pathlib import Path

from lsda_fast.errors import InputError
from lsda_fast.forecast_models.base import ForecastModel
from lsda_fast.package import Package

__all__ = ["forecast_model"]


def forecast_model(name: str, package: Package) -> ForecastModel:
    """What the function called ``name`` makes of the package.

    Parameters
    ----------
    name : str
        ``module:function``, as ``my_models:fengwu``; the current folder is searched too. The function takes the package
        and returns a `ForecastModel`.
    package : Package

    Raises
    ------
    InputError
        No such form, module or function, or something that cannot be called.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"forecast model {name!r} came; accepted is MODULE:FUNCTION")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"forecast model {name!r} is not to be had: {error}") from error
    model = make(package) if callable(make) else None
    if not callable(model):
        raise InputError(f"{name!r} makes no forecast model; accepted is a function of the package that returns one")
    return model
