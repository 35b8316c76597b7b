"""How far samples may be from their distribution: sampling error at one level of significance.

For M samples of N(mu, P) in n dimensions, whitened by P: M |error of the mean|^2 is chi-square with n degrees
of freedom, and M/2 |covariance - I|^2 is close to chi-square with n (n + 1) / 2 (Wishart, M >> n).
"""

import torch
from scipy.stats import chi2
from torch import Tensor

__all__ = ["SIGNIFICANCE", "assert_samples"]

# Seeds are fixed: a test passes always or never. This is the chance that it fails a right program.
SIGNIFICANCE = 1e-4


def assert_samples(z: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Samples z (M, n) have this mean and covariance within sampling error, from above and from below."""
    M, n = z.shape
    L = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(L, (z - mean).T, upper=False).T
    low, high = (float(q) for q in chi2.ppf([SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], n))
    statistic = M * float(white.mean(0).square().sum())
    assert low < statistic < high, f"mean: {statistic:.1f} outside {low:.1f}..{high:.1f}"
    freedom = n * (n + 1) / 2
    low, high = (float(q) for q in chi2.ppf([SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], freedom))
    # The sum of fourth-order terms widens the Wishart statistic by about n / M.
    width = 1 + 2 * n / M
    statistic = 0.5 * M * float((torch.cov(white.T) - torch.eye(n, dtype=z.dtype)).square().sum())
    assert low / width < statistic < high * width, f"covariance: {statistic:.0f} outside {low:.0f}..{high:.0f}"
