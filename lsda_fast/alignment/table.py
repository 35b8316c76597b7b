"""The reward table: one row per candidate, with its case, member, SHA-256 and rewards; one Parquet file per case."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lsda_fast.alignment.candidates import Candidates
from lsda_fast.alignment.case import Case
from lsda_fast.alignment.rewards import Reward
from lsda_fast.errors import InputError

__all__ = ["judge", "read_table"]


@torch.no_grad()
def judge(candidates: Candidates, case: Case, rewards: Sequence[Reward], draw: int = 0) -> pd.DataFrame:
    """The rows of one case: ``time``, ``draw``, ``member``, ``candidate`` (SHA-256 of its latent), a column per reward.

    Raises
    ------
    InputError
        A reward of another shape than one number per candidate, or not finite.
    """
    package = case.package
    z = candidates.z.to(package.device, package.dtype)
    x = torch.cat([package.autoencoder.decode(part) for part in z.split(32)])
    rows = pd.DataFrame(
        {
            "time": np.full(len(x), case.time.astype("datetime64[ns]")),
            "draw": draw,
            "member": np.arange(len(x)),
            "candidate": [hashlib.sha256(latent.numpy().tobytes()).hexdigest() for latent in candidates.z],
        }
    )
    for reward in rewards:
        rows[reward.name] = _checked(reward(x, case), reward.name, case)
    return rows


def _checked(values: Tensor, name: str, case: Case) -> np.ndarray:
    if values.ndim != 1 or not torch.isfinite(values).all():
        what = f"shape {tuple(values.shape)}" if values.ndim != 1 else "values that are not finite"
        raise InputError(f"reward {name} at {case.time} has {what}; accepted is one finite number per candidate")
    return values.double().cpu().numpy()


def read_table(parts: Sequence[Path]) -> pd.DataFrame:
    """All cases' rows, in the order of the files."""
    return pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
