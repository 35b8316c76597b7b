"""State data sets on disk: netCDF, Zarr and GRIB, read lazily and written whole or not at all.

Nothing here knows a grid or a layout; `lsda_fast.layout` builds on it. Names of fields and dimensions are the matter of
`lsda_fast.fields`, units and missing values of `lsda_fast.units`.
"""

import glob
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.fields import DIMENSIONS, UPPER_AIR, Field, canonical, fields
from lsda_fast.units import cf_units, convert_units, missing_mask

__all__ = [
    "DIMENSIONS",
    "UPPER_AIR",
    "Field",
    "canonical",
    "check_writable",
    "convert_units",
    "fields",
    "missing_mask",
    "open_states",
    "table_beside",
    "write_dataset",
]

_GRIB_SUFFIXES = {".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2"}


def open_states(path: str | Path | Sequence[str | Path]) -> xr.Dataset:
    """Open states lazily: netCDF, Zarr or GRIB; one path, a glob pattern, or several paths that combine.

    Parameters
    ----------
    path : str, Path or sequence of them
        A file, a Zarr folder, a URL that xarray reads, or a pattern such as ``"era5/*.nc"`` (sorted by name).

    Returns
    -------
    xarray.Dataset
        With the dimension names time, member, level, latitude, longitude; everything else is kept.

    Raises
    ------
    InputError
        Where nothing matches, a file cannot be read as any of the formats, or files do not combine.
    """
    paths = [str(part) for part in ([path] if isinstance(path, str | Path) else path)]
    files: list[str] = []
    for part in paths:
        matches = [part] if "://" in part or os.path.exists(part) else sorted(glob.glob(part))
        if not matches:
            raise InputError(f"Nothing found at '{part}'; accepted is a netCDF, Zarr or GRIB path or a glob pattern.")
        files += matches
    if not files:
        raise InputError(
            "No path came; accepted is a netCDF, Zarr or GRIB path, a glob pattern or a sequence of paths."
        )
    if len(files) == 1:
        return _open_one(files[0])
    try:
        import dask  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{len(files)} files came, and reading several as one needs dask: pip install lsda_fast[dask]."
        ) from error
    parts = [_open_one(file).chunk() for file in files]
    _check_units(parts, files)
    try:
        # An analysis is of one time: several are ordered by it.
        parts = [
            part.expand_dims("time") if "time" in part.coords and not part["time"].dims else part for part in parts
        ]
        combined = xr.combine_by_coords(
            parts,
            combine_attrs="override",
            join="exact",
            data_vars="minimal",
            coords="minimal",
            compat="no_conflicts",
        )
        return combined if isinstance(combined, xr.Dataset) else combined.to_dataset()
    except ValueError as error:
        raise InputError(
            f"The {len(files)} files from '{files[0]}' to '{files[-1]}' do not combine: {error}"
        ) from error


def _check_units(parts: Sequence[xr.Dataset], files: Sequence[str]) -> None:
    """InputError where a variable has other units, or lies on another level, in one file than in an earlier one."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for part, file in zip(parts, files):
        for name, array in part.variables.items():
            for attribute in ("units", "pressure_level"):
                if attribute not in array.attrs or array.dims == (name,) == ("time",):
                    continue
                came = cf_units(str(array.attrs[attribute]))
                before, where = first.setdefault((str(name), attribute), (came, file))
                if came != before:
                    raise InputError(
                        f"{name} has {attribute} '{before}' in '{where}' and '{came}' in '{file}'; accepted as one are "
                        "files that agree"
                    )


def _open_one(path: str) -> xr.Dataset:
    try:
        if _is_zarr(path):
            # Folders open quickly without the summary of their metadata, and xarray warns where none is.
            consolidated = None if "://" in path else False
            dataset = xr.open_zarr(path, chunks=None, consolidated=consolidated, decode_timedelta=False)
        elif _is_grib(path):
            dataset = _open_grib(path)
        else:
            dataset = xr.open_dataset(path, decode_timedelta=False)
    except InputError:
        raise
    except Exception as error:  # each engine has exceptions of its own, of no common base
        raise InputError(f"'{path}' cannot be read as netCDF, Zarr or GRIB: {error}") from error
    return canonical(dataset)


def _is_zarr(path: str) -> bool:
    return path.rstrip("/").endswith(".zarr") or any(
        os.path.exists(os.path.join(path, name)) for name in ("zarr.json", ".zgroup")
    )


def _is_grib(path: str) -> bool:
    if Path(path).suffix.lower() in _GRIB_SUFFIXES:
        return True
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GRIB"


def _open_grib(path: str) -> xr.Dataset:
    """All fields of a GRIB file as one data set; where variables differ in levels, they get flat names."""
    try:
        import cfgrib
    except (ImportError, RuntimeError) as error:
        raise InputError(f"'{path}' is GRIB, which needs cfgrib: pip install lsda_fast[grib].") from error
    # No index file: the data may lie in a folder that nobody should write to.
    groups = [canonical(group) for group in cfgrib.open_datasets(path, backend_kwargs={"indexpath": ""})]
    keep = set(DIMENSIONS) | {"step"}
    groups = [g.drop_vars([c for c in g.coords if c not in keep and not g[c].dims]) for g in groups]
    upper = [g for g in groups if "level" in g.coords]
    if any(not g["level"].equals(upper[0]["level"]) for g in upper):
        groups = [_flatten(g) if "level" in g.coords else g for g in groups]
    return xr.merge(groups, join="exact", compat="no_conflicts", combine_attrs="override")


def _flatten(dataset: xr.Dataset) -> xr.Dataset:
    flat = {}
    for field in fields(dataset):
        array = dataset[field.name]
        array = array if field.position is None else array.isel(level=field.position)
        array = array.drop_vars("level", errors="ignore")
        level = {} if field.level is None else {"pressure_level": field.level}
        name = field.variable if field.level is None else f"{field.variable}{field.level:g}"
        flat[name] = array.assign_attrs(level)
    return xr.Dataset(flat, attrs=dataset.attrs)


def check_writable(path: Path) -> None:
    """InputError for a path that no data set can be written to, or where something else is."""
    if path.suffix not in (".nc", ".zarr"):
        raise InputError(f"{path}; accepted are names that end in .nc or .zarr")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder does not exist")
    if not os.access(path.parent, os.W_OK) or (path.suffix == ".nc" and path.is_dir()):
        raise InputError(f"{path} cannot be written; accepted is a file in a folder that is open to writing")
    # A store is replaced whole: what is none must not go with it.
    store = any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))
    if path.suffix == ".zarr" and path.exists() and not store and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} is no Zarr store; accepted is one, an empty folder or a new name")


def table_beside(path: Path, kind: str) -> Path:
    """Where a table lies that belongs to a data set: ``A.departures.csv`` of ``A.nc``, ``A.zarr.departures.csv``."""
    return path.with_name(f"{path.stem if path.suffix == '.nc' else path.name}.{kind}.csv")


def write_dataset(dataset: xr.Dataset, path: str | Path) -> None:
    """Write a data set whole or not at all: beside its final name first, then renamed.

    Encodings brought from another file (packing, chunks) are dropped, so values keep their bits.

    Parameters
    ----------
    dataset : xarray.Dataset
    path : str or Path
        Ends in ``.nc`` or ``.zarr``; a data set that is there already is replaced.

    Raises
    ------
    InputError
        As ``check_writable``.
    """
    path = Path(path).resolve()  # what a link leads to is written, not the link
    check_writable(path)
    dataset = dataset.drop_encoding()
    encoding: dict[str, dict[str, Any]] = {str(name): {"_FillValue": None} for name in dataset.coords}
    token = uuid.uuid4().hex[:8]
    part = path.with_name(f".{path.stem}-{token}{path.suffix}")
    old = path.with_name(f".{path.stem}-{token}-old{path.suffix}")
    try:
        if path.suffix == ".nc":
            dataset.to_netcdf(part, engine="netcdf4", encoding=encoding)
        else:
            dataset.to_zarr(part, mode="w", consolidated=False)
            if path.exists():
                os.replace(path, old)
        try:
            os.replace(part, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        for leftover in (part, old):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
