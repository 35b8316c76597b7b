"""``lsda train``: autoencoder, forecast model, backgrounds and their error statistics, denoiser, package.

Each stage leaves its result in the working folder and is taken from there on resume. Backgrounds of a block of
training time come from a forecast model that has not seen the block (``folds``): errors in sample are too small.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.models import DENOISERS, FORECASTERS, WHITENINGS, Whitening
from lsda_fast.package import Architecture, Package
from lsda_fast.training.architectures import (
    denoiser_architecture,
    forecaster_architecture,
    whitening_architecture,
)
from lsda_fast.training.autoencoder import reconstruction, train_autoencoder
from lsda_fast.training.backgrounds import Pairs, background_pairs
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States, load_states
from lsda_fast.training.loop import Log, Progress
from lsda_fast.training.losses import denoiser_loss, forecaster_loss
from lsda_fast.training.work import Work, check_claim, claim

__all__ = ["train"]


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
        Go on in the working folder of an interrupted run of the same configuration and states, to the same result.
    device : torch.device or str
    progress : callable (stage, done, total, values), optional

    Raises
    ------
    InputError
        Unusable data or configuration, or a working folder that is another run's.
    """
    folder = Path(f"{output}.work")
    check_claim(folder, config, resume)
    states = load_states(dataset, config)
    # Only now: bad data must not leave a folder that stands in the way of the next attempt.
    claim(folder, config, states.fingerprint)
    log = Log(folder / "log.jsonl", progress)
    return _Run(states, config, folder, torch.device(device), log).package(Path(output))


class _Run:
    """The stages of one training run."""

    def __init__(self, states: States, config: TrainingConfig, folder: Path, device: torch.device, log: Log) -> None:
        self.states, self.config, self.device = states, config, device
        self.work = Work(folder, config, device, log)
        self.scores: dict[str, float] = {}

    def package(self, output: Path) -> Package:
        """Every stage, in order."""
        config, states = self.config, self.states
        autoencoder, autoencoder_spec = train_autoencoder(states, config, self.work)
        forecaster, forecaster_spec, folds = self._forecaster()
        pairs, scores = background_pairs(states, autoencoder, folds, forecaster, config, self.work)
        self.scores |= scores
        whitening, whitening_spec = self._whitening(pairs)
        denoiser, denoiser_spec = self._denoiser(whitening, pairs)
        self._calibrate(whitening, pairs["validation"])
        lost, scores = reconstruction(autoencoder, states, self.device)
        self.scores |= scores
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
            lost,
            self._observation_std(),
            config.lead_hours,
            config.whitening.prior,
            self._provenance(),
            states.modalities,
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

    def _forecaster(self) -> tuple[nn.Module, Architecture, list[tuple[np.ndarray, nn.Module]]]:
        """The shipped model, trained on all of the training period, and the folds, each with its own model."""
        if self.states.others or self.states.x.isnan().any():
            raise InputError("the modalities have gaps or grids of their own, which a forecast model does not take")
        architecture = forecaster_architecture(self.config, self.states.layout)
        everything = self.states.pairs(self.states.train)
        module = self._one_forecaster(architecture, everything, "forecaster")
        folds = [(everything, module)]
        if self.config.forecaster.folds > 1:
            blocks = np.array_split(everything, self.config.forecaster.folds)
            folds = [
                (block, self._one_forecaster(architecture, np.setdiff1d(everything, block), f"forecaster_{i}"))
                for i, block in enumerate(blocks)
            ]
        return module, architecture, folds

    def _one_forecaster(self, architecture: Architecture, pairs: np.ndarray, name: str) -> nn.Module:
        c, states = self.config.forecaster, self.states
        module: Any = self.work.build(FORECASTERS, architecture, 2)

        def run() -> None:
            before = states.before[pairs]
            module.fit_linear(states.x[before], states.x[pairs], states.calendar[before], ridge=c.ridge)
            held = states.pairs(states.validation)
            held = held[:: max(1, len(held) // 64)]
            source, season = states.x[states.before[held]], states.calendar[states.before[held]]
            self.work.fit(
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

        self.work.stage(module, name, run)
        return module

    def _whitening(self, pairs: Pairs) -> tuple[Whitening, Architecture]:
        z_b, z, _ = pairs["train"]
        architecture = whitening_architecture(self.config, tuple(z.shape[1:]))
        whitening: Any = self.work.build(WHITENINGS, architecture, 3)
        self.work.stage(whitening, "whitening", lambda: whitening.fit((z - z_b).to(self.device)))
        return whitening, architecture

    @torch.no_grad()
    def _calibrate(self, whitening: Whitening, pairs: tuple[Tensor, ...]) -> None:
        """Scale S to the validation errors, after the denoiser has learned in the units of the training ones."""
        z_b, z, _ = pairs
        ratio = float(torch.cat([whitening.whiten(d.to(self.device)) for d in (z - z_b).split(256)]).square().mean())
        self.scores["whitened_validation_variance"] = ratio
        if self.config.whitening.calibrate:
            whitening.inflate(ratio)

    def _denoiser(self, whitening: Whitening, pairs: Pairs) -> tuple[nn.Module, Architecture]:
        c = self.config.denoiser
        architecture = denoiser_architecture(self.config, tuple(pairs["train"][0].shape[1:]))
        module = self.work.build(DENOISERS, architecture, 4)
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
            self.work.fit(module, loss, len(target["train"]), c.optimization, "denoiser", 30, validate)

        self.scores["denoiser_validation_at_start"] = validate(module.eval())
        self.work.stage(module, "denoiser", run)
        self.scores["denoiser_validation"] = validate(module)
        return module, architecture
