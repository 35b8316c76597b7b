"""The fine-tuning of a denoiser on preference pairs, in full or by low-rank updates, held to its frozen reference.

With a ``share`` below 1 the aligned weights lie between the reference's and those that were reached (Wortsman et al.
2022, arXiv:2109.01903): further along a better direction, and back, keeps more of what the reference knew.

LoRA (Hu et al. 2021, arXiv:2106.09685) by ``peft`` on the linear layers: W + (alpha / r) B A, B zero to begin with,
added into plain weights at the end. The embedding is left alone, because its weight is read past its ``forward``.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.alignment.config import AlignmentConfig, LoraConfig
from lsda_fast.alignment.losses import Errors, PairLatents, compare, objective, preference_loss
from lsda_fast.errors import InputError
from lsda_fast.package import Package
from lsda_fast.training.work import Work

__all__ = ["Validation", "align_denoiser"]


class Validation:
    """Held-out pairs at the same levels and noise every time.

    Parameters
    ----------
    pairs : PairLatents
    reference : nn.Module
    package : Package
    config : AlignmentConfig
    """

    def __init__(self, pairs: PairLatents, reference: nn.Module, package: Package, config: AlignmentConfig) -> None:
        self.pairs, self.reference, self.package, self.config = pairs, reference, package, config.objective
        self.errors = Errors.of(package, config.objective)

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> tuple[float, float]:
        """The loss, and the share of pairs whose winner the model prefers more than the reference does (ties: half).

        A pair's preference is the mean of h over its draws of level and noise.
        """
        losses, margins = [], []
        for repeat in range(self.config.repeats):
            generator = torch.Generator().manual_seed(repeat)
            parts = [self._part(module, part, generator) for part in torch.arange(len(self.pairs.winner)).split(64)]
            loss, margin = (torch.cat(values) for values in zip(*parts))
            losses.append(loss)
            margins.append(margin)
        h = torch.stack(margins).mean(0)
        accuracy = (h > 0).double().mean() + 0.5 * (h == 0).double().mean()
        return float(torch.stack(losses).double().mean()), float(accuracy)

    def _part(self, module: nn.Module, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = PairLatents(*(part[indices].to(self.package.device) for part in self.pairs))
        answers = compare(module, self.reference, batch, self.errors, generator)
        return objective(answers, self.config), answers.margin


def align_denoiser(
    work: Work, package: Package, train: PairLatents, held_out: PairLatents, config: AlignmentConfig
) -> tuple[nn.Module, dict[str, float]]:
    """A fine-tuned copy of the package's denoiser, and its scores on held-out pairs.

    Raises
    ------
    InputError
        A denoiser that is not one of the package's architectures, or LoRA without peft.
    """
    reference = package.modules["denoiser"]
    if not hasattr(reference, "predict"):
        raise InputError("the denoiser is the user's own; accepted for alignment are the package's architectures")
    validation = Validation(held_out, reference, package, config)
    module = copy.deepcopy(reference)
    loss = preference_loss(train, reference, validation.errors, config.objective, package.device)

    def run() -> None:
        lora = config.objective.lora
        tuned = module.requires_grad_(True) if lora is None else _low_rank(module, lora, config.seed)
        work.fit(tuned, loss, len(train.winner), config.optimization, "denoiser", 40, lambda m: validation(m)[0])
        if lora is not None:
            tuned.merge_and_unload()  # type: ignore[operator]

    scores = dict(zip(("held_out_loss_at_start", "held_out_accuracy_at_start"), validation(module)))
    work.stage(module, "denoiser", run)
    _interpolate(module, reference, config.optimization.share)
    scores |= dict(zip(("held_out_loss", "held_out_accuracy"), validation(module)))
    return module, scores


@torch.no_grad()
def _interpolate(module: nn.Module, reference: nn.Module, share: float) -> None:
    """The module's weights become reference + share (own - reference)."""
    for own, other in zip(module.parameters(), reference.parameters()):
        own.lerp_(other, 1 - share)


def _low_rank(module: nn.Module, config: LoraConfig, seed: int) -> Any:
    """The module with low-rank updates, in place, inside peft's wrapper; its own weights are frozen."""
    peft = require_peft()
    targets = [
        name
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and name.rpartition(".")[2] != "embed"
    ]
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(module, settings)


def require_peft() -> Any:
    """The library; InputError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise InputError("low-rank updates need peft: pip install 'lsda_fast[align]'") from error
    return peft
