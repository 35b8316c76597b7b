"""Preference losses of a denoiser against a frozen reference, on a winner and a loser of the same background.

Both are noised to the same level with the same noise. With the network's squared error against its target F*
(``training.noising``), averaged over the latent's numbers and weighted per level,

    Delta = w |F* - F_theta|^2 - w |F* - F_ref|^2,    h = Delta_loser - Delta_winner

-Delta stands for log p_theta / p_ref of a latent, and h for the log-ratio by which the model prefers the winner more
than the reference does.

- ``dpo``:  -log sigmoid(beta h). Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908, eq. 14, with T omega(lambda_t)
  in beta; their code has half of beta there).
- ``ipo``:  (beta h - 1/2)^2 = beta^2 (h - 1 / (2 beta))^2. Identity preference optimisation (Azar et al. 2023,
  arXiv:2310.12036, eq. 17) with the same h; the factor beta^2 keeps gradients in the range of the others'.
- ``dspo``: w |(F_theta - F*) - beta (1 - sigmoid(beta h)) (F_theta - F_ref)|^2 of the winner alone. Direct score
  preference optimisation (Zhu et al., ICLR 2025, openreview DomBynQsqt, in the form of their code for Stable Diffusion
  1.5, which has half of beta in the sigmoid): score matching to the winner, its target moved by the preference's
  gradient. From identical pairs it still learns the winner, as fine-tuning would. Its beta is small (theirs: 1e-3 to
  5e-2): where beta (1 - sigmoid) is above 1 the error turns round.

The anchor holds what the margin leaves free: h grows as well when both errors grow, the loser's faster (Pal et al.
2024, arXiv:2402.13228). Added to each loss is

    beta anchor Delta_a,    z_a = winner + toward (analysis - winner),

the growth of the error of a latent that is better than the winner, on its way to the reference analysis. ``toward=0``
is the winner itself, whose -log p is added in the same way by Pang et al. 2024 (arXiv:2404.19733); ``toward=1`` the
analysis, fitted as in training. Latents between the two are less scattered than either.

``units="eps"`` takes w that makes the error that of the noise, as published; ``"training"`` that of the training's
loss. For ``wiener`` the two differ by alpha^2 / (alpha^2 + sigma^2) = 1 / (1 + rho^2): in units of the noise high
levels, which decide the large scales of a few-step sample, hardly count. ``"latent"`` is the training's w on the error
of the autoencoder's latent, |S^1/2 (F* - F)|^2: rewards judge the state, most of whose variance lies in few directions;
in the whitened variable all weigh the same, and nearly all of the error is of small scales. A prior on z itself has the
same in both units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.alignment.config import ObjectiveConfig
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.models import Whitening
from lsda_fast.package import Package
from lsda_fast.training.noising import Levels, draw_levels, eps_weight, noised, training_weight

__all__ = ["LOSSES", "Answers", "Errors", "PairLatents", "compare", "objective", "preference_loss"]

Weight = Callable[[str, Levels], Tensor]
WEIGHTS: dict[str, Weight] = {"training": training_weight, "eps": eps_weight, "latent": training_weight}


class PairLatents(NamedTuple):
    """Winners, losers and reference analyses in the denoiser's variable, their backgrounds' latents, and calendars.

    (P, *latent), and (P, n) the last.
    """

    winner: Tensor
    loser: Tensor
    analysis: Tensor
    background: Tensor
    calendar: Tensor


@dataclass(frozen=True)
class Errors:
    """How latents are noised, and errors measured.

    Parameters
    ----------
    schedule : Schedule
    prediction : str
    units : str
        See the module.
    whitening : Whitening, optional
        S, for ``latent`` units of a prior on u = S^-1/2 (z - z_b).
    toward : float, optional
        Where the anchor's latents lie; none: there is no anchor.
    """

    schedule: Schedule
    prediction: str
    units: str = "training"
    whitening: Whitening | None = None
    toward: float | None = None

    @classmethod
    def of(cls, package: Package, config: ObjectiveConfig) -> "Errors":
        """Those of a configuration."""
        whitening = package.modules["whitening"] if package.whitened and config.units == "latent" else None
        toward = config.toward if config.anchor else None
        return cls(package.schedule, package.prediction, config.units, whitening, toward)  # type: ignore[arg-type]

    def measured(self, F: Tensor, leading: int) -> Tensor:
        """What of an answer (B, *latent) is compared: its leading part, in the units' variable."""
        if self.whitening is None:
            return F[:, :leading]
        F = torch.cat([F[:, :leading], torch.zeros_like(F[:, leading:])], dim=1)
        with torch.autocast(F.device.type, enabled=False):
            return self.whitening.color(F)


@dataclass(frozen=True)
class Answers:
    """What the networks answer for B pairs, (2, B, *latent) each, winners first, or (3, B, *latent), the anchor's last.

    The weight is per pair, (B, ...).
    """

    target: Tensor
    model: Tensor
    reference: Tensor
    weight: Tensor

    @cached_property
    def growth(self) -> Tensor:
        """Delta, (2 or 3, B)."""
        # The difference of two squares as one product: both are large beside it.
        product = (self.model - self.reference) * (self.model + self.reference - 2 * self.target)
        return (self.weight * product).flatten(2).mean(2)

    @property
    def margin(self) -> Tensor:
        """h, (B,)."""
        delta = self.growth
        return delta[1] - delta[0]


def dpo(answers: Answers, beta: float) -> Tensor:
    """Diffusion-DPO, (B,)."""
    return -F.logsigmoid(beta * answers.margin)


def ipo(answers: Answers, beta: float) -> Tensor:
    """Identity preference optimisation, (B,)."""
    return (beta * answers.margin - 0.5).square()


def dspo(answers: Answers, beta: float) -> Tensor:
    """Direct score preference optimisation, (B,)."""
    target, model, reference = (part[0] for part in (answers.target, answers.model, answers.reference))
    pull = beta * torch.sigmoid(-beta * answers.margin).reshape(-1, *[1] * (model.ndim - 1))
    return (answers.weight * (model - target - pull * (model - reference)).square()).flatten(1).mean(1)


LOSSES: dict[str, Callable[[Answers, float], Tensor]] = {"dpo": dpo, "ipo": ipo, "dspo": dspo}


def objective(answers: Answers, config: ObjectiveConfig) -> Tensor:
    """The preference loss and the anchor, (B,)."""
    loss = LOSSES[config.loss](answers, config.strength)
    return loss + config.strength * config.anchor * answers.growth[2] if config.anchor else loss


def compare(module: Any, reference: Any, pairs: PairLatents, errors: Errors, generator: torch.Generator) -> Answers:
    """The answers to winners and losers at one random level and noise per pair.

    Without dropout, whatever the mode: the same network must see both.
    """
    module.eval()
    levels = draw_levels(errors.schedule, errors.prediction, len(pairs.winner), generator)
    noise = torch.randn(pairs.winner.shape, generator=generator).to(pairs.winner)
    latents = [pairs.winner, pairs.loser]
    if errors.toward is not None:
        latents.append(torch.lerp(pairs.winner, pairs.analysis, errors.toward))
    parts = []
    # One after the other, so that the gradients of identical ones cancel to the bit.
    for z in latents:
        scaled, log_rho, target = noised(z, noise, levels, errors.prediction)
        with torch.no_grad():
            known = reference.predict(scaled, log_rho, pairs.background, pairs.calendar)
        model = module.predict(scaled, log_rho, pairs.background, pairs.calendar)
        parts.append([errors.measured(F.to(noise.dtype), module.leading) for F in (target, model, known)])
    target, model, known = (torch.stack(answers) for answers in zip(*parts))
    return Answers(target, model, known, WEIGHTS[errors.units](errors.prediction, levels.like(pairs.winner)))


def preference_loss(
    pairs: PairLatents, reference: nn.Module, errors: Errors, config: ObjectiveConfig, device: torch.device
) -> Callable[[Any, Tensor, torch.Generator], Tensor]:
    """The mean loss of a batch of pairs, for the training loop."""

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        batch = PairLatents(*(part[indices].to(device) for part in pairs))
        return objective(compare(module, reference, batch, errors, generator), config).mean()

    return loss
