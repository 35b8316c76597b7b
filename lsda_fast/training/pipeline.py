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
from lsda_fast.modality_errors import modality_channels, modality_errors
from lsda_fast.package import Package
from lsda_fast.package.files import check_place
from lsda_fast.training.architectures import check_networks
from lsda_fast.training.autoencoder import inputs, reconstruction, train_autoencoder
from lsda_fast.training.background_prior import background_prior, check_background
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States, load_states
from lsda_fast.training.loop import Log, Progress
from lsda_fast.training.window_prior import check_windows, window_prior
from lsda_fast.training.work import Work, check_claim, claimed
from lsda_fast.trajectory import Window

__all__ = ["train"]

WINDOW = 29  # states, a week of six-hourly ones


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
    output = Path(output)
    folder = Path(f"{output}.work")
    check_claim(folder, config, resume)
    check_place(output)
    states = load_states(dataset, config)
    (check_windows if config.window else check_background)(states, config)
    check_networks(config, states.layout, states.modalities)
    # Only now: bad data must not leave a folder that stands in the way of the next attempt.
    with claimed(folder, config, states.fingerprint):
        log = Log(folder / "log.jsonl", progress)
        return _Run(states, config, folder, torch.device(device), log).package(output)


class _Run:
    """The stages of one training run."""

    def __init__(self, states: States, config: TrainingConfig, folder: Path, device: torch.device, log: Log) -> None:
        self.states, self.config, self.device = states, config, device
        self.work = Work(folder, config, device, log)
        self.scores: dict[str, float] = {}

    def package(self, output: Path) -> Package:
        """Every stage, in order."""
        config, states = self.config, self.states
        autoencoder, spec = train_autoencoder(states, config, self.work)
        made = (window_prior if config.window else background_prior)(states, autoencoder, config, self.work)
        errors, scores = reconstruction(autoencoder, states, self.device)
        self.scores |= made.scores | scores
        package = Package(
            states.layout,
            states.normalization,
            Schedule(**config.schedule.model_dump()),
            config.window.prediction if config.window else config.denoiser.prediction,
            {"autoencoder": autoencoder, **made.modules},
            {"autoencoder": spec, **made.architectures},
            errors[0],
            self._observation_std(),
            config.lead_hours,
            config.whitening.prior and not config.window,
            self._provenance(),
            states.modalities,
            window=Window(config.window.size, config.window.hours) if config.window else None,
            block_errors=tuple(errors[1:]),
        )
        if config.window and package.prediction == "wiener" and modality_channels(package):
            package.prior_errors = self._prior_errors(package)
        package.save(output, dtype=getattr(torch, config.storage))
        return Package.load(output)

    def _prior_errors(self, package: Package) -> tuple[np.ndarray, ...]:
        """Of the first states of the longest run of validation, as many as the published windows have."""
        states = self.states
        run = max(states.runs(states.validation), key=len)[:WINDOW]
        # Modalities on their own grids as the encoder sees them: on the state's.
        x = inputs(package.autoencoder, states, run.numpy())[:, : states.layout.shape[0]]
        return tuple(modality_errors(package, x, states.calendar[run], noise=self.config.observation_std))

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
