"""A forecast model by its name: a user's function that makes it, for configurations and the command line."""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

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
    except Exception as error:  # whatever a user's file does when it is read
        raise InputError(f"forecast model {name!r} is not to be had: {type(error).__name__}: {error}") from error
    if not callable(make) or not _takes_one(make) or not callable(model := make(package)):
        raise InputError(f"{name!r} makes no forecast model; accepted is a function of the package that returns one")
    return model


def _takes_one(make: Callable[..., Any]) -> bool:
    try:
        signature(make).bind(None)
    except TypeError:
        return False
    except ValueError:  # one that does not say
        pass
    return True
