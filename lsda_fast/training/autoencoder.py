"""The autoencoder's stage of training: the network, what it is trained on, and what it loses.

A multimodal one sees its modalities with gaps (``training.gaps``) and is held to everything that is known, what it was
not shown too: with squared errors it learns the conditional mean of the state given what is there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lsda_fast.models import AUTOENCODERS
from lsda_fast.package import Architecture
from lsda_fast.training.architectures import autoencoder_architecture
from lsda_fast.training.config import GapConfig, TrainingConfig
from lsda_fast.training.data import States
from lsda_fast.training.losses import autoencoder_loss, encoded, shown, squared_error
from lsda_fast.training.work import Work

__all__ = ["inputs", "latents", "reconstruction", "train_autoencoder"]


def train_autoencoder(states: States, config: TrainingConfig, work: Work) -> tuple[Any, Architecture]:
    """The autoencoder of a run, from its working folder or trained."""
    c = config.autoencoder
    architecture = autoencoder_architecture(config, states.layout, states.modalities)
    module: Any = work.build(AUTOENCODERS, architecture, 1)

    def run() -> None:
        fields = inputs(module, states, states.train)
        linear = module if hasattr(module, "fit") else getattr(module, "linear", None)
        if linear is not None:
            linear.fit(fields)
        if architecture.name != "linear":
            chosen = states.validation[:: max(1, len(states.validation) // 64)]
            held = inputs(module, states, chosen).to(work.device)
            everything = np.arange(len(fields))
            loss = autoencoder_loss(fields, everything, c, work.device)
            validate = lambda m: _held_error(m, held, c.gaps)  # noqa: E731
            work.fit(module, loss, len(fields), c.optimization, "autoencoder", 10, validate)
        if hasattr(module, "standardize"):
            module.standardize(fields)

    work.stage(module, "autoencoder", run)
    return module, architecture


def _held_error(module: Any, held: Tensor, gaps: GapConfig) -> float:
    """Of whole inputs and, where the network is trained on them, of the same ones with the same gaps every time."""
    generator = torch.Generator().manual_seed(0)
    cases = [held] + [shown(module, held, gaps, generator)] * (gaps.samples > 0)
    return float(np.mean([squared_error(module, module.decode(encoded(module, x)), held).item() for x in cases]))


@torch.no_grad()
def inputs(module: Any, states: States, indices: np.ndarray, *, batch: int = 64) -> Tensor:
    """What the encoder takes of these states, (B, C + D, H, W) on the CPU, NaN where missing."""
    if not hasattr(module, "inputs"):
        return states.x[indices]
    device = next(module.parameters()).device
    parts = torch.from_numpy(indices).split(batch)
    return torch.cat([module.inputs(*states.given(part, device)).cpu() for part in parts])


@torch.no_grad()
def latents(module: Any, states: States, device: torch.device, *, batch: int = 64) -> Tensor:
    """Latents (T, k, h, w) of all states, on the CPU."""
    encode = module.encode if states.modalities else lambda x, _: module.encode(x)
    parts = torch.arange(len(states.x)).split(batch)
    return torch.cat([encode(*states.given(part, device)).cpu() for part in parts])


@torch.no_grad()
def reconstruction(module: Any, states: States, device: torch.device) -> tuple[np.ndarray, dict[str, float]]:
    """RMSE in the validation period where states are known, and scores: all channels', with and without.

    Row i of the RMSE (B, C) is that of means over blocks of 2^i x 2^i cells, up to half the grid's shorter side.
    ``reconstruction_rmse_without_olr`` is that of the state's channels when olr is missing from the input,
    ``reconstruction_rmse_state`` when nothing is.
    """
    fields = inputs(module, states, states.validation)
    sizes = [2**i for i in range(max(1, (min(module.shape[1:]) // 2).bit_length()))]
    errors = _rmse(module, fields, fields, device, sizes)
    error = errors[0]
    scores = {"reconstruction_rmse": _mean(error)}
    if states.modalities:
        groups = module.inputs.places
        own = groups["state"]
        scores["reconstruction_rmse_state"] = _mean(error[own])
        for name in groups:
            without = fields.clone()
            without[:, groups[name]] = torch.nan
            scores[f"reconstruction_rmse_without_{name}"] = _mean(_rmse(module, without, fields, device)[0, own])
    return errors, scores


def _rmse(
    module: Any, given: Tensor, fields: Tensor, device: torch.device, sizes: Sequence[int] = (1,), batch: int = 64
) -> np.ndarray:
    """RMSE (B, C) of means over blocks of b x b cells, for every b; where no whole block is known, the b's before."""
    total, count = torch.zeros(2, len(sizes), module.shape[0], dtype=torch.float64)
    for part, truth in zip(given.split(batch), fields.split(batch)):
        target = truth[:, : module.shape[0]]
        error = module.decode(encoded(module, part.to(device))).cpu() - target
        for i, b in enumerate(sizes):
            known = ~avg_pool2d(target, b).isnan()
            total[i] += torch.where(known, avg_pool2d(error, b), 0).square().sum((0, 2, 3), dtype=torch.float64)
            count[i] += known.sum((0, 2, 3))
    errors = (total / count).sqrt()
    for i in range(1, len(sizes)):
        errors[i] = torch.where(count[i] > 0, errors[i], errors[i - 1])
    return errors.float().numpy()


def _mean(error: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(error**2)))
