"""The prior around backgrounds: forecast model, backgrounds and their error statistics, denoiser.

Backgrounds of a block of training time come from a forecast model that has not seen the block (``folds``): errors in
sample are too small.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.models import DENOISERS, FORECASTERS, WHITENINGS, Whitening
from lsda_fast.package import Architecture
from lsda_fast.training.architectures import denoiser_architecture, forecaster_architecture, whitening_architecture
from lsda_fast.training.backgrounds import Pairs, background_pairs
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States
from lsda_fast.training.losses import denoiser_loss, forecaster_loss
from lsda_fast.training.work import Made, Work

__all__ = ["background_prior", "check_background"]


def check_background(states: States, config: TrainingConfig) -> None:
    """InputError for states that a forecast model does not take."""
    if states.others or states.x.isnan().any():
        raise InputError(
            "the modalities have gaps or grids of their own, which a forecast model does not take; accepted is a prior "
            "over trajectories (`window`)"
        )


def background_prior(states: States, autoencoder: Any, config: TrainingConfig, work: Work) -> Made:
    """Forecast model, whitening and denoiser."""
    return _Run(states, config, work).prior(autoencoder)


class _Run:
    """The stages."""

    def __init__(self, states: States, config: TrainingConfig, work: Work) -> None:
        self.states, self.config, self.work, self.device = states, config, work, work.device
        self.scores: dict[str, float] = {}

    def prior(self, autoencoder: Any) -> Made:
        """Every stage, in order."""
        forecaster, forecaster_spec, folds = self._forecaster()
        pairs, scores = background_pairs(self.states, autoencoder, folds, forecaster, self.config, self.work)
        self.scores |= scores
        whitening, whitening_spec = self._whitening(pairs)
        denoiser, denoiser_spec = self._denoiser(whitening, pairs)
        self._calibrate(whitening, pairs["validation"])
        modules = {"forecaster": forecaster, "whitening": whitening, "denoiser": denoiser}
        specs = {"forecaster": forecaster_spec, "whitening": whitening_spec, "denoiser": denoiser_spec}
        return Made(modules, specs, self.scores)

    def _forecaster(self) -> tuple[nn.Module, Architecture, list[tuple[np.ndarray, nn.Module]]]:
        """The shipped model, trained on all of the training period, and the folds, each with its own model."""
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
        architecture = whitening_architecture(self.config, self.states.layout, tuple(z.shape[1:]))
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

        @torch.no_grad()
        def validate(m: nn.Module) -> float:
            return float(np.mean([held(m, chosen, torch.Generator().manual_seed(i)).item() for i in range(4)]))

        def run() -> None:
            self.work.fit(module, loss, len(target["train"]), c.optimization, "denoiser", 30, validate)

        self.scores["denoiser_validation_at_start"] = validate(module.eval())
        self.work.stage(module, "denoiser", run)
        self.scores["denoiser_validation"] = validate(module)
        return module, architecture
