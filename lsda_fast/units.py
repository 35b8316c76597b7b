"""Units and missing values of state data: what a field's numbers mean, and which of them are none.

Units are read with pint and the CF registry of cf_xarray, loaded at the first that needs converting.
"""

from functools import lru_cache
from tokenize import TokenError
from typing import Any

import numpy as np

from lsda_fast.errors import InputError

__all__ = ["SPELLING", "STANDARD_GRAVITY", "cf_units", "convert_units", "missing_mask"]

STANDARD_GRAVITY = 9.80665  # m s-2, WMO

# The registry reads "mb" as millibarn, an area, "deg C" as an angle times a temperature, and no "gpm" or "degrees_C".
SPELLING = {
    "mb": "mbar",
    "gpdam": "dam",
    "gpm": "m",
    **dict.fromkeys(("deg C", "deg_C", "degree_C", "degrees_C", "Celsius"), "degC"),
    **dict.fromkeys(("deg K", "deg_K", "Kelvin", "kelvin"), "K"),
    "deg F": "degF",
}
_DIMENSIONLESS = {"(0 - 1)", "0 - 1", "~", "Numeric"}  # how ECMWF files spell the CF unit "1"

# What pint raises for text that is no unit; its own errors are kinds of these.
_NOT_UNITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
)


def cf_units(units: str) -> str:
    """The string without blanks around it, and "1" for what ECMWF files write instead."""
    units = units.strip()
    return "1" if units in _DIMENSIONLESS else units


@lru_cache(maxsize=256)
def _parse_units(units: str) -> tuple[Any, Any]:
    from cf_xarray.units import units as registry

    unit = registry.parse_units("1" if units in _DIMENSIONLESS else SPELLING.get(units, units))
    parts = {part for part, _ in registry.Quantity(1.0, unit).unit_items()}
    # pint reads "deg C" as degrees of arc times degrees of temperature, and converts that to K.
    if "degree" in parts and any(part.startswith("delta_") for part in parts):
        raise ValueError("degrees of arc times degrees of temperature")
    return registry, unit


def convert_units(values: np.ndarray, came: str, wanted: str, name: str) -> np.ndarray:
    """Values in units ``wanted``; ``values`` themselves where the units are equal or either is empty.

    A length that is wanted as a geopotential is a geopotential height, times standard gravity.

    Raises
    ------
    InputError
        For units that are unknown or of another dimension; ``name`` goes into the message.
    """
    if not came or not wanted or came == wanted:
        return values
    try:
        (registry, source), (_, target) = _parse_units(came), _parse_units(wanted)
        if source == target:
            return values
        quantity = registry.Quantity(values.astype(np.float64), source)
        if quantity.check("[length]") and registry.Quantity(1.0, target).check("[length]**2 / [time]**2"):
            quantity = quantity * registry.Quantity(STANDARD_GRAVITY, "m s-2")
        return np.asarray(quantity.to(target).magnitude)
    except _NOT_UNITS as error:
        raise InputError(
            f"{name} has units '{came}'; accepted are '{wanted}' and CF units that convert to it."
        ) from error


def missing_mask(values: np.ndarray) -> np.ndarray:
    """Where values are missing, shape of ``values``: not finite, 1e8 or more in size, or exactly 9999, -9999.

    9999 is a fill value only where it is further from the range of the other values than that range is wide.
    """
    bad = ~np.isfinite(values)
    bad |= np.abs(values) >= 1e8
    code = (np.abs(values) == 9999) & ~bad
    if code.any():
        rest = values[~bad & ~code]
        if rest.size:
            low, high = float(rest.min()), float(rest.max())
            code &= (values < 2 * low - high) | (values > 2 * high - low)
        bad |= code
    return bad
