"""Windows of consecutive states: what the score of a trajectory is composed from."""

from dataclasses import asdict, dataclass
from typing import Any

from lsda_fast.errors import InputError

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """A window of consecutive states.

    Parameters
    ----------
    size : int
        States in it, 2 k + 1.
    hours : float
        Between one state and the next.

    Raises
    ------
    InputError
        A size that is even or below 1, or hours that are not positive.
    """

    size: int
    hours: float

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0 or not self.hours > 0:
            raise InputError(f"{self}: accepted are an odd size of at least 1 and hours above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)
