"""The rows of a twin's measurements: told as they come, kept as JSON lines."""

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["Rows"]


class Rows:
    """Rows of one bench.

    Parameters
    ----------
    bench : str
        Its name, in every row beside torch's version.
    """

    def __init__(self, bench: str) -> None:
        self._common, self._rows = {"bench": bench, "torch": torch.__version__}, list[dict[str, Any]]()

    def tell(self, **row: Any) -> None:
        """Keep and print one."""
        self._rows.append({**self._common, **row})
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)

    def write(self, path: Path | None) -> None:
        """All of them, where a path is given."""
        if path is not None:
            path.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
