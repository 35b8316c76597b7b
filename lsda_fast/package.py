"""A trained model on disk and in memory: ``manifest.json`` and safetensors, never a pickle.

The manifest holds the format version, the state's layout and normalisation, the schedule and prediction type, the
architectures by name and settings, the reconstruction error per channel, default observation errors, the training's
provenance, and size and SHA-256 of every weight file. Loading reads JSON and tensors, checks sizes and hashes,
refuses paths outside the folder, and rebuilds known architectures by name; it runs no code from the package.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsda_fast.diffusion.noise import normal
from lsda_fast.diffusion.prediction import check_prediction, to_clean
from lsda_fast.diffusion.schedule import Level, Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.models import (
    AUTOENCODERS,
    DENOISERS,
    FORECASTERS,
    WHITENINGS,
    FullWhitening,
    Whitening,
    ZonalWhitening,
    build,
)
from lsda_fast.models.tangent import PatchTangent
from lsda_fast.prior import EigenCovariance, Prior

__all__ = ["FORMAT", "Architecture", "Package"]

FORMAT = 1
REGISTRIES = {
    "autoencoder": AUTOENCODERS,
    "denoiser": DENOISERS,
    "whitening": WHITENINGS,
    "forecaster": FORECASTERS,
}


@dataclass(frozen=True)
class Architecture:
    """Name and settings of a module; ``external`` is a module that the user brings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Package:
    """A trained model.

    Parameters
    ----------
    layout : StateLayout
        Grid and channels of the state.
    normalization : Normalization
    schedule : Schedule
    prediction : str
        ``eps``, ``x0``, ``v``, ``score`` or ``wiener``.
    modules : dict of str to nn.Module
        ``autoencoder`` (with ``encode``, ``decode``, ``latent_shape``), ``denoiser`` of (z_t, Level, background
        latent) to F, and perhaps ``whitening`` and ``forecaster``.
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

    def __post_init__(self) -> None:
        check_prediction(self.prediction)
        C = self.layout.shape[0]
        if np.shape(self.reconstruction_error) != (C,):
            raise InputError(
                f"reconstruction_error has shape {np.shape(self.reconstruction_error)}; "
                f"accepted is ({C},), one per channel"
            )
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
        **rest: Any,
    ) -> "Package":
        """Wrap a user's own torch modules.

        Parameters
        ----------
        encoder, decoder : callable
            (M, C, H, W) normalised state to latent (M, *latent_shape), and back.
        denoiser : callable
            ``denoiser(z_t, t, z_b)`` with t (M,) the schedule's time and z_b (M, *latent_shape), returning the
            prediction of the declared type.
        whitening : Whitening, optional
            The covariance of the background's latent error, for ``prior_covariance="stationary"``.

        Saving keeps the weights of torch modules, and of modules whose methods came; loading such a package
        needs the callables again: ``Package.load(path, modules={"encoder": ..., "decoder": ..., "denoiser": ...})``.
        """
        modules: dict[str, nn.Module] = {
            "autoencoder": _External(encode=encoder, decode=decoder, latent_shape=tuple(latent_shape)),
            "denoiser": _External(call=denoiser),
        }
        architectures = {
            "autoencoder": Architecture("external", {"latent_shape": list(latent_shape)}),
            "denoiser": Architecture("external"),
        }
        if whitening is not None:
            modules["whitening"] = whitening
            architectures["whitening"] = _whitening_architecture(whitening, latent_shape)
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

    @torch.no_grad()
    def prior(self, background: Tensor, *, calendar: Tensor | None = None, correction: bool = True) -> Prior:
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

        Raises
        ------
        InputError
            A background of another shape, or ``correction=False`` for a package without whitening.
        """
        autoencoder, whitening = self.autoencoder, self.modules.get("whitening")
        background = background.to(self.device, self.dtype)
        if tuple(background.shape) == self.layout.shape:
            z_b = autoencoder.encode(background[None])
        elif tuple(background.shape) == self.latent_shape:
            z_b = background[None]
        else:
            raise InputError(
                f"background has shape {tuple(background.shape)}; accepted is the state's {self.layout.shape} "
                f"or the latent's {self.latent_shape}"
            )
        if self.whitened and whitening is None:
            raise InputError("the package says that it is whitened but holds no whitening")
        if not correction and not self.whitened:
            raise InputError(
                "correction=False needs a whitened package: only there is the linear-Gaussian part a prior"
            )

        def denoise(z_t: Tensor, level: Level) -> Tensor:
            if not correction:
                return to_clean("wiener", torch.zeros_like(z_t), z_t, level)
            season = None if calendar is None else calendar.to(z_t).expand(len(z_t), -1)
            F = self._predict(z_t, level, z_b.expand(len(z_t), *z_b.shape[1:]), season)
            return to_clean(self.prediction, F, z_t, level)

        common: dict[str, Any] = {
            "schedule": self.schedule,
            "latent_shape": self.latent_shape,
            "denoise": denoise,
            "tangent": self._tangent(z_b),
            "dtype": self.dtype,
            "device": self.device,
        }
        if self.whitened:
            assert isinstance(whitening, Whitening)
            return Prior(
                decode=lambda u: autoencoder.decode(z_b + whitening.color(u)),
                encode=lambda x: whitening.whiten(autoencoder.encode(x) - z_b),
                variance=torch.ones(self.latent_shape, dtype=self.dtype, device=self.device),
                **common,
            )
        covariance = None
        if isinstance(whitening, FullWhitening):
            covariance = EigenCovariance(whitening.vectors, whitening.variance)
        return Prior(
            decode=autoencoder.decode,
            encode=autoencoder.encode,
            covariance=covariance,
            variance=_variance(whitening, self.latent_shape),
            origin=z_b[0],
            **common,
        )

    def _tangent(self, z_b: Tensor) -> Callable[[Counter[str]], Callable[[Tensor], Tensor]] | None:
        """The decoder's stand-in around a background latent, fitted when first asked for."""
        (_, H, W), whitening = self.layout.shape, self.modules.get("whitening")
        if len(self.latent_shape) != 3 or H % self.latent_shape[1] or W % self.latent_shape[2]:
            return None
        k, h, w = self.latent_shape
        count = max(16, math.ceil(4 * 9 * k / (h * w)))
        if count > 256:
            return None  # too few places to fit a convolution to
        color = whitening.color if isinstance(whitening, Whitening) else lambda u: u
        made: list[Callable[[Tensor], Tensor]] = []

        def make(evaluations: Counter[str]) -> Callable[[Tensor], Tensor]:
            if not made:
                u = normal(self.latent_shape, seed=0, members=range(count), dtype=self.dtype, device=self.device)
                periodic = self.layout.grid.periodic
                fitted = PatchTangent(self.autoencoder.decode, z_b, color(u), evaluations, periodic=periodic)
                made.append((lambda v: fitted(color(v))) if self.whitened else fitted)
            return made[0]

        return make

    def _predict(self, z_t: Tensor, level: Level, z_b: Tensor, calendar: Tensor | None) -> Tensor:
        denoiser = self.modules["denoiser"]
        if isinstance(denoiser, _External):
            return denoiser(z_t, torch.full((len(z_t),), level.t, dtype=z_t.dtype, device=z_t.device), z_b)
        return denoiser(z_t, level, z_b, calendar)

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write the package; an existing one is replaced only when the new one is whole.

        ``dtype`` is the precision of matrices on disk; vectors stay as they are, because a variance may be too
        small for float16. All load as float32.

        Raises
        ------
        InputError
            Something else than a package is there already.
        """
        path = Path(path)
        # The folder is replaced whole: what is not a package must not go with it.
        replaceable = (path / "manifest.json").is_file() or (path.is_dir() and not any(path.iterdir()))
        if path.exists() and not replaceable:
            raise InputError(f"{path} is not a package; accepted is a package, an empty folder or a new name")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            files = {}
            for name, module in self.modules.items():
                file = folder / f"{name}.safetensors"
                save_file({key: _store(value, dtype) for key, value in module.state_dict().items()}, file)
                files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            (folder / "manifest.json").write_text(json.dumps(self.manifest() | {"files": files}, indent=1) + "\n")
            os.chmod(folder, 0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / "old"
                os.replace(path, old)
                try:
                    os.replace(folder, path)
                except BaseException:
                    os.replace(old, path)
                    raise
                finally:
                    shutil.rmtree(old.parent, ignore_errors=True)
            else:
                os.replace(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return path

    def manifest(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return {
            "format": FORMAT,
            "layout": self.layout.to_dict(),
            "normalization": self.normalization.to_dict(),
            "schedule": self.schedule.to_dict(),
            "prediction": self.prediction,
            "whitened": self.whitened,
            "lead_hours": self.lead_hours,
            "architectures": {name: {"name": a.name, "settings": a.settings} for name, a in self.architectures.items()},
            "reconstruction_error": [float(e) for e in self.reconstruction_error],
            "observation_std": self.observation_std,
            "provenance": self.provenance,
        }

    @classmethod
    def load(cls, path: str | Path, *, modules: Mapping[str, Callable[..., Tensor]] | None = None) -> "Package":
        """Read a package.

        Parameters
        ----------
        path : path of the folder
        modules : mapping, optional
            For a package of ``from_modules``: its ``encoder``, ``decoder`` and ``denoiser``, which are given the
            package's weights.

        Raises
        ------
        InputError
            No such package, a format or architecture that is not known, a file that is missing, has another size or
            hash, or lies outside the folder.
        """
        path = Path(path)
        manifest = read_manifest(path)
        try:
            architectures = {
                name: Architecture(a["name"], a["settings"]) for name, a in manifest["architectures"].items()
            }
            rest: tuple[Any, ...] = (
                np.array(manifest["reconstruction_error"], np.float32),
                {str(name): float(std) for name, std in manifest["observation_std"].items()},
                float(manifest["lead_hours"]),
                bool(manifest["whitened"]),
                dict(manifest["provenance"]),
            )
            layout = StateLayout.from_dict(manifest["layout"])
            normalization = Normalization.from_dict(manifest["normalization"])
            schedule = Schedule(**manifest["schedule"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            file = path / "manifest.json"
            raise InputError(f"{file}: a value that is not understood: {error!r}") from error
        built: dict[str, nn.Module] = {}
        for name, architecture in architectures.items():
            if name not in REGISTRIES:
                raise InputError(f"{path}: module {name!r} is unknown; accepted: {', '.join(REGISTRIES)}")
            file = _checked_file(path, f"{name}.safetensors", manifest["files"])
            if architecture.name == "external":
                built[name] = _given(path, name, architecture, modules or {})
            else:
                built[name] = build(REGISTRIES[name], architecture.name, architecture.settings)
            try:
                weights = {
                    key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()
                }
                built[name].load_state_dict(weights)
            except (RuntimeError, SafetensorError) as error:
                why = " ".join(" ".join(str(error).splitlines()[:2]).split())
                raise InputError(f"{file}: the weights do not fit the manifest: {why}") from error
        return cls(layout, normalization, schedule, manifest["prediction"], built, architectures, *rest)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a package folder, its keys checked."""
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path}: no manifest.json there; accepted is the folder of a package")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        came = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{file}: format {came!r}; accepted is {FORMAT}")
    missing = {
        "layout", "normalization", "schedule", "prediction", "whitened", "lead_hours", "architectures",
        "reconstruction_error", "observation_std", "provenance", "files",
    } - manifest.keys()  # fmt: skip
    if missing:
        raise InputError(f"{file}: without {', '.join(sorted(missing))}")
    return manifest


def _checked_file(folder: Path, name: str, files: Mapping[str, Any]) -> Path:
    """The file's path, once it is inside the folder and has the size and hash that the manifest says."""
    for other in files:
        inside = (folder / other).resolve()
        if inside.parent != folder.resolve() or (folder / other).is_symlink():
            raise InputError(f"{folder}: file {other!r} lies outside the package")
    if name not in files:
        raise InputError(f"{folder}: the manifest lists no {name}")
    file = folder / name
    if not file.is_file():
        raise InputError(f"{file}: missing")
    listed = files[name] if isinstance(files[name], dict) else {}
    size, digest = listed.get("bytes"), listed.get("sha256")
    if file.stat().st_size != size:
        raise InputError(f"{file}: {file.stat().st_size} bytes; the manifest says {size}")
    if _sha256(file) != digest:
        raise InputError(f"{file}: its SHA-256 is not the manifest's; the file was changed")
    return file


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _store(value: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy, because safetensors refuses weights that share memory.
    narrow = value.is_floating_point() and value.ndim > 1
    return value.detach().cpu().to(dtype if narrow else value.dtype, copy=True).contiguous()


def _variance(whitening: nn.Module | None, latent_shape: tuple[int, ...]) -> Tensor | None:
    """Variance per latent of the background's error."""
    if whitening is None:
        return None
    if isinstance(whitening, FullWhitening):
        return (whitening.vectors.square() @ whitening.variance).reshape(latent_shape)
    std = getattr(whitening, "std", None)
    return std.square().expand(latent_shape).clone() if isinstance(std, Tensor) else None


def _whitening_architecture(whitening: Whitening, latent_shape: tuple[int, ...]) -> Architecture:
    """Name and settings of one of the package's own whitenings; any other is external."""
    name = next((name for name, kind in WHITENINGS.items() if type(whitening) is kind), "external")
    settings: dict[str, Any] = {} if name == "external" else {"latent_shape": list(latent_shape)}
    if isinstance(whitening, ZonalWhitening):
        settings |= {"rank": whitening.variance.shape[1], "reach": whitening.reach}
    return Architecture(name, settings)


def _given(path: Path, name: str, architecture: Architecture, given: Mapping[str, Any]) -> nn.Module:
    """The caller's callables in the place of an external module."""
    wanted = {"autoencoder": ("encoder", "decoder")}.get(name, (name,))
    missing = [part for part in wanted if part not in given]
    if missing:
        raise InputError(
            f"{path}: the {name} is external; pass {' and '.join(missing)} in Package.load(path, modules=...)"
        )
    if name == "autoencoder":
        shape = tuple(architecture.settings["latent_shape"])
        return _External(encode=given["encoder"], decode=given["decoder"], latent_shape=shape)
    return _External(call=given["denoiser"]) if name == "denoiser" else given[name]


class _External(nn.Module):
    """A user's callables as one module, so that weights are found and kept."""

    def __init__(
        self,
        encode: Callable[..., Tensor] | None = None,
        decode: Callable[..., Tensor] | None = None,
        call: Callable[..., Tensor] | None = None,
        latent_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self._encode, self._decode, self._call = encode, decode, call
        owners = [getattr(f, "__self__", None) for f in (encode, decode, call)]
        self.owners = nn.ModuleList({id(o): o for o in owners if isinstance(o, nn.Module)}.values())

    def encode(self, x: Tensor) -> Tensor:
        assert self._encode is not None
        return self._encode(x)

    def decode(self, z: Tensor) -> Tensor:
        assert self._decode is not None
        return self._decode(z)

    def forward(self, *arguments: Tensor) -> Tensor:
        assert self._call is not None
        return self._call(*arguments)
