"""Backgrounds and candidates of another run: they do not depend on the rewards, so that alignments share them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from lsda_fast.alignment.config import AlignmentConfig
from lsda_fast.errors import InputError

__all__ = ["check_source", "take_candidates"]

DECISIVE = ("period", "dates", "draws", "perturbation", "seed", "candidates")


def check_source(source: Path, config: AlignmentConfig, fingerprint: Mapping[str, str]) -> None:
    """Make sure that the working folder ``source`` has the candidates that this run would make itself.

    Raises
    ------
    InputError
        No working folder, or one whose candidates are others: of other inputs, or other settings.
    """
    try:
        other = AlignmentConfig.model_validate_json((source / "config.json").read_text())
        inputs = json.loads((source / "states.json").read_text())
    except (OSError, ValidationError, ValueError) as error:
        raise InputError(f"{source} is no working folder of an alignment (<package>.work): {error}") from error
    differing = [name for name in DECISIVE if getattr(other, name) != getattr(config, name)]
    differing += [part for part, value in fingerprint.items() if inputs.get(part) != value]
    if differing:
        raise InputError(f"{source} has candidates of other {', '.join(differing)}; accepted are the same")


def take_candidates(source: Path, folder: Path) -> None:
    """Copy the backgrounds and candidates of the working folder ``source`` that ``folder`` has not."""
    for stage in ("backgrounds", "candidates"):
        (folder / stage).mkdir(exist_ok=True)
        for path in sorted((source / stage).glob("*.safetensors")):
            target = folder / stage / path.name
            if not target.exists():
                shutil.copyfile(path, target.with_suffix(".partial"))
                target.with_suffix(".partial").replace(target)
