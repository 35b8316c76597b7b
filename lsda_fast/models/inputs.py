"""Where the modalities of an encoder come in: all on the state's grid, NaN where missing, whatever grid they are on.

The first C of the (M, C + D, H, W) fields are the package's channels, the others those of modalities that are not
decoded. A decoded modality may come among the channels or, on its own grid, beside them; where both are known the
former counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.errors import InputError
from lsda_fast.grid import Grid
from lsda_fast.models.regrid import Regrid

__all__ = ["ModalityInputs"]


class ModalityInputs(nn.Module):
    """Modalities brought together.

    Parameters
    ----------
    channels : int
        Channels C of the package.
    modalities : mapping of str to mapping
        ``channels``, its places among the C for a decoded one, else its number; ``grid``, for one on its own.
    grid : mapping, optional
        The state's, as `Grid.to_dict`; needed where a modality has its own.
    """

    def __init__(
        self,
        channels: int,
        modalities: Mapping[str, Mapping[str, Any]],
        grid: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.places = channels, dict[str, list[int]]()
        self.total = channels
        for name, modality in modalities.items():
            places = modality["channels"]
            if isinstance(places, int):
                places = list(range(self.total, self.total + places))
                self.total += len(places)
            self.places[name] = list(places)
        own = {name: m["grid"] for name, m in modalities.items() if m.get("grid")}
        if own and grid is None:
            raise InputError(f"modality {next(iter(own))!r} has its own grid; accepted then is the state's `grid` too")
        self.regrid = nn.ModuleDict(
            {name: Regrid(Grid.from_dict(g), Grid.from_dict(grid)) for name, g in own.items() if grid}
        )

    def forward(self, x: Tensor, others: Mapping[str, Tensor] | None = None) -> Tensor:
        """Channels x (M, C, H, W) and modalities beside them (M, C_m, H_m, W_m) -> (M, C + D, H, W).

        Raises
        ------
        InputError
            A modality that is not known, or of another shape.
        """
        M, _, H, W = x.shape
        absent = x.new_full((M, self.total - self.channels, H, W), torch.nan)
        planes = list(torch.cat([x, absent], 1).unbind(1))
        for name, field in (others or {}).items():
            if name not in self.places:
                raise InputError(f"modality {name!r} came; accepted are {', '.join(self.places)}")
            places = self.places[name]
            mine = self.regrid[name](field) if name in self.regrid else field
            if tuple(mine.shape) != (M, len(places), H, W):
                grid = tuple(field.shape[2:]) if name in self.regrid else (H, W)
                wanted = (M, len(places), *grid)
                raise InputError(f"modality {name!r} came with shape {tuple(field.shape)}; accepted is {wanted}")
            for place, plane in zip(places, mine.unbind(1)):
                planes[place] = torch.where(planes[place].isnan(), plane, planes[place])
        return torch.stack(planes, 1)
