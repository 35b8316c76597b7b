"""The likelihood of what an operator observed: R, and the unit of SDA's gamma.

R is each observation's own error variance plus the autoencoder's reconstruction error, carried to it through its
stencil, as that of a point or of a mean over cells: otherwise the guidance chases what the decoder cannot draw.
"""

from typing import Any

import numpy as np
import torch

from lsda_fast.errors import InputError
from lsda_fast.guidance import Likelihood
from lsda_fast.kernels.robust import Robust
from lsda_fast.observations import StencilOperator

__all__ = ["likelihood_of"]


def likelihood_of(
    operator: StencilOperator,
    *,
    error: np.ndarray | None = None,
    robust: Robust | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Likelihood:
    """The likelihood of an operator that has values and standard deviations.

    Parameters
    ----------
    operator : StencilOperator
    error : np.ndarray, shape (C,) or (B, C), optional
        Normalised RMSE of the autoencoder, per channel of the operator's state, as for ``representativeness``; none
        when not given.
    robust : Huber or VariationalQC, optional
    device, dtype
        Where it is wanted.

    Raises
    ------
    InputError
        An operator without values, or without standard deviations.
    """
    if not (np.isfinite(operator.values).all() and (operator.std > 0).all()):
        raise InputError(
            "an operator without values or standard deviations came; accepted is one that has a value and a "
            "positive standard deviation for every row (`observations.averages.observing`)"
        )
    operator = operator.to(device, dtype)
    # A copy, because torch warns of the read-only columns of a table.
    as_tensor: Any = lambda a: torch.tensor(np.array(a), dtype=dtype, device=device)  # noqa: E731
    variance = as_tensor(operator.std) ** 2
    if error is not None:
        variance = variance + operator.representativeness(as_tensor(error))
    scale = operator.representativeness(torch.ones(operator.shape[0], dtype=dtype, device=device)).sqrt()
    return Likelihood(operator, as_tensor(operator.values), variance, scale, robust)
