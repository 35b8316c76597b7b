"""Results of cases on disk, so that an interrupted run goes on."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["digest_of", "kept", "kept_arrays"]


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file says; where there is none, what is made, written whole or not at all."""
    _write_whole(path, lambda partial: partial.write_text(json.dumps(make())))
    return json.loads(path.read_text())


def kept_arrays(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """The same of arrays, in a file .npz."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **make())

    _write_whole(path, write)
    with np.load(path) as file:
        return dict(file)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Unless it is there; two processes at the same case both end well."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    write(partial)
    os.replace(partial, path)


def digest_of(*settings: Any) -> str:
    """What settings a kept case was made with, for its name."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
