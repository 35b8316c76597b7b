"""The prior over trajectories: the covariance of latents in space and time, and the network of windows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.layout import StateLayout
from lsda_fast.models import TRAJECTORIES, WINDOWS
from lsda_fast.training.architectures import trajectory_architecture, window_architecture
from lsda_fast.training.autoencoder import latents as latents_of
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States
from lsda_fast.training.losses import window_loss
from lsda_fast.training.work import Made, Work

__all__ = ["check_windows", "fit_windows", "window_prior"]


def check_windows(states: States, config: TrainingConfig) -> None:
    """InputError where no whole window is in training or in validation."""
    assert config.window is not None
    for kind, indices in (("training", states.train), ("validation", states.validation)):
        _windows(states.runs(indices), config.window.size, kind)


def window_prior(states: States, autoencoder: Any, config: TrainingConfig, work: Work) -> Made:
    """Covariance and network, for the latents of the states."""
    runs = {"train": states.runs(states.train), "validation": states.runs(states.validation)}
    return fit_windows(latents_of(autoencoder, states, work.device), states.calendar, runs, states.layout, config, work)


def fit_windows(
    latents: Tensor,
    seasons: Tensor,
    runs: Mapping[str, Sequence[Tensor]],
    layout: StateLayout,
    config: TrainingConfig,
    work: Work,
) -> Made:
    """The modules ``trajectory`` and ``window``.

    Parameters
    ----------
    latents : Tensor, shape (N, c, h, w)
    seasons : Tensor, shape (N, 4)
        The latents' times (``lsda_fast.calendar``).
    runs : mapping of ``train`` and ``validation`` to sequences of Tensor
        Indices of latents that follow one another in time.
    layout : StateLayout
    config : TrainingConfig
        With a section ``window``.
    work : Work

    Raises
    ------
    InputError
        No whole window in training or in validation.
    """
    c, shape = config.window, tuple(latents.shape[1:])
    assert c is not None
    windows = {kind: _windows(runs[kind], c.size, kind) for kind in ("train", "validation")}
    specs = {"trajectory": trajectory_architecture(c, layout, shape), "window": window_architecture(c, layout, shape)}
    model: Any = work.build(TRAJECTORIES, specs["trajectory"], 5)
    work.stage(model, "trajectory", lambda: model.fit(latents.to(work.device), list(runs["train"])))
    v = torch.cat([model.standardize(part.to(work.device)).cpu() for part in latents.split(256)])
    covariance = model.covariance(c.size) if c.prediction == "wiener" else None
    schedule = Schedule(**config.schedule.model_dump())
    loss, held = (
        window_loss(v, seasons, windows[kind], schedule, c.prediction, covariance, work.device)
        for kind in ("train", "validation")
    )
    chosen = torch.arange(len(windows["validation"]))[:: max(1, len(windows["validation"]) // 64)]

    @torch.no_grad()
    def validate(m: nn.Module) -> float:
        return float(np.mean([held(m, chosen, torch.Generator().manual_seed(i)).item() for i in range(4)]))

    network = work.build(WINDOWS, specs["window"], 6)
    scores = {"window_validation_at_start": validate(network.eval())}
    work.stage(
        network,
        "window",
        lambda: work.fit(network, loss, len(windows["train"]), c.optimization, "window", 50, validate),
    )
    scores["window_validation"] = validate(network)
    return Made({"trajectory": model, "window": network}, specs, scores)


def _windows(runs: Sequence[Tensor], size: int, kind: str) -> Tensor:
    """Indices of every window of the runs, (n, size)."""
    parts = [run.unfold(0, size, 1) for run in runs if len(run) >= size]
    if not parts:
        raise InputError(f"no {size} states of {kind} follow one another; accepted is at least one window")
    return torch.cat(parts)
