"""What a trained model is made of, and what follows from that alone: shapes, precision, device, units."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.prediction import check_prediction
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.modalities import Modality, check_modalities
from lsda_fast.package.architectures import Architecture
from lsda_fast.trajectory import Window

__all__ = ["Parts"]


@dataclass
class Parts:
    """The parts of a package.

    Parameters
    ----------
    layout : StateLayout
        Grid and channels of the state: all that the decoder gives.
    normalization : Normalization
    schedule : Schedule
    prediction : str
        ``eps``, ``x0``, ``v``, ``score`` or ``wiener``.
    modules : dict of str to nn.Module
        ``autoencoder`` (with ``encode``, ``decode``, ``latent_shape``), ``denoiser`` of (z_t, Level, background
        latent) to F, and perhaps ``whitening`` and ``forecaster``. For trajectories ``window``, a denoiser of windows,
        and perhaps ``trajectory``, their linear-Gaussian model.
    architectures : dict of str to Architecture
        How to rebuild each module.
    reconstruction_error : np.ndarray, shape (C,)
        RMSE of decode(encode(x)) per channel, normalised: the autoencoder's part of R.
    observation_std : dict of str to float
        Default observation error per channel, in its units.
    lead_hours : float
        Lead of the forecaster.
    whitened : bool
        Whether the denoiser works on u = S^-1/2 (z - z_b); otherwise on z, and S
        serves ``diagonal`` and, in full, ``stationary``.
    provenance : dict
    modalities : tuple of Modality
        What the encoder takes; none where it takes whole states alone.
    window : Window, optional
        What the denoiser of windows was trained on.
    block_errors : tuple of np.ndarray, shape (C,)
        The reconstruction error of means over blocks of 2 x 2, 4 x 4, 8 x 8, ... cells. Beyond the last one known,
        and so of every mean where none is, means are given the last one's error: an upper bound.
    prior_errors : tuple of np.ndarray, shape (C,)
        What the prior does not know of modalities (``modality_errors``), of means over 1, 2 x 2, 4 x 4, ... cells, 0 of
        the state; as many as there are errors of reconstruction, or none.
    """

    layout: StateLayout
    normalization: Normalization
    schedule: Schedule
    prediction: str
    modules: dict[str, nn.Module]
    architectures: dict[str, Architecture]
    reconstruction_error: np.ndarray
    observation_std: dict[str, float] = field(default_factory=dict)
    lead_hours: float = 24.0
    whitened: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)
    modalities: tuple[Modality, ...] = ()
    window: Window | None = None
    block_errors: tuple[np.ndarray, ...] = ()
    prior_errors: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        check_prediction(self.prediction)
        C = self.layout.shape[0]
        for name, errors in (
            ("reconstruction_error", [self.reconstruction_error]),
            ("block_errors", self.block_errors),
            ("prior_errors", self.prior_errors),
        ):
            for error in errors:
                if np.shape(error) != (C,):
                    raise InputError(f"{name} has shape {np.shape(error)}; accepted is ({C},), one per channel")
        if len(self.prior_errors) not in (0, 1 + len(self.block_errors)):
            raise InputError(
                f"{len(self.prior_errors)} prior_errors came; accepted are none, or {1 + len(self.block_errors)}, one "
                "beside each error of reconstruction"
            )
        check_modalities(self.modalities, self.layout)
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return tuple(self.autoencoder.latent_shape)

    @property
    def autoencoder(self) -> Any:
        """The autoencoder."""
        return self.modules["autoencoder"]

    @property
    def errors(self) -> np.ndarray:
        """The model's part of R^1/2, (B, C), of means over blocks of 1, 2, 4, ... cells to the side, if known."""
        errors = np.stack([self.reconstruction_error, *self.block_errors])
        return np.hypot(errors, np.stack(self.prior_errors)) if self.prior_errors else errors

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks."""
        return next((p.dtype for m in self.modules.values() for p in m.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next((p.device for m in self.modules.values() for p in m.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Move every module."""
        for module in self.modules.values():
            module.to(device)
        return self

    def normalize(self, states: np.ndarray) -> Tensor:
        """Physical states (..., C, H, W) to a normalised tensor on the package's device."""
        x = torch.from_numpy(np.ascontiguousarray(self.normalization.normalize(states), dtype=np.float32))
        return x.to(self.device, self.dtype)

    def denormalize(self, x: Tensor) -> np.ndarray:
        """Normalised states to physical numpy arrays."""
        return np.asarray(self.normalization.denormalize(x.detach().cpu().float().numpy()))
