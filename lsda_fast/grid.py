"""Grid, channels and normalization: what the axes and the numbers of a state (C, H, W) mean.

`StateLayout`, which brings grid and channels together, lives in `lsda_fast.layout` and can be had from here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from lsda_fast.errors import InputError

if TYPE_CHECKING:
    from lsda_fast.layout import StateLayout

__all__ = ["Channel", "Grid", "Normalization", "StateLayout"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)

_TOLERANCE = 1e-4  # degrees; 32-bit coordinates are good to 2e-5


@dataclass(frozen=True, eq=False)
class Grid:
    """A rectangular grid of latitudes and longitudes, global or regional.

    Parameters
    ----------
    latitude : array (H,)
        Degrees north, strictly descending; need not be evenly spaced (Gaussian grids).
    longitude : array (W,)
        Degrees east, strictly ascending over less than 360 degrees, in 0..360 or -180..180 as the data are.

    Raises
    ------
    InputError
        For coordinates in another order, outside the globe or not finite.
    """

    latitude: np.ndarray
    longitude: np.ndarray

    def __post_init__(self) -> None:
        for name in ("latitude", "longitude"):
            # "+ 0.0" copies and turns -0.0 into 0.0.
            values = np.asarray(getattr(self, name), dtype=np.float64) + 0.0
            if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
                raise InputError(f"{name} came with shape {values.shape}; accepted are finite values in one dimension.")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        latitude, longitude = self.latitude, self.longitude
        if np.abs(latitude).max() > 90 + _TOLERANCE or not np.all(np.diff(latitude) < -_TOLERANCE):
            raise InputError(f"latitude {_span(latitude)} came; accepted are distinct values, 90 down to -90 degrees.")
        if (
            not np.all(np.diff(longitude) > _TOLERANCE)
            or longitude[-1] - longitude[0] > 360 - _TOLERANCE
            or not -180 - _TOLERANCE <= longitude[0] < 360
        ):
            raise InputError(
                f"longitude {_span(longitude)} came; accepted are distinct meridians in ascending order "
                "in 0..360 or -180..180 degrees, 0 and 360 not both."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.latitude.size, self.longitude.size

    @property
    def periodic(self) -> bool:
        """Whether the evenly spaced longitudes close the circle, W x spacing = 360 degrees."""
        gaps = np.diff(self.longitude, append=self.longitude[0] + 360)
        return self.longitude.size > 1 and bool(np.ptp(gaps) < 0.01 * gaps.mean())

    @property
    def poles(self) -> tuple[bool, bool]:
        """Whether the first and the last row lie within one row spacing of the north and the south pole."""
        gaps, rows = -np.diff(self.latitude, prepend=90.0, append=-90.0), self.latitude.size > 1
        return rows and bool(gaps[0] <= gaps[1] + _TOLERANCE), rows and bool(gaps[-1] <= gaps[-2] + _TOLERANCE)

    @property
    def area_weights(self) -> np.ndarray:
        """cos(latitude) with mean 1, shape (H,), float64."""
        weights = np.clip(np.cos(np.deg2rad(self.latitude)), 0, None)
        mean = weights.mean()
        return weights / mean if mean > 0 else np.ones_like(weights)

    def __eq__(self, other: object) -> bool:
        """The same points within 1e-4 degrees."""
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and all(
            np.allclose(mine, theirs, rtol=0, atol=_TOLERANCE)
            for mine, theirs in ((self.latitude, other.latitude), (self.longitude, other.longitude))
        )

    def __hash__(self) -> int:
        return hash(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"latitude": self.latitude.tolist(), "longitude": self.longitude.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Grid":
        """Inverse of `to_dict`."""
        return cls(np.asarray(data["latitude"]), np.asarray(data["longitude"]))

    @classmethod
    def from_coordinates(cls, latitude: np.ndarray, longitude: np.ndarray) -> "Grid":
        """The grid of coordinates in any order; a region cut in two by the edge of 0..360 is joined."""
        west_east = np.sort(np.asarray(longitude, dtype=np.float64))
        gaps = np.diff(west_east, append=west_east[:1] + 360)
        first = int(np.argmax(gaps)) + 1
        if first < west_east.size and gaps[first - 1] > 1.5 * np.median(gaps):
            west_east = np.concatenate([west_east[first:] - 360, west_east[:first]])
            west_east += 360 if west_east[0] < -180 else 0
        return cls(np.sort(np.asarray(latitude, dtype=np.float64))[::-1], west_east)

    def locate(self, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the grid's rows (H,) and columns (W,) lie in coordinates that may hold more, in any order.

        Raises
        ------
        InputError
            Where a latitude or, modulo 360, a longitude of the grid is not among them.
        """
        rows = np.abs(self.latitude[:, None] - latitude[None, :])
        columns = np.abs((self.longitude[:, None] - longitude[None, :] + 180) % 360 - 180)
        for name, distance, mine, came in (
            ("latitude", rows, self.latitude, latitude),
            ("longitude", columns, self.longitude, longitude),
        ):
            absent = mine[distance.min(axis=1) > _TOLERANCE]
            if absent.size:
                raise InputError(
                    f"The data set's {name} {_span(came)} lacks {absent.size} of the grid's points, "
                    f"the first at {absent[0]:g}; accepted is {name} {_span(mine)} or more at these points."
                )
        return rows.argmin(axis=1), columns.argmin(axis=1)


def _span(values: np.ndarray) -> str:
    return f"{values[0]:g}..{values[-1]:g} ({values.size} points)"


@dataclass(frozen=True)
class Channel:
    """One field of a state.

    Parameters
    ----------
    variable : str
        Short name: "z", "msl".
    level : float or None
        Pressure in hPa; None for fields at the surface, at a height, or of the column.
    units : str
        CF units; empty where not known.
    standard_name : str
        CF standard name; empty where not known.
    """

    variable: str
    level: float | None
    units: str
    standard_name: str = ""

    @property
    def name(self) -> str:
        """As in a flat data set: "z500", "msl"."""
        return self.variable if self.level is None else f"{self.variable}{self.level:g}"


@dataclass(frozen=True, eq=False)
class Normalization:
    """Mean and standard deviation of each channel.

    Parameters
    ----------
    mean, std : array (C,)
        In the channels' units, kept as float32; std > 0.

    Raises
    ------
    InputError
        For shapes that differ, values that are not finite, or std that is not positive.
    """

    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = np.array(getattr(self, name), dtype=np.float32)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise InputError(f"mean {self.mean.shape} and std {self.std.shape} came; accepted are two arrays (C,).")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise InputError("mean or std came with a value not finite or std <= 0; accepted are finite mean, std > 0.")

    def normalize(self, x: Array) -> Array:
        """(x - mean) / std for x (..., C, H, W), in x's own dtype and on its device."""
        mean, std = self._like(x)
        return (x - mean) / std

    def denormalize(self, x: Array) -> Array:
        """X std + mean for x (..., C, H, W), in x's own dtype and on its device."""
        mean, std = self._like(x)
        return x * std + mean

    def _like(self, x: Array) -> tuple[Array, Array]:
        if x.ndim < 3 or x.shape[-3] != self.mean.size:
            raise InputError(f"An array {tuple(x.shape)} came; accepted is (..., {self.mean.size}, H, W).")
        if isinstance(x, torch.Tensor):
            mean, std = (torch.tensor(v.tolist(), dtype=x.dtype, device=x.device) for v in (self.mean, self.std))
        else:
            mean, std = (v.astype(x.dtype, copy=False) for v in (self.mean, self.std))
        return mean[:, None, None], std[:, None, None]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Normalization):
            return NotImplemented
        return np.array_equal(self.mean, other.mean) and np.array_equal(self.std, other.std)

    def __hash__(self) -> int:
        return hash((self.mean.tobytes(), self.std.tobytes()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Normalization":
        """Inverse of `to_dict`, to the bit."""
        return cls(np.asarray(data["mean"]), np.asarray(data["std"]))


if not TYPE_CHECKING:  # else a misspelt name would pass the type checker

    def __getattr__(name: str) -> Any:
        # At first use, because the layout is built on this module.
        if name != "StateLayout":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from lsda_fast.layout import StateLayout

        return StateLayout
