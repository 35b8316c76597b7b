"""A training or an alignment that is interrupted where a test wants it."""

from typing import Any


class Interruption:
    """Progress that is interrupted at one step of one stage, and remembers the steps that it saw."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step, self.seen = stage, step, []  # type: ignore[var-annotated]

    def __call__(self, stage: str, done: int, total: int, values: dict[str, Any]) -> None:
        self.seen.append((stage, done))
        if (stage, done) == (self.stage, self.step):
            raise KeyboardInterrupt
