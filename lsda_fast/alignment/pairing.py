"""Preference pairs from a reward table, case by case: a case is a background, of a date and a draw.

One reward: a case's winners are its ``top`` best candidates, its losers the ``top`` worst. Several: the winners lie in
the top ``quantile`` of every reward among the case's candidates, the losers in the bottom one (Align-DA,
arXiv:2505.22008, section 2). Where that leaves a case without winners or losers, its share is widened by half again
and again up to ``widest``; a case that has none even then takes no part.

Rewards that hardly agree leave such intersections nearly empty. ``select: dominance`` takes, of all pairs of a case,
the ``per_case`` ones whose smallest difference of ranks, over the rewards, is widest.

A pair's winner is better than its loser by every reward, strictly, and no two pairs of a case have the same latents.
Pairs are dealt out one per case and round, in random order, until there are ``count``: cases with few pairs give what
they have.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lsda_fast.alignment.config import PairsConfig
from lsda_fast.errors import InputError

__all__ = ["CASE", "pairs_hash", "select_pairs", "summary"]

CASE = ["time", "draw"]
COLUMNS = [*CASE, "winner", "loser", "winner_candidate", "loser_candidate", "share", "held_out"]


def select_pairs(table: pd.DataFrame, rewards: Sequence[str], config: PairsConfig, seed: int) -> pd.DataFrame:
    """Pairs to train on, and to validate with (``held_out``) from the last dates.

    Parameters
    ----------
    table : pd.DataFrame
        ``time``, ``draw``, ``member``, ``candidate`` and the rewards.
    rewards : sequence of str
        The columns that decide.
    config : PairsConfig
    seed : int

    Returns
    -------
    pd.DataFrame
        ``time``, ``draw``; ``winner`` and ``loser``, members; their SHA-256; ``share``, the top and bottom part of
        the case's candidates that they come from; ``held_out``.

    Raises
    ------
    InputError
        A reward that is not in the table, or no pairs to train on or to validate with.
    """
    absent = [name for name in rewards if name not in table]
    if absent:
        raise InputError(f"the reward table has no {', '.join(absent)}; its columns are {', '.join(table.columns)}")
    times = np.sort(table["time"].unique())
    held = times[len(times) - min(len(times) - 1, max(1, round(config.held_out * len(times)))) :]
    cases = [(rows["time"].isin(held).any(), _case_pairs(rows, rewards, config)) for _, rows in table.groupby(CASE)]
    parts = []
    for is_held in (False, True):
        count = config.count if not is_held else max(1, round(config.count * config.held_out / (1 - config.held_out)))
        found = _dealt([pairs for out, pairs in cases if out == is_held], count, np.random.default_rng([seed, is_held]))
        if found.empty:
            kind, dates = ("validate with", len(held)) if is_held else ("train on", len(times) - len(held))
            raise InputError(
                f"no pairs to {kind} in {dates} dates: no candidate there is among the best and another among "
                f"the worst by all of {', '.join(rewards)}; accepted are a wider quantile or fewer rewards, in another "
                "output that takes these candidates (--candidates-from)"
            )
        parts.append(found.assign(held_out=is_held))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _case_pairs(rows: pd.DataFrame, rewards: Sequence[str], config: PairsConfig) -> pd.DataFrame:
    """All pairs of one case, each once."""
    # Equal rewards in the order of the latents' hashes, so that the order of the rows does not matter.
    rows = rows.sort_values("candidate", kind="stable")
    values = rows[list(rewards)].to_numpy(float)
    rank = values.argsort(0, kind="stable").argsort(0)
    w, l, share = (_dominant if config.select == "dominance" else _intersection)(rank, config)
    better = (values[w] > values[l]).all(1)
    member, candidate = rows["member"].to_numpy(), rows["candidate"].to_numpy()
    found = pd.DataFrame(
        {
            **{name: np.full(better.sum(), rows[name].iloc[0]) for name in CASE},
            "winner": member[w[better]],
            "loser": member[l[better]],
            "winner_candidate": candidate[w[better]],
            "loser_candidate": candidate[l[better]],
            "share": share,
        }
    )
    found = found.sort_values(["winner", "loser"]).drop_duplicates(["winner_candidate", "loser_candidate"])
    return found[found["winner_candidate"] != found["loser_candidate"]]


def _intersection(rank: np.ndarray, config: PairsConfig) -> tuple[np.ndarray, np.ndarray, float]:
    """Winners and losers: the best by every reward against the worst, and the share of all that these are of."""
    N, several = len(rank), rank.shape[1] > 1
    share = min(config.quantile, config.widest) if several else min(config.top, N // 2) / N
    while True:
        k = min(max(1, round(share * N)), N // 2)
        winners, losers = np.flatnonzero((rank >= N - k).all(1)), np.flatnonzero((rank < k).all(1))
        if (len(winners) and len(losers)) or share >= config.widest or not several:
            break
        share = min(1.5 * share, config.widest)
    w, l = (a.ravel() for a in np.meshgrid(winners, losers, indexing="ij"))
    return w, l, share


def _dominant(rank: np.ndarray, config: PairsConfig) -> tuple[np.ndarray, np.ndarray, float]:
    """Winners and losers with the widest smallest difference of ranks, from all candidates."""
    gap = (rank[:, None] - rank[None]).min(-1)
    widest = np.argsort(-gap, axis=None, kind="stable")[: config.per_case]
    w, l = np.unravel_index(widest[gap.ravel()[widest] > 0], gap.shape)
    return w, l, 1.0


def _dealt(cases: list[pd.DataFrame], count: int, rng: np.random.Generator) -> pd.DataFrame:
    """One pair per case and round until there are ``count``, in the order of cases and members."""
    shuffled = [pairs.iloc[rng.permutation(len(pairs))].assign(round=range(len(pairs))) for pairs in cases]
    if not cases:
        return pd.DataFrame()
    deck = pd.concat(shuffled, ignore_index=True).assign(lot=lambda d: rng.random(len(d)))
    dealt = deck.sort_values(["round", "lot"]).head(count)
    return dealt.sort_values([*CASE, "winner", "loser"]).drop(columns=["round", "lot"])


def pairs_hash(pairs: pd.DataFrame) -> str:
    """SHA-256 of the pairs: dates, draws, members, latents and which are held out."""
    times = pairs["time"].to_numpy("datetime64[s]").astype(str)
    rest = pairs[["draw", "winner", "loser", "winner_candidate", "loser_candidate", "held_out"]].astype(str).to_numpy()
    lines = (f"{time} {' '.join(row)}\n" for time, row in zip(times, rest))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def summary(pairs: pd.DataFrame, table: pd.DataFrame, config: PairsConfig, several: bool) -> dict[str, object]:
    """How many pairs and dates, for provenance."""
    train, dates = pairs[~pairs["held_out"]], table["time"].nunique()
    widened = pairs.groupby(CASE)["share"].first() > config.quantile
    return {
        "sha256": pairs_hash(pairs),
        "train": len(train),
        "wanted": config.count,
        "held_out": len(pairs) - len(train),
        "dates": int(dates),
        "dates_not_chosen": int(dates - pairs["time"].nunique()),
        "cases_widened": int(widened.sum()) if several and config.select == "intersection" else 0,
    }
