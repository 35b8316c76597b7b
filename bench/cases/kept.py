"""Results of cases on disk, so that an interrupted run goes on."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["digest_of", "kept"]


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file says; where there is none, what is made, written whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(make()))
        os.replace(partial, path)
    return json.loads(path.read_text())


def digest_of(*settings: Any) -> str:
    """What settings a kept case was made with, for its name."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
