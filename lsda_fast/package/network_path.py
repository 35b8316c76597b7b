"""How the networks of an analysis run: through the fused operations or not, and in which precision."""

from typing import Any, NamedTuple

import torch
from torch import nn

from lsda_fast.errors import InputError
from lsda_fast.models.precision import lowered

__all__ = ["NetworkPath"]


class NetworkPath(NamedTuple):
    """Whether the fused operations are taken, and the precision of the networks' matrix products."""

    fused: bool
    precision: torch.dtype

    @classmethod
    def of(cls, own: torch.dtype, fused: bool, precision: torch.dtype | None) -> "NetworkPath":
        """For a package of precision ``own``; InputError where another is asked for without the fused operations."""
        if precision not in (None, own) and not fused:
            raise InputError(f"precision {precision} came without fused=True; accepted there is {own}")
        return cls(fused, precision or own)

    def low(self, network: Any) -> Any:
        """The network in that precision; what is not torch's stays."""
        parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        if parameter is None or parameter.dtype == self.precision:
            return network
        return lowered(network, self.precision)
