"""Classical analyses to hold the sampler against."""

from lsda_fast.baselines.optimal_interpolation import OptimalInterpolation

__all__ = ["OptimalInterpolation"]
