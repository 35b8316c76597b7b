"""The layout of a state: the door between xarray data sets and arrays (C, H, W).

Inside, a state is float32 (..., C, H, W) on latitudes from north to south and longitudes from west to east,
in the units of the layout's channels. Outside, it is any CF-like data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from lsda_fast.cf import state_dataset
from lsda_fast.errors import InputError
from lsda_fast.fields import (
    HEIGHT,
    UPPER_AIR,
    Field,
    canonical,
    check_variable,
    coordinates,
    fields,
    known_standard_name,
)
from lsda_fast.grid import Channel, Grid
from lsda_fast.units import convert_units, missing_mask

__all__ = ["StateLayout", "channel_of"]


@dataclass(frozen=True)
class StateLayout:
    """What the axes of a state (C, H, W) mean.

    Parameters
    ----------
    grid : Grid
    channels : tuple of Channel

    Raises
    ------
    InputError
        Without channels or with the same name twice.
    """

    grid: Grid
    channels: tuple[Channel, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels:
            raise InputError("A layout without channels came; accepted is at least one.")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InputError(f"{', '.join(twice)} came more than once; accepted is each channel once.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (len(self.channels), *self.grid.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names, ("z500", "t850", "msl")."""
        return tuple(channel.name for channel in self.channels)

    def index(self, name: str) -> int:
        """The channel's position; InputError for a name that is not there."""
        if name not in self.names:
            raise InputError(f"Channel '{name}' came; accepted are {', '.join(self.names)}.")
        return self.names.index(name)

    @classmethod
    def infer(cls, dataset: xr.Dataset, variables: Sequence[str] | None = None) -> "StateLayout":
        """The layout of a data set, in its order of variables and levels; nothing is read but coordinates.

        Parameters
        ----------
        dataset : xarray.Dataset
        variables : sequence of str, optional
            "z" takes all its levels, "z500" one; in this order. By default all on latitude and longitude.

        Raises
        ------
        InputError
            Where variables are absent (all are named), twice there, or on dimensions that a state has not.
        """
        dataset = canonical(dataset)
        latitude, longitude = coordinates(dataset)
        found = fields(dataset)
        if variables is not None:
            requested = [variables] if isinstance(variables, str) else list(variables)
            chosen = {want: [f for f in found if f.called(want) or channel_of(f).name == want] for want in requested}
            absent = [want for want, matches in chosen.items() if not matches]
            if absent:
                raise InputError(f"The data set has no {', '.join(absent)}; it has {_listing(found)}.")
            found = list(dict.fromkeys(f for matches in chosen.values() for f in matches))
        if not found:
            raise InputError("The data set has no variable on latitude and longitude; accepted is at least one.")
        for name in dict.fromkeys(f.name for f in found):
            check_variable(dataset[name])
        return cls(Grid.from_coordinates(latitude, longitude), tuple(channel_of(f) for f in found))

    def find(self, dataset: xr.Dataset) -> list[Field | None]:
        """The field of each channel in a canonical data set by name, else by standard name; None where absent.

        For a geopotential, a geopotential height does.
        """
        found = fields(dataset)
        result: list[Field | None] = []
        for channel in self.channels:
            level = None if channel.level is None else round(channel.level, 4)
            there = [f for f in found if f.level == level]
            matches = [f for f in there if f.called(channel.variable)]
            standard = known_standard_name(channel.standard_name) or UPPER_AIR.get(channel.variable, "")
            # Without a pressure, eastward_wind may be at 10 m or 100 m: its standard name alone does not say.
            if not matches and standard and (level is not None or standard not in UPPER_AIR.values()):
                matches = [f for f in there if f.standard_name == standard]
            if not matches and standard == "geopotential":
                matches = [f for f in there if f.standard_name in HEIGHT or f.name.lower() in HEIGHT]
            if len(matches) > 1:
                raise InputError(
                    f"Channel {channel.name} is there {len(matches)} times, in the variables "
                    f"{', '.join(f.name for f in matches)}; accepted is a data set that has it once."
                )
            result.append(matches[0] if matches else None)
        return result

    def to_array(self, dataset: xr.Dataset, *, missing: str = "refuse") -> np.ndarray:
        """Read states on the layout's grid and in its units.

        Parameters
        ----------
        dataset : xarray.Dataset
            Variables with levels (``z(level, ...)``) or flat (``z500``), with dimensions, latitudes and
            longitudes in any order; it may cover more than the grid, at the same points. A variable without
            units is taken to have the layout's.
        missing : {"refuse", "mask"}
            NaN and fill values (9999, -9999, sizes from 1e8) raise, or come back as NaN.

        Returns
        -------
        array (..., C, H, W), float32
            Leading dimensions (time, member) where the data set has them; fields without are repeated.

        Raises
        ------
        InputError
            For absent channels (all are named), points of the grid that are not there, units that do not
            convert, and missing values unless masked.
        """
        if missing not in ("refuse", "mask"):
            raise InputError(f"missing='{missing}' came; accepted are 'refuse' and 'mask'.")
        dataset = canonical(dataset)
        latitude, longitude = coordinates(dataset)
        found = self.find(dataset)
        absent = [channel.name for channel, field in zip(self.channels, found) if field is None]
        if absent:
            raise InputError(f"The data set has no {', '.join(absent)}; it has {_listing(fields(dataset))}.")
        rows, columns = self.grid.locate(latitude, longitude)
        # Slices, so that lazily opened files read a region and not the globe; the order is settled in memory.
        box = {
            "latitude": slice(int(rows.min()), int(rows.max()) + 1),
            "longitude": slice(int(columns.min()), int(columns.max()) + 1),
        }
        rows, columns = rows - rows.min(), columns - columns.min()
        names = list(dict.fromkeys(field.name for field in found if field))
        for name in names:
            check_variable(dataset[name])
        lead = [dim for dim in ("time", "member") if any(dim in dataset[name].dims for name in names)]
        result = np.empty((*(dataset.sizes[dim] for dim in lead), *self.shape), np.float32)
        gaps: list[tuple[str, int, str]] = []
        for name in names:
            wanted = [(c, f) for c, f in enumerate(found) if f and f.name == name]
            array = dataset[name].isel(box)
            if "level" in array.dims:
                array = array.isel(level=sorted(f.position for _, f in wanted if f.position is not None))
            own = [dim for dim in lead if dim in array.dims]
            sizes = [array.sizes[dim] for dim in (*own, "latitude", "longitude")]
            block = array.transpose(*own, "latitude", "longitude", ...).values.reshape(*sizes, -1)
            for rank, (c, field) in enumerate(sorted(wanted, key=lambda pair: pair[1].position or 0)):
                values = block[..., rows[:, None], columns[None, :], rank]
                bad = missing_mask(values)
                if bad.any():
                    gaps.append((self.names[c], int(bad.sum()), self._place(dataset, own, bad)))
                    values = np.where(bad, np.nan, values)
                values = convert_units(values, field.units, self.channels[c].units, f"{self.names[c]} ({name})")
                result[..., c, :, :] = np.expand_dims(values, [i for i, dim in enumerate(lead) if dim not in own])
        if gaps and missing == "refuse":
            counts = ", ".join(f"{name} has {count}" for name, count, _ in gaps)
            raise InputError(
                f"Missing values came: {counts}, the first of {gaps[0][0]} at {gaps[0][2]}; "
                "accepted are complete fields, or missing='mask'."
            )
        return result

    def _place(self, dataset: xr.Dataset, lead: Sequence[str], bad: np.ndarray) -> str:
        *where, row, column = (int(i) for i in np.argwhere(bad)[0])
        labels = [str(dataset[d].values[i]) if d in dataset.coords else str(i) for d, i in zip(lead, where)]
        words = [f"{d} {label.removesuffix('.000000000')}" for d, label in zip(lead, labels)]
        return ", ".join([*words, f"latitude {self.grid.latitude[row]:g}, longitude {self.grid.longitude[column]:g}"])

    def style_of(self, dataset: xr.Dataset) -> str:
        """Style "levels" where the data set has this layout's channels on a dimension level, else "flat"."""
        found = self.find(canonical(dataset))
        return "levels" if any(field and field.position is not None for field in found) else "flat"

    def to_dataset(
        self,
        array: np.ndarray,
        *,
        dims: tuple[str, ...] = (),
        coords: dict[str, Any] | None = None,
        style: str = "flat",
        attrs: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """States as a CF-1.11 data set.

        Parameters
        ----------
        array : array (..., C, H, W)
            In the channels' units.
        dims : tuple of str
            Names of the leading dimensions, such as ("time", "member").
        coords : dict, optional
            Values of the leading dimensions; under other names, scalars such as the time of a single state.
        style : {"flat", "levels"}
            ``z500(latitude, longitude)`` with an attribute pressure_level in hPa, or ``z(level, ...)``.
            Levels are the union over all variables; what the layout has not is NaN there.
        attrs : mapping, optional
            Global attributes.

        Raises
        ------
        InputError
            For an array of another shape, another style, or one variable in several units on levels.
        """
        array = np.asarray(array)
        if array.ndim != len(dims) + 3 or array.shape[len(dims) :] != self.shape:
            raise InputError(f"An array {array.shape} came; accepted is ({', '.join([*dims, *map(str, self.shape)])}).")
        if style not in ("flat", "levels"):
            raise InputError(f"style='{style}' came; accepted are 'flat' and 'levels'.")
        return state_dataset(self.grid, self.channels, array, dims=dims, coords=coords or {}, style=style, attrs=attrs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"grid": self.grid.to_dict(), "channels": [asdict(channel) for channel in self.channels]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "StateLayout":
        """Inverse of `to_dict`."""
        return cls(Grid.from_dict(data["grid"]), tuple(Channel(**channel) for channel in data["channels"]))


def channel_of(field: Field) -> Channel:
    """What a field of a data set is in a layout."""
    return Channel(field.variable, field.level, field.units, field.standard_name)


def _listing(found: Sequence[Field]) -> str:
    names = list(dict.fromkeys(channel_of(field).name for field in found))
    if not names:
        return "no variable on latitude and longitude"
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
