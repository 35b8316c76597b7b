"""``lsda train``: autoencoder, the prior of its latents, package.

The prior is one around backgrounds (``background_prior``), or with a section ``window`` one over trajectories
(``window_prior``). Each stage leaves its result in the working folder and is taken from there on resume.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.models import AUTOENCODERS
from lsda_fast.package import Architecture, Package
from lsda_fast.training.architectures import autoencoder_architecture
from lsda_fast.training.background_prior import background_prior
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States, load_states
from lsda_fast.training.loop import Log, Progress
from lsda_fast.training.losses import autoencoder_loss
from lsda_fast.training.window_prior import window_prior
from lsda_fast.training.work import Work, check_claim, claim
from lsda_fast.trajectory import Window

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
        autoencoder, spec = self._autoencoder()
        made = (window_prior if config.window else background_prior)(states, autoencoder, config, self.work)
        self.scores |= made.scores
        package = Package(
            states.layout,
            states.normalization,
            Schedule(**config.schedule.model_dump()),
            config.window.prediction if config.window else config.denoiser.prediction,
            {"autoencoder": autoencoder, **made.modules},
            {"autoencoder": spec, **made.architectures},
            self._reconstruction(autoencoder),
            self._observation_std(),
            config.lead_hours,
            config.whitening.prior and not config.window,
            self._provenance(),
            window=Window(config.window.size, config.window.hours) if config.window else None,
        )
        package.save(output, dtype=getattr(torch, config.storage))
        return Package.load(output)

    @torch.no_grad()
    def _reconstruction(self, autoencoder: Any) -> np.ndarray:
        """Error of the autoencoder in the validation period, per channel."""
        held = self.states.x[self.states.validation].to(self.device)
        error = torch.cat(
            [(autoencoder.decode(autoencoder.encode(x)) - x).square().mean((2, 3)) for x in held.split(64)]
        )
        reconstruction = error.mean(0).sqrt().cpu().numpy()
        self.scores["reconstruction_rmse"] = float(np.sqrt(np.mean(reconstruction**2)))
        return reconstruction

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

    def _autoencoder(self) -> tuple[Any, Architecture]:
        c, states = self.config.autoencoder, self.states
        architecture = autoencoder_architecture(self.config, states.layout)
        module: Any = self.work.build(AUTOENCODERS, architecture, 1)

        def run() -> None:
            linear = module if architecture.name == "linear" else getattr(module, "linear", None)
            if linear is not None:
                linear.fit(states.x[states.train])
            if architecture.name != "linear":
                held = states.x[states.validation[:: max(1, len(states.validation) // 64)]].to(self.device)
                self.work.fit(
                    module,
                    autoencoder_loss(states.x, states.train, c, self.device),
                    len(states.train),
                    c.optimization,
                    "autoencoder",
                    10,
                    lambda m: (m.decode(m.encode(held)) - held).square().mean().item(),
                )

        self.work.stage(module, "autoencoder", run)
        return module, architecture
