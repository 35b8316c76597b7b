"""Units to SI: value_SI = scale value + shift.

The strings that state data carry are known by heart; anything else is read with pint and the CF registry of
cf_xarray, loaded at the first such string.
"""

from dataclasses import dataclass
from functools import lru_cache

from lsda_fast.units import SPELLING

__all__ = ["Conversion", "to_si"]


@dataclass(frozen=True)
class Conversion:
    """value_SI = scale value + shift; a difference or a standard deviation takes ``scale`` alone.

    Parameters
    ----------
    scale, shift : float
    base : str
        The SI units reached ("K", "Pa", "m s-1", "1", ...); equal for all units of one dimension.
    """

    scale: float
    shift: float
    base: str


_KNOWN = {
    "K": "K",
    "kelvin": "K",
    "Pa": "Pa",
    "m": "m",
    **dict.fromkeys(("m s-1", "m/s", "m s**-1"), "m s-1"),
    **dict.fromkeys(("m2 s-2", "m2/s2", "m**2 s**-2", "J kg-1", "J/kg"), "m2 s-2"),
    **dict.fromkeys(("1", "kg kg-1", "kg/kg", "kg kg**-1", "(0 - 1)", "0 - 1", "~", "Numeric"), "1"),
}
_NAMED = {"kg m-1 s-2": "Pa"}


@lru_cache(maxsize=256)
def to_si(units: str) -> Conversion | None:
    """The conversion of ``units`` to SI base units, or None where the string is not understood.

    Parameters
    ----------
    units : str
        As CF, UDUNITS or pint write it: "degC", "hPa", "m s-1", "kg kg**-1", "inch", "%".
    """
    units = units.strip()
    if units in _KNOWN:
        return Conversion(1.0, 0.0, _KNOWN[units])
    if not 0 < len(units) <= 40:
        return None
    from cf_xarray.units import units as registry

    # A stranger's string can fail inside the registry in a dozen ways (syntax, tokens, unknown names,
    # logarithmic units): all of them mean one thing, units that are not understood.
    try:
        parsed = registry.parse_units(SPELLING.get(units, units))
        zero = registry.Quantity(0.0, parsed).to_base_units()
        # A long difference, because 1 degree taken off 273.15 loses three digits.
        far = registry.Quantity(1000.0, parsed).to_base_units()
        base = f"{zero.units:cf}" or "1"
    except Exception:
        return None
    return Conversion(float(far.magnitude - zero.magnitude) / 1000.0, float(zero.magnitude), _NAMED.get(base, base))
