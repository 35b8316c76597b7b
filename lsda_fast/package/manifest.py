"""What a package is, but for its weights, as plain values: ``manifest.json``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.modalities import Modality
from lsda_fast.package.architectures import Architecture
from lsda_fast.package.files import FORMAT
from lsda_fast.trajectory import Window

if TYPE_CHECKING:
    from lsda_fast.package.package import Package

__all__ = ["manifest_of", "parts_of"]


def manifest_of(package: "Package") -> dict[str, Any]:
    """The manifest of a package."""
    specs = package.architectures
    return {
        "format": FORMAT,
        "layout": package.layout.to_dict(),
        "normalization": package.normalization.to_dict(),
        "schedule": package.schedule.to_dict(),
        "prediction": package.prediction,
        "whitened": package.whitened,
        "lead_hours": package.lead_hours,
        "architectures": {name: {"name": a.name, "settings": a.settings} for name, a in specs.items()},
        "reconstruction_error": [float(e) for e in package.reconstruction_error],
        "block_errors": [[float(e) for e in errors] for errors in package.block_errors],
        "prior_errors": [[float(e) for e in errors] for errors in package.prior_errors],
        "observation_std": package.observation_std,
        "provenance": package.provenance,
        "modalities": [modality.to_dict() for modality in package.modalities],
        "window": package.window.to_dict() if package.window else None,
    }


def parts_of(manifest: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The arguments of ``Package``, but for its modules, by name.

    Raises
    ------
    InputError
        A value that is not understood; ``file`` is where it stands.
    """
    try:
        architectures = manifest["architectures"].items()
        return {
            "layout": StateLayout.from_dict(manifest["layout"]),
            "normalization": Normalization.from_dict(manifest["normalization"]),
            "schedule": Schedule(**manifest["schedule"]),
            "prediction": manifest["prediction"],
            "architectures": {name: Architecture(a["name"], a["settings"]) for name, a in architectures},
            "reconstruction_error": np.array(manifest["reconstruction_error"], np.float32),
            "observation_std": {str(name): float(std) for name, std in manifest["observation_std"].items()},
            "lead_hours": float(manifest["lead_hours"]),
            "whitened": bool(manifest["whitened"]),
            "provenance": dict(manifest["provenance"]),
            # Packages of before have none of these.
            "block_errors": tuple(np.array(errors, np.float32) for errors in manifest.get("block_errors", [])),
            "prior_errors": tuple(np.array(errors, np.float32) for errors in manifest.get("prior_errors", [])),
            "modalities": tuple(Modality.from_dict(modality) for modality in manifest.get("modalities", [])),
            "window": Window(**manifest["window"]) if manifest.get("window") else None,
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: a value that is not understood: {error!r}") from error
