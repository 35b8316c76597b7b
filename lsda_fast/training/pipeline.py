"""``lsda train``: autoencoder, forecast model, backgrounds and their error statistics, denoiser, package.

Each stage leaves its result in the working folder and is taken from there on resume. Backgrounds of a block of
training time come from a forecast model that has not seen the block (``folds``): errors in sample are too small.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.models import AUTOENCODERS, DENOISERS, FORECASTERS, WHITENINGS, Whitening, build
from lsda_fast.package import Architecture, Package
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States, load_states
from lsda_fast.training.loop import Log, fit
from lsda_fast.training.losses import autoencoder_loss, denoiser_loss, forecaster_loss

__all__ = ["autoencoder_architecture", "train"]

Progress = Callable[[str, int, int, dict[str, Any]], None]
logger = logging.getLogger("lsda_fast")


def train(
    dataset: xr.Dataset,
    config: TrainingConfig,
    output: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Package:
    """Train a package and save it.

    Parameters
    ----------
    dataset : xr.Dataset
        States (time, [level,] latitude, longitude).
    config : TrainingConfig
    output : path
        Folder of the package; the working folder stands beside it as ``<output>.work``.
    resume : bool
        Go on in the working folder of an interrupted run of the same configuration, to the same result.
    device : torch.device or str
    progress : callable (stage, done, total, values), optional

    Raises
    ------
    InputError
        Unusable data or configuration, or a working folder that is another run's.
    """
    work = Path(f"{output}.work")
    _check_claim(work, config, resume)
    states = load_states(dataset, config)
    # Only now: bad data must not leave a folder that stands in the way of the next attempt.
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.json").write_text(_record(config))
    return _Run(states, config, work, torch.device(device), Log(work / "log.jsonl", progress)).package(Path(output))


def _record(config: TrainingConfig) -> str:
    return config.model_dump_json(by_alias=True, indent=1)


def _check_claim(work: Path, config: TrainingConfig, resume: bool) -> None:
    """Make sure that the working folder is free, or belongs to this configuration."""
    record = work / "config.json"
    if not record.exists():
        return
    if not resume:
        raise InputError(f"{work} holds an earlier run; go on with --resume, or remove it")
    if json.loads(record.read_text()) != json.loads(_record(config)):
        raise InputError(f"{work} holds a run of another configuration; accepted is the same one, or another output")


def autoencoder_architecture(config: TrainingConfig, shape: tuple[int, int, int], periodic: bool) -> Architecture:
    """The autoencoder that a configuration asks for, on a grid."""
    c = config.autoencoder
    if c.kl > 0 and c.kind != "vit":
        raise InputError(f"autoencoder kind {c.kind!r} has no moments for kl = {c.kl:g}; only `vit` has")
    linear = {
        "shape": list(shape),
        "latent_channels": c.latent_channels,
        "patch": [c.patch, c.patch] if c.patch else None,
    }
    if c.kind == "linear":
        return Architecture("linear", linear)
    kind = c.kind.removeprefix("residual_")
    network: dict[str, Any] = {
        "shape": list(shape),
        "latent_channels": c.latent_channels,
        "patch": c.patch if kind == "convolutional" else [c.patch, c.patch],
        "periodic": periodic,
        **c.settings,
    }
    if c.patch is None:
        raise InputError(f"autoencoder kind {c.kind!r} needs a patch; without one only `linear` is accepted")
    if not c.kind.startswith("residual_"):
        return Architecture(kind, network)
    if kind == "convolutional":
        network["zero_head"] = True
    return Architecture("residual", {"linear": linear, "residual": {"name": kind, **network}})


class _Run:
    """The stages of one training run."""

    def __init__(self, states: States, config: TrainingConfig, work: Path, device: torch.device, log: Log) -> None:
        self.states, self.config, self.work, self.device, self.log = states, config, work, device, log
        self.periodic = states.layout.grid.periodic
        self.scores: dict[str, float] = {}

    def package(self, output: Path) -> Package:
        """Every stage, in order."""
        config, states = self.config, self.states
        autoencoder, autoencoder_spec = self._autoencoder()
        forecaster, forecaster_spec = self._forecaster()
        latents = self._latents(autoencoder)
        whitening, whitening_spec, pairs = self._backgrounds(autoencoder, forecaster, latents)
        denoiser, denoiser_spec = self._denoiser(whitening, pairs)
        self._calibrate(whitening, pairs["validation"])
        with torch.no_grad():
            held = states.x[states.validation].to(self.device)
            error = torch.cat(
                [(autoencoder.decode(autoencoder.encode(x)) - x).square().mean((2, 3)) for x in held.split(64)]
            )
            reconstruction = error.mean(0).sqrt().cpu().numpy()
        self.scores["reconstruction_rmse"] = float(np.sqrt(np.mean(reconstruction**2)))
        package = Package(
            states.layout,
            states.normalization,
            Schedule(**config.schedule.model_dump()),
            config.denoiser.prediction,
            {"autoencoder": autoencoder, "forecaster": forecaster, "whitening": whitening, "denoiser": denoiser},
            {
                "autoencoder": autoencoder_spec,
                "forecaster": forecaster_spec,
                "whitening": whitening_spec,
                "denoiser": denoiser_spec,
            },
            reconstruction,
            self._observation_std(),
            config.lead_hours,
            config.whitening.prior,
            self._provenance(),
        )
        package.save(output, dtype=getattr(torch, config.storage))
        return Package.load(output)

    def _observation_std(self) -> dict[str, float]:
        std = self.config.observation_std * np.asarray(self.states.normalization.std, float)
        return {name: float(s) for name, s in zip(self.states.layout.names, std)}

    def _provenance(self) -> dict[str, Any]:
        times = self.states.times
        period = lambda i: [str(times[i[0]]), str(times[i[-1]])]  # noqa: E731
        return {
            "configuration": self.config.model_dump(by_alias=True),
            "train": period(self.states.train),
            "validation": period(self.states.validation),
            "states": {"train": len(self.states.train), "validation": len(self.states.validation)},
            "scores": {key: round(value, 6) for key, value in self.scores.items()},
            "torch": torch.__version__.split("+")[0],
        }

    def _stage(self, module: nn.Module, name: str, run: Callable[[], Any]) -> None:
        """Load a finished stage, or run it and keep it."""
        path = self.work / f"{name}.pt"
        if path.exists():
            module.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        else:
            run()
            torch.save(module.state_dict(), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        module.eval().requires_grad_(False)

    def _fit(
        self, module: nn.Module, loss: Any, samples: int, optimization: Any, stage: str, seed: int, validate: Any
    ) -> None:
        fit(
            module,
            loss,
            samples,
            optimization,
            stage=stage,
            seed=self.config.seed + seed,
            log=self.log,
            validate=validate,
            checkpoint=self.work / f"{stage}.checkpoint",
            checkpoint_minutes=self.config.checkpoint_minutes,
        )

    def _build(self, registry: Mapping[str, Any], architecture: Architecture, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed + seed)
            return build(dict(registry), architecture.name, architecture.settings).to(self.device)

    def _autoencoder(self) -> tuple[Any, Architecture]:
        c, states = self.config.autoencoder, self.states
        architecture = autoencoder_architecture(self.config, states.layout.shape, self.periodic)
        module: Any = self._build(AUTOENCODERS, architecture, 1)

        def run() -> None:
            linear = module if architecture.name == "linear" else getattr(module, "linear", None)
            if linear is not None:
                linear.fit(states.x[states.train])
            if architecture.name != "linear":
                held = states.x[states.validation[:: max(1, len(states.validation) // 64)]].to(self.device)
                self._fit(
                    module,
                    autoencoder_loss(states.x, states.train, c, self.device),
                    len(states.train),
                    c.optimization,
                    "autoencoder",
                    10,
                    lambda m: (m.decode(m.encode(held)) - held).square().mean().item(),
                )

        self._stage(module, "autoencoder", run)
        return module, architecture

    def _forecaster(self) -> tuple[nn.Module, Architecture]:
        """The shipped model, trained on all of the training period, and one per fold when there are several."""
        settings = {
            "shape": list(self.states.layout.shape),
            "modes": self.config.forecaster.modes,
            "periodic": self.periodic,
            **self.config.forecaster.settings,
        }
        architecture = Architecture("unet", settings)
        everything = self.states.pairs(self.states.train)
        module = self._one_forecaster(architecture, everything, "forecaster")
        self.folds = [(everything, module)]
        if self.config.forecaster.folds > 1:
            blocks = np.array_split(everything, self.config.forecaster.folds)
            self.folds = [
                (block, self._one_forecaster(architecture, np.setdiff1d(everything, block), f"forecaster_{i}"))
                for i, block in enumerate(blocks)
            ]
        return module, architecture

    def _one_forecaster(self, architecture: Architecture, pairs: np.ndarray, name: str) -> nn.Module:
        c, states = self.config.forecaster, self.states
        module: Any = self._build(FORECASTERS, architecture, 2)

        def run() -> None:
            before = states.before[pairs]
            module.fit_linear(states.x[before], states.x[pairs], states.calendar[before], ridge=c.ridge)
            held = states.pairs(states.validation)
            held = held[:: max(1, len(held) // 64)]
            source, season = states.x[states.before[held]], states.calendar[states.before[held]]
            self._fit(
                module,
                forecaster_loss(states, pairs, self.config.background.perturbation, self.device),
                len(pairs),
                c.optimization,
                name,
                20,
                lambda m: (
                    (m(source.to(self.device), season.to(self.device)).cpu() - states.x[held]).square().mean().item()
                ),
            )

        self._stage(module, name, run)
        return module

    @torch.no_grad()
    def _latents(self, autoencoder: Any) -> Tensor:
        return torch.cat([autoencoder.encode(x.to(self.device)).cpu() for x in self.states.x.split(64)])

    @torch.no_grad()
    def _forecast(self, module: nn.Module, targets: np.ndarray, draw: int) -> Tensor:
        """Background states for the target times: forecasts from perturbed states."""
        states, scale = self.states, self.config.background.perturbation
        rng = np.random.default_rng([self.config.seed, draw])
        first, second = rng.choice(states.train, (2, len(targets)))
        out = []
        for part, i, j in zip(*(np.array_split(a, max(1, len(targets) // 32)) for a in (targets, first, second))):
            source = states.before[part]
            x = states.x[source]
            if scale > 0:
                x = x + scale * (states.x[i] - states.x[j]) / 2**0.5
            out.append(module(x.to(self.device), states.calendar[source].to(self.device)).cpu())
        return torch.cat(out)

    def _backgrounds(
        self, autoencoder: Any, forecaster: nn.Module, latents: Tensor
    ) -> tuple[Whitening, Architecture, dict[str, tuple[Tensor, ...]]]:
        """S, and (background latents, latents, calendar) of training and validation."""
        states = self.states
        held = states.pairs(states.validation)
        sets: dict[str, list[tuple[Tensor, ...]]] = {"train": [], "validation": []}
        squared: dict[str, list[Tensor]] = {"train": [], "validation": []}
        draws = self.config.background.draws
        work = [("train", t, m, d) for d in range(draws) for t, m in self.folds] + [
            ("validation", held, forecaster, draws)
        ]
        for i, (kind, targets, module, draw) in enumerate(work):
            x_b = self._forecast(module, targets, draw)
            squared[kind].append((x_b - states.x[targets]).square().mean((0, 2, 3)))
            sets[kind].append((self._encode(autoencoder, x_b), latents[targets], states.calendar[targets]))
            self.log.step("backgrounds", i + 1, len(work))
        pairs = {kind: tuple(torch.cat(part) for part in zip(*s)) for kind, s in sets.items()}
        for kind, parts in squared.items():
            self.scores[f"background_rmse_{kind}"] = float(torch.stack(parts).mean().sqrt())
        c = self.config.whitening
        architecture = Architecture(c.kind, {"latent_shape": list(latents.shape[1:]), **c.settings})
        whitening: Any = self._build(WHITENINGS, architecture, 3)
        self._stage(
            whitening, "whitening", lambda: whitening.fit((pairs["train"][1] - pairs["train"][0]).to(self.device))
        )
        return whitening, architecture, pairs

    @torch.no_grad()
    def _calibrate(self, whitening: Whitening, pairs: tuple[Tensor, ...]) -> None:
        """Scale S to the validation errors, after the denoiser has learned in the units of the training ones."""
        z_b, z, _ = pairs
        ratio = float(torch.cat([whitening.whiten(d.to(self.device)) for d in (z - z_b).split(256)]).square().mean())
        self.scores["whitened_validation_variance"] = ratio
        if self.config.whitening.calibrate:
            whitening.inflate(ratio)

    @torch.no_grad()
    def _encode(self, autoencoder: Any, x: Tensor) -> Tensor:
        return torch.cat([autoencoder.encode(part.to(self.device)).cpu() for part in x.split(64)])

    def _denoiser(self, whitening: Whitening, pairs: dict[str, tuple[Tensor, ...]]) -> tuple[nn.Module, Architecture]:
        c = self.config.denoiser
        latent_shape = list(pairs["train"][0].shape[1:])
        architecture = Architecture(
            "transformer", {"latent_shape": latent_shape, "prediction": c.prediction, **c.settings}
        )
        module = self._build(DENOISERS, architecture, 4)
        schedule = Schedule(**self.config.schedule.model_dump())
        target = {}
        with torch.no_grad():
            for kind, (z_b, z, _) in pairs.items():
                target[kind] = torch.cat([whitening.whiten(d.to(self.device)).cpu() for d in (z - z_b).split(256)]) \
                    if self.config.whitening.prior else z  # fmt: skip
        loss, held = (
            denoiser_loss(target[kind], pairs[kind][0], pairs[kind][2], schedule, settings, whitening, self.device)
            for kind, settings in (("train", c), ("validation", c.model_copy(update={"condition_noise": 0.0})))
        )
        chosen = torch.arange(len(target["validation"]))[:: max(1, len(target["validation"]) // 256)]

        def validate(m: nn.Module) -> float:
            return float(np.mean([held(m, chosen, torch.Generator().manual_seed(i)).item() for i in range(4)]))

        def run() -> None:
            self._fit(module, loss, len(target["train"]), c.optimization, "denoiser", 30, validate)

        self.scores["denoiser_validation_at_start"] = validate(module.eval())
        self._stage(module, "denoiser", run)
        self.scores["denoiser_validation"] = validate(module)
        return module, architecture
