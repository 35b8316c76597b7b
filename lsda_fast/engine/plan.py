"""What an analysis will take: backend, members at a time, network evaluations, memory, graph or eager.

    peak = weights + max(preparation, kept + block(M), kept + states(N))

for M of the N members at a time. ``engine.footprint`` finds these without values. On a CPU what a recorded block takes,
and its copies of what is kept, stay from one analysis to the next: kept + block(M) beside each of the three.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lsda_fast.engine.backend import Backend
from lsda_fast.engine.graphs import Execution

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What ``Assimilator.plan`` says.

    Parameters
    ----------
    backend, why : str
    device, precision : str
    members, observations, levels : int
    chunk : int
        Members that go through the networks together.
    evaluations : mapping of str to int
        By kind, in members, as ``Analysis.evaluations`` will say.
    exact : bool
        Whether that is so, or the most that there can be.
    weights, preparation, kept, block, states : int
        Bytes: of the networks, and what is kept with them; at most while the analysis is prepared, and left of that; of
        a block of members; of decoding all members.
    execution, reason : str
        ``graph`` or ``eager``, and why.
    """

    backend: str
    why: str
    device: str
    precision: str
    members: int
    observations: int
    levels: int
    chunk: int
    evaluations: Mapping[str, int]
    exact: bool
    weights: int
    preparation: int
    kept: int
    block: int
    states: int
    execution: str
    reason: str

    @classmethod
    def of(cls, backend: Backend, execution: Execution, **rest: object) -> "Plan":
        """With the reasons of the two."""
        return cls(*backend, **rest, execution=execution.name, reason=execution.reason)  # type: ignore[arg-type]

    @property
    def peak(self) -> int:
        """Predicted peak of the device's memory, in bytes."""
        stays = self.kept + self.block if (self.device, self.execution) == ("cpu", "graph") else 0
        return self.weights + max(stays + self.preparation, self.kept + self.block, stays + self.kept + self.states)

    def __str__(self) -> str:
        """The rows, one below the other."""
        return "\n".join(f"{name:<20} {value}" for name, value in self.rows().items())

    def rows(self) -> dict[str, str]:
        """What is said, by what it is about."""
        most = "" if self.exact else "at most "
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.evaluations.items()))
        parts = {
            "networks": self.weights,
            "preparation": self.preparation,
            "of it kept": self.kept,
            "a block": self.block,
            "states": self.states,
        }
        return {
            "backend": f"{self.backend}: {self.why}",
            "device": f"{self.device}, matrix products in {self.precision}",
            "members": f"{self.members}, {self.chunk} at a time",
            "observations": str(self.observations),
            "noise levels": str(self.levels),
            "evaluations": most + counts,
            "peak memory": f"{_size(self.peak)} ({', '.join(f'{k} {_size(v)}' for k, v in parts.items())})",
            "execution": f"{self.execution}: {self.reason}",
        }


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
