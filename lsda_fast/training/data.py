"""Training data: states in time order, split in time, with the pairs that are one lead apart."""

import hashlib
import json
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.calendar import calendar
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.modalities import Modality
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.modalities import load_modality, statistics
from lsda_fast.training.times import in_time_order, split

__all__ = ["States", "fingerprint", "load_states"]


@dataclass(frozen=True)
class States:
    """Normalised states in time order.

    Parameters
    ----------
    x : Tensor, shape (T, C, H, W)
    times : pd.DatetimeIndex, length T
    train, validation : np.ndarray of int
        Indices into T.
    before : np.ndarray of int, shape (T,)
        Index of the state one lead (for trajectories one step) earlier, -1 where there is none.
    fingerprint : dict of str to str
        SHA-256 of the layout, the times and the values as they were read.
    modalities : tuple of Modality
        The state's first, where others are encoded with it; else none.
    others : dict of str to Tensor, shape (T, C_m, H_m, W_m)
        Those on a grid of their own or not decoded. In them and among ``x``, NaN is what is missing.
    """

    layout: StateLayout
    normalization: Normalization
    x: Tensor
    times: pd.DatetimeIndex
    train: np.ndarray
    validation: np.ndarray
    before: np.ndarray
    fingerprint: dict[str, str]
    modalities: tuple[Modality, ...] = ()
    others: dict[str, Tensor] = field(default_factory=dict)

    def given(self, indices: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """What an encoder of modalities takes of these states: channels and what lies beside them."""
        return self.x[indices].to(device), {name: values[indices].to(device) for name, values in self.others.items()}

    @property
    def calendar(self) -> Tensor:
        """Season and time of day of every state, (T, 4)."""
        return torch.from_numpy(calendar(self.times))

    def pairs(self, indices: np.ndarray) -> np.ndarray:
        """Those of the indices that have a state one lead earlier inside the same set."""
        return indices[np.isin(self.before[indices], indices)]

    def runs(self, indices: np.ndarray) -> list[Tensor]:
        """The indices as trajectories, each of states that follow one another."""
        runs: dict[int, list[int]] = {}
        for i in indices.tolist():
            run = runs.pop(int(self.before[i]), [])
            run.append(i)
            runs[i] = run
        return [torch.tensor(run) for run in runs.values()]


def load_states(dataset: xr.Dataset, config: TrainingConfig, *, all_times: bool = False) -> States:
    """Read, order, split and normalise (statistics of the training period alone).

    States of no period are not read, unless ``all_times``: they may be of a test, incomplete, or still to come.

    Raises
    ------
    InputError
        No time dimension, an empty period, or no pairs one lead apart.
    """
    dataset, times = in_time_order(dataset)
    if config.train is not None and not all_times:
        used = np.sort(np.concatenate(split(times, config.train, config.validate_)))
        dataset, times = dataset.isel(time=used), times[used]
    layout = StateLayout.infer(dataset, config.variables)
    values = layout.to_array(dataset, missing=config.missing)
    whole = np.isfinite(values).all(axis=(1, 2, 3))
    if not whole.any():
        raise InputError("training data hold no state without missing values; accepted is at least one")
    values, times = values[whole], times[whole]
    train, validation = split(times, config.train, config.validate_)
    normalization = statistics(layout.names, values[train], config.normalization)
    hours = config.window.hours if config.window else config.lead_hours
    before = times.get_indexer(times - pd.Timedelta(hours=hours))
    x = torch.from_numpy(normalization.normalize(values))
    digests = fingerprint(layout, times, values)
    states = States(layout, normalization, x, times, train, validation, before, digests)
    for name, indices, least in (("training", train, 2), ("validation", validation, 1)):
        if len(states.pairs(indices)) < least:
            raise InputError(f"no {name} states lie {hours:g} h apart; the data's times are {times[0]} .. {times[-1]}")
    return _with_modalities(states, dataset, config) if config.modalities else states


def _with_modalities(states: States, dataset: xr.Dataset, config: TrainingConfig) -> States:
    """The states with what is encoded with them: decoded channels after theirs, NaN where those have another grid."""
    if "state" in config.modalities:
        raise InputError("modality 'state' is that of `variables`; accepted are other names for the others")
    modalities = [Modality("state", "state", states.layout, states.normalization, True)]
    planes, others, digests = [states.x], dict[str, Tensor](), dict(states.fingerprint)
    for name, section in config.modalities.items():
        beside = load_modality(name, section, dataset, states.times, states.train, config.normalization)
        modality = beside.modality
        values = torch.from_numpy(modality.normalization.normalize(beside.values))
        here = modality.decoded and modality.layout.grid == states.layout.grid
        if modality.decoded:
            T, (C, H, W) = len(states.x), (len(modality.layout.channels), *states.layout.grid.shape)
            planes.append(values if here else torch.full((T, C, H, W), torch.nan))
            if not np.isfinite(beside.values[states.validation]).any(axis=(0, 2, 3)).all():
                raise InputError(
                    f"modality {name!r} has nothing at the times of validation, where its error is taken; "
                    "accepted is one that has, or `decoded: false`"
                )
        if not here:
            others[name] = values
        digests[name] = fingerprint(modality.layout, states.times, beside.values)["values"]
        modalities.append(modality)
    decoded = [modality for modality in modalities if modality.decoded]
    mean, std = (np.concatenate([getattr(m.normalization, part) for m in decoded]) for part in ("mean", "std"))
    return replace(
        states,
        layout=StateLayout(states.layout.grid, tuple(c for m in decoded for c in m.layout.channels)),
        normalization=Normalization(mean, std),
        x=torch.cat(planes, 1),
        fingerprint=digests,
        modalities=tuple(modalities),
        others=others,
    )


def fingerprint(layout: StateLayout, times: pd.DatetimeIndex, values: np.ndarray) -> dict[str, str]:
    """SHA-256 of layout, times and values (T, C, H, W) as read.

    Before normalisation, because its sums may be rounded differently on another machine.
    """
    parts: dict[str, bytes | memoryview] = {
        "layout": json.dumps(layout.to_dict(), sort_keys=True).encode(),
        "times": times.to_numpy("datetime64[ns]").tobytes(),
        "values": values.reshape(-1).data,
    }
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
