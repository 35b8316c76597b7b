"""What a patch with gaps says of itself: the conditional mean of a Gaussian, patch by patch.

The numbers of a patch, all channels of all modalities at p x q points, have a covariance B, the same everywhere, about
the local time mean. Of a patch of which K is known and U is not,

    E[x_U | x_K] = mean_U + B_UK (B_KK + nugget)^-1 (x_K - mean_K),

any subset of modalities, channels and points. What is missing adds nothing: it is in neither side.
"""

import torch
from torch import Tensor, nn

from lsda_fast.errors import InputError

__all__ = ["PatchGaussian"]

_NUGGET = 1e-4  # of the mean variance: B is estimated, and nearly singular where fields are smooth


class PatchGaussian(nn.Module):
    """The mean field and the covariance of patches.

    Parameters
    ----------
    shape : (C, H, W)
    patch : (p, q)

    Raises
    ------
    InputError
        A patch that does not divide the grid.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, shape: tuple[int, int, int], patch: tuple[int, int]) -> None:
        super().__init__()
        C, H, W = shape
        if H % patch[0] or W % patch[1]:
            raise InputError(f"patch {tuple(patch)} does not divide the grid {H} x {W}")
        self.shape, self.patch, self.size = (C, H, W), tuple(patch), C * patch[0] * patch[1]
        self.register_buffer("mean", torch.zeros(C, H, W))
        # Its lower triangle, as a vector: matrices may be stored in half precision, which a solution would not bear.
        self.register_buffer("covariance", self._packed(torch.eye(self.size)))

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) with NaN -> the same with the conditional mean there; the mean where a patch has nothing."""
        known = ~x.isnan()
        with torch.autocast(x.device.type, enabled=False):
            rows = self._filled(self._patches(torch.where(known, x - self.mean, 0)), self._patches(known))
        return torch.where(known, x, self._fields(rows, len(x)) + self.mean)

    def _filled(self, rows: Tensor, known: Tensor) -> Tensor:
        """Anomalies (N, n) with what is not known filled in; one solution for all patches with the same gaps."""
        gappy = (known.any(1) & ~known.all(1)).nonzero()[:, 0]
        masks, which = known[gappy].unique(dim=0, return_inverse=True)
        places = gappy[which.argsort()].split(which.bincount(minlength=len(masks)).tolist())
        if not len(gappy):
            return rows
        B = self._matrix().to(rows)
        B.diagonal().add_(_NUGGET * B.diagonal().mean())
        for mask, i in zip(masks, places):
            K, U = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
            factor = torch.linalg.cholesky(B[K[:, None], K])
            weights = torch.cholesky_solve(B[K[:, None], U], factor)
            rows = rows.index_put((i[:, None], U), rows[i[:, None], K] @ weights)
        return rows

    @torch.no_grad()
    def fit(self, fields: Tensor, *, batch: int = 64) -> None:
        """Mean and covariance of fields (T, C, H, W), NaN where missing; pairs of numbers that are never known: 0."""
        count = (~fields.isnan()).sum(0)
        self.mean.copy_(fields.nansum(0) / count.clamp_min(1))
        total, pairs = (torch.zeros(self.size, self.size, dtype=torch.float64) for _ in range(2))
        for part in fields.split(batch):
            known = ~part.isnan()
            rows = self._patches(torch.where(known, part - self.mean.cpu(), 0)).double()
            there = self._patches(known).double()
            total += rows.T @ rows
            pairs += there.T @ there
        values, vectors = torch.linalg.eigh(total / pairs.clamp_min(1))
        # With gaps the pairs' averages need not be a covariance.
        self.covariance.copy_(self._packed(vectors * values.clamp_min(0) @ vectors.T))

    def _patches(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M h w, C p q)."""
        (C, H, W), (p, q) = self.shape, self.patch
        return x.reshape(-1, C, H // p, p, W // q, q).permute(0, 2, 4, 1, 3, 5).reshape(-1, self.size)

    def _fields(self, rows: Tensor, M: int) -> Tensor:
        (C, H, W), (p, q) = self.shape, self.patch
        return rows.reshape(M, H // p, W // q, C, p, q).permute(0, 3, 1, 4, 2, 5).reshape(M, C, H, W)

    def _packed(self, matrix: Tensor) -> Tensor:
        row, column = torch.tril_indices(self.size, self.size)
        return matrix[row, column]

    def _matrix(self) -> Tensor:
        row, column = torch.tril_indices(self.size, self.size, device=self.covariance.device)
        matrix = self.covariance.new_zeros(self.size, self.size)
        matrix[row, column] = self.covariance
        matrix[column, row] = self.covariance
        return matrix
