"""Modalities: the kinds of fields that are encoded together into one latent, each with its own grid and channels.

A model state, what is measured in situ (precipitation of gauges) and what a satellite measures (outgoing long-wave
radiation). NaN marks what is missing, a pixel, a channel or a whole modality; encoders mask it, and nobody fills it in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout

__all__ = ["KINDS", "Modality", "check_modalities"]

KINDS = ("state", "in-situ", "satellite")


@dataclass(frozen=True)
class Modality:
    """One modality of a package.

    Parameters
    ----------
    name : str
    kind : {"state", "in-situ", "satellite"}
    layout : StateLayout
        Its own grid and channels.
    normalization : Normalization
        Of those channels.
    decoded : bool
        Whether its channels are among the package's, which are on the state's grid.
    shift_hours : float
        What was added to the times of its source in training, and is to those of fields that are observed.

    Raises
    ------
    InputError
        Another kind, or a normalisation of another number of channels.
    """

    name: str
    kind: str
    layout: StateLayout
    normalization: Normalization
    decoded: bool
    shift_hours: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"modality {self.name!r} is of kind {self.kind!r}; accepted are {', '.join(KINDS)}")
        if self.normalization.mean.size != len(self.layout.channels):
            raise InputError(
                f"modality {self.name!r} has {len(self.layout.channels)} channels and a normalisation of "
                f"{self.normalization.mean.size}; accepted is one of each channel"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "layout": self.layout.to_dict(),
            "normalization": self.normalization.to_dict(),
            "decoded": self.decoded,
            "shift_hours": self.shift_hours,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Modality":
        """Inverse of `to_dict`."""
        return cls(
            str(data["name"]),
            str(data["kind"]),
            StateLayout.from_dict(data["layout"]),
            Normalization.from_dict(data["normalization"]),
            bool(data["decoded"]),
            float(data.get("shift_hours", 0.0)),  # packages of before have none
        )


def check_modalities(modalities: Sequence[Modality], layout: StateLayout) -> None:
    """InputError where a name comes twice, or a decoded channel is not the package's."""
    names = [modality.name for modality in modalities]
    for modality in modalities:
        if names.count(modality.name) > 1:
            raise InputError(f"modality {modality.name!r} came twice; accepted are different names")
        absent = [name for name in modality.layout.names if name not in layout.names] if modality.decoded else []
        if absent:
            raise InputError(
                f"modality {modality.name!r} is decoded, but {', '.join(absent)} is not among the package's channels "
                f"{', '.join(layout.names)}"
            )
