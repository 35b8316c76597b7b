"""What is in a package, as rows of a table: state, latent, networks, training, and the alignments it went through."""

from typing import Any

from torch import nn

from lsda_fast.modalities import Modality
from lsda_fast.package import Package

__all__ = ["describe"]


def describe(package: Package) -> dict[str, str]:
    """Rows, title to text."""
    grid = package.layout.grid
    rows = {
        "state": f"{len(package.layout.channels)} channels on {grid.shape[0]} x {grid.shape[1]} points, "
        + ("global" if grid.periodic else "regional"),
        "channels": " ".join(package.layout.names),
        "latent": " x ".join(map(str, package.latent_shape)),
        "schedule": repr(package.schedule),
        "prediction": package.prediction + (", whitened by the background error" if package.whitened else ""),
    }
    for modality in package.modalities:
        rows[f"modality {modality.name}"] = _modality(modality)
    if package.window:
        rows["trajectories"] = f"windows of {package.window.size} states, {package.window.hours:g} h apart"
    else:
        rows["forecast lead"] = f"{package.lead_hours:g} h"
    for name, module in package.modules.items():
        rows[name] = f"{package.architectures[name].name}, {_size(module)}"
    for key in ("train", "validation", "scores"):
        if key in package.provenance:
            rows[key] = str(package.provenance[key])
    for i, record in enumerate(package.provenance.get("alignments", []), 1):
        rows[f"alignment {i}"] = _alignment(record)
    return rows


def _size(module: nn.Module) -> str:
    """Parameters in millions; of a module of statistics alone, their numbers."""
    count = sum(p.numel() for p in module.parameters())
    if count:
        return f"{count / 1e6:.2f} M parameters"
    return f"{sum(b.numel() for b in module.buffers()) / 1e6:.2f} M numbers of statistics"


def _modality(modality: Modality) -> str:
    H, W = modality.layout.grid.shape
    return (
        f"{modality.kind}, {' '.join(modality.layout.names)} on {H} x {W} points, "
        f"{'' if modality.decoded else 'not '}decoded"
    )


def _alignment(record: dict[str, Any]) -> str:
    pairs, objective, scores = record["pairs"], record["configuration"]["objective"], record["scores"]
    return (
        f"on {', '.join(record['rewards'])}, {record['period'][0]} .. {record['period'][1]}, by {objective['loss']}"
        f"{' of low rank' if objective['lora'] else ''}, {pairs['train']} pairs {pairs['sha256'][:12]}, "
        f"held-out accuracy {scores['held_out_accuracy']:.3f}, from the package {record['parent'][:12]}"
    )
