"""The trained model: state, schedule and networks together, made of a user's modules or read from a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.prediction import check_prediction
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.modalities import Modality, check_modalities
from lsda_fast.models import Whitening
from lsda_fast.package.architectures import Architecture, load_modules, users_modules
from lsda_fast.package.files import read_manifest, write_package
from lsda_fast.package.manifest import manifest_of, parts_of
from lsda_fast.package.prior import analysis_prior
from lsda_fast.package.trajectory import trajectory_prior
from lsda_fast.prior import Prior
from lsda_fast.trajectory import Window

__all__ = ["Package"]


@dataclass
class Package:
    """A trained model.

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
        Whether the denoiser works on u = S^-1/2 (z - z_b); otherwise on z, and S serves ``stationary`` alone.
    provenance : dict
    modalities : tuple of Modality
        What the encoder takes; none where it takes whole states alone.
    window : Window, optional
        What the denoiser of windows was trained on.
    block_errors : tuple of np.ndarray, shape (C,)
        The reconstruction error of means over blocks of 2 x 2, 4 x 4, 8 x 8, ... cells. Beyond the last one known,
        and so of every mean where none is, means are given the last one's error: an upper bound.
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

    def __post_init__(self) -> None:
        check_prediction(self.prediction)
        C = self.layout.shape[0]
        for name, errors in (
            ("reconstruction_error", [self.reconstruction_error]),
            ("block_errors", self.block_errors),
        ):
            for error in errors:
                if np.shape(error) != (C,):
                    raise InputError(f"{name} has shape {np.shape(error)}; accepted is ({C},), one per channel")
        check_modalities(self.modalities, self.layout)
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    @classmethod
    def from_modules(
        cls,
        *,
        encoder: Callable[[Tensor], Tensor],
        decoder: Callable[[Tensor], Tensor],
        denoiser: Callable[..., Tensor],
        latent_shape: tuple[int, ...],
        prediction: str,
        schedule: Schedule,
        layout: StateLayout,
        normalization: Normalization,
        reconstruction_error: np.ndarray | None = None,
        whitening: Whitening | None = None,
        whitened: bool = False,
        window: Window | None = None,
        **rest: Any,
    ) -> "Package":
        """Wrap a user's own torch modules.

        Parameters
        ----------
        encoder, decoder : callable
            (M, C, H, W) normalised state to latent (M, *latent_shape), and back.
        denoiser : callable
            ``denoiser(z_t, t, z_b)`` with t (M,) the schedule's time and z_b (M, *latent_shape), returning the
            prediction of the declared type; with ``window``, ``denoiser(windows, t)`` of (M, size, *latent_shape).
        whitening : Whitening, optional
            The covariance of the background's latent error, for ``prior_covariance="stationary"``.
        window : Window, optional
            Says that the denoiser is one of windows, for ``trajectory``.

        Saving keeps the weights of torch modules, and of modules whose methods came; loading such a package
        needs the callables again: ``Package.load(path, modules={"encoder": ..., "decoder": ..., "denoiser": ...})``,
        with ``window`` for a denoiser of windows.
        """
        modules, architectures = users_modules(
            encoder, decoder, denoiser, latent_shape, whitening, "window" if window else "denoiser"
        )
        error = np.zeros(layout.shape[0], np.float32) if reconstruction_error is None else reconstruction_error
        return cls(
            layout,
            normalization,
            schedule,
            prediction,
            modules,
            architectures,
            error,
            whitened=whitened,
            window=window,
            **rest,
        )

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
        """The reconstruction error (B, C) of means over blocks of 1, 2, 4, ... cells to the side, as far as known."""
        return np.stack([self.reconstruction_error, *self.block_errors])

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks."""
        return next((p.dtype for m in self.modules.values() for p in m.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next((p.device for m in self.modules.values() for p in m.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> "Package":
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

    def prior(
        self,
        background: Tensor,
        *,
        calendar: Tensor | None = None,
        correction: bool = True,
        fused: bool = False,
        precision: torch.dtype | None = None,
    ) -> Prior:
        """The prior p(z | z_b) of one analysis.

        Parameters
        ----------
        background : Tensor, shape (C, H, W) or latent_shape
            Normalised background state, or its latent.
        calendar : Tensor, shape (n,), optional
            The background's time, for denoisers that read it.
        correction : bool
            Whether the learned denoiser is used. Without, the prior is the linear-Gaussian one of the whitening
            alone, and the analysis is 3D-Var in the latent (whitened packages only).
        fused : bool
            Whether observations are taken through the decoder's head without forming the state (``models.observed``),
            with derivatives written out by hand, and networks run through the fused norms: the same to rounding.
        precision : torch.dtype, optional
            Of the matrix products of the denoiser, and of the decoder where it is observed (``models.precision``);
            the weights' own when not given. Only with ``fused``. States are encoded and decoded in the weights' own.

        Raises
        ------
        InputError
            A background of another shape, ``correction=False`` for a package without whitening, or a precision
            without ``fused``.
        """
        return analysis_prior(
            self, background, calendar=calendar, correction=correction, fused=fused, precision=precision
        )

    def trajectory(
        self,
        length: int,
        *,
        origin: Tensor | None = None,
        season: Tensor | None = None,
        correction: bool = True,
        chunk: int = 64,
        fused: bool = False,
        precision: torch.dtype | None = None,
    ) -> Prior:
        """The prior over trajectories of ``length`` states (T), without a background.

        Its latents are (M, T, *latent_shape), its states (M, T C, H, W): channel t C + c is channel c at time t.

        Parameters
        ----------
        length : int
            At least the window's size.
        origin : Tensor, shape (T, *latent_shape), optional
            Latents where a warm start begins, such as those of the model run that is calibrated.
        season : Tensor, shape (T, 4), optional
            The states' times (``lsda_fast.calendar``), for denoisers that read them.
        correction : bool
            Whether the learned denoiser is used. Without, the prior is the linear-Gaussian one, and the analysis is
            optimal interpolation in space and time in the latent.
        chunk : int
            Windows that go through the denoiser together, and latents through the decoder: what bounds the memory.
        fused : bool
            Whether stencils observe through the decoder's head, and networks run through the fused operations.
        precision : torch.dtype, optional
            Of the matrix products of the window network and of the observed decoder; the package's own when not given,
            another with ``fused`` alone.

        Raises
        ------
        InputError
            A package that has no denoiser of windows, fewer states than a window has, other shapes, or
            ``correction=False`` for a package without a linear-Gaussian model.
        """
        how: dict[str, Any] = {"origin": origin, "season": season, "correction": correction, "chunk": chunk}
        return trajectory_prior(self, length, **how, fused=fused, precision=precision)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write the package; an existing one is replaced only when the new one is whole.

        ``dtype`` is the precision of matrices on disk; vectors stay as they are, because a variance may be too
        small for float16. All load as float32.

        Raises
        ------
        InputError
            Something else than a package is there already.
        """
        return write_package(Path(path), self.manifest(), self.modules, dtype)

    def manifest(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return manifest_of(self)

    @classmethod
    def load(cls, path: str | Path, *, modules: Mapping[str, Callable[..., Tensor]] | None = None) -> "Package":
        """Read a package.

        Parameters
        ----------
        path : path of the folder
        modules : mapping, optional
            For a package of ``from_modules``: its ``encoder``, ``decoder`` and ``denoiser`` (``window`` for one of
            windows), which are given the package's weights.

        Raises
        ------
        InputError
            No such package, a format or architecture that is not known, a file that is missing, has another size or
            hash, or lies outside the folder.
        """
        path = Path(path)
        manifest = read_manifest(path)
        parts = parts_of(manifest, path / "manifest.json")
        built = load_modules(path, parts["architectures"], manifest["files"], modules or {})
        return cls(modules=built, **parts)
