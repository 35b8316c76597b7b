"""Diffusion posterior sampling: the gradient of the likelihood of the clean estimate, through decoder and denoiser.

z0' = z0 + scale sigma_t^2 / alpha_t grad_{z_t} log N(y | G(z0(z_t)), R + gamma rho_t^2 s^2)

With ``gamma`` > 0 this is SDA's sigma-dependent variance (Rozet & Louppe 2023, arXiv:2306.10574), s the
climatological standard deviation of what is observed. ``norm=True`` is the first publication's rule instead
(Chung et al. 2023, arXiv:2209.14687): z_s <- z_s - scale grad_{z_t} |R^-1/2 (y - G(z0))|.

With many observations of one place the step can overshoot, and the samples then leave every bound. ``limit``
shortens it, per member, to the minimum of the observations' cost along its own direction (the linearised exact line
search; one decoder JVP a level); a step that does not overshoot stays as it is, and ``limit=False`` is the
publications' rule. With a robust likelihood the departures are judged by that wider variance too, so that an early,
rough estimate condemns no observation.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from lsda_fast.guidance.base import Context, Estimate, Guidance, dot, per_member, squared_norm

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS(Guidance):
    """Gradient guidance.

    Parameters
    ----------
    scale : float
        Strength of the gradient; 1 is the likelihood as it stands.
    gamma : float
        SDA's variance of the clean estimate, in units of rho^2 s^2; 0 takes R alone.
    norm : bool
        Chung et al.'s step along the gradient of the residual's norm; ``gamma`` and ``limit`` are not used then.
    limit : bool
        Never step beyond the minimum of the observations' cost.
    """

    scale: float = 1.0
    gamma: float = 0.3
    norm: bool = False
    limit: bool = True

    @property
    def shifts(self) -> bool:
        """Chung et al.'s rule does."""
        return self.norm

    def guide(self, z_t: Tensor, context: Context) -> Estimate:
        """See the module's equation."""
        level, likelihood = context.level, context.likelihood
        denoiser = context.linearize_denoiser(z_t)
        if self.norm:
            residual = context.linearize_residual(denoiser.value)
            norm = (2.0 * residual.cost).sqrt().clamp_min(1e-30)
            gradient = denoiser.vjp(residual.vjp(residual.value / per_member(norm, residual.value)))
            return Estimate(denoiser.value, shift=-self.scale * gradient)
        variance = likelihood.variance + self.gamma * level.rho**2 * likelihood.scale**2
        inflated = replace(context, likelihood=replace(likelihood, variance=variance))
        residual = inflated.linearize_residual(denoiser.value)
        gradient = denoiser.vjp(residual.vjp(residual.value))
        step = -self.scale * level.sigma**2 / level.alpha * gradient
        if self.limit:
            change = residual.jvp(step)
            best = -dot(residual.value, change) / squared_norm(change).clamp_min(1e-30)
            step = per_member(best.clamp(0.0, 1.0), step) * step
        return Estimate(denoiser.value + step)
