"""The trained model: its parts, made of a user's modules or read from a folder, and the priors that they give."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.models import Whitening
from lsda_fast.package.architectures import load_modules, users_modules
from lsda_fast.package.files import read_manifest, write_package
from lsda_fast.package.manifest import manifest_of, parts_of
from lsda_fast.package.parts import Parts
from lsda_fast.package.prior import analysis_prior
from lsda_fast.package.trajectory import trajectory_prior
from lsda_fast.prior import Prior
from lsda_fast.trajectory import Window

__all__ = ["Package"]


class Package(Parts):
    """A trained model; its parameters and fields are those of ``Parts``."""

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
            The covariance of the background's latent error, for ``prior_covariance``: ``diagonal`` of any,
            ``stationary`` of a full one.
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
        calendar : Tensor, shape (n,) or (1, n), optional
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
