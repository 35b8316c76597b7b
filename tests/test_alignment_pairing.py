"""Pairs from reward tables made by hand: ties, empty intersections, duplicates, dates that share evenly."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from lsda_fast.alignment.config import PairsConfig
from lsda_fast.alignment.pairing import pairs_hash, select_pairs, summary
from lsda_fast.errors import InputError

Rows = dict[str, list[float]]


def table(*dates: Rows, latents: list[str] | None = None) -> pd.DataFrame:
    """One date per argument, a day apart, each with rewards by name."""
    parts = []
    for day, rewards in enumerate(dates):
        n = len(next(iter(rewards.values())))
        names = latents or [f"{day} {member}" for member in range(n)]
        parts.append(
            pd.DataFrame(
                {"time": pd.Timestamp(2001, 12, 1 + day), "draw": 0, "member": range(n), "candidate": names, **rewards}
            )
        )
    return pd.concat(parts, ignore_index=True)


def pairs_of(found: pd.DataFrame, day: int = 1) -> set[tuple[int, int]]:
    rows = found[found["time"] == pd.Timestamp(2001, 12, day)]
    return set(zip(rows["winner"], rows["loser"]))


def choose(frame: pd.DataFrame, rewards: str = "a", **settings: Any) -> pd.DataFrame:
    return select_pairs(frame, list(rewards), PairsConfig(held_out=0.1, **settings), seed=0)


LAST: Rows = {"a": [0.0, 1.0, 2.0, 3.0], "b": [0.0, 1.0, 2.0, 3.0]}


def test_one_reward_pairs_the_best_with_the_worst() -> None:
    found = choose(table({"a": [0.1, 0.9, 0.5, 0.7, 0.3]}, {"a": LAST["a"]}), top=2)
    assert pairs_of(found) == {(1, 0), (1, 4), (3, 0), (3, 4)}
    assert pairs_of(found, 2) == {(2, 0), (2, 1), (3, 0), (3, 1)}
    assert found.groupby("time")["held_out"].all().tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.5, 0.5, 0.5], set()),
        ([0.5, 0.5, 0.5, 0.1], {(0, 3), (1, 3)}),
        ([0.9, 0.5, 0.5, 0.5], {(0, 2), (0, 3)}),
    ],
)
def test_a_tie_is_no_preference(values: list[float], expected: set[tuple[int, int]]) -> None:
    # Of equal ones the order of the latents' hashes decides who is among the top two.
    frame = table({"a": values}, {"a": LAST["a"]}, {"a": LAST["a"]}, latents=["z", "y", "x", "w"])
    assert pairs_of(choose(frame, top=2)) == expected


@pytest.mark.parametrize("select", ["intersection", "dominance"])
def test_a_tie_by_one_of_two_rewards_is_no_preference(select: str) -> None:
    frame = table({"a": LAST["a"], "b": [0.5, 0.5, 0.5, 0.5]}, LAST, LAST)
    assert pairs_of(choose(frame, "ab", select=select)) == set()


def test_several_rewards_pair_what_is_best_and_worst_by_all() -> None:
    frame = table({"a": [0, 1, 2, 3, 4, 5, 6, 7], "b": [1, 0, 3, 2, 5, 4, 6, 7]}, LAST, LAST)
    assert pairs_of(choose(frame, "ab", quantile=0.25)) == {(w, l) for w in (6, 7) for l in (0, 1)}
    # An eighth holds one candidate: the best by both is 7, the worst are different ones.
    widened = choose(frame, "ab", quantile=0.125)
    assert pairs_of(widened) == {(w, l) for w in (6, 7) for l in (0, 1)}
    shares = widened.groupby("time")["share"].first()
    assert shares.iloc[0] == pytest.approx(0.1875)
    assert pairs_of(choose(frame, "ab", quantile=0.125, widest=0.15)) == set()
    report = summary(widened, frame, PairsConfig(quantile=0.125), several=True)
    assert (report["cases_widened"], report["dates_not_chosen"], report["dates"]) == (1, 0, 3)


def test_dominance_takes_the_pairs_that_differ_most_by_their_least_reward() -> None:
    frame = table({"a": [0, 1, 2, 3, 4], "b": [1, 2, 0, 4, 3]}, LAST, LAST)
    gaps = {(3, 0): 3, (4, 0): 2, (3, 1): 2, (4, 1): 1, (3, 2): 1, (4, 2): 2, (1, 0): 1}
    for count in (1, 4, 20):
        expected = {pair for pair, gap in gaps.items() if gap >= {1: 3, 4: 2, 20: 1}[count]}
        assert pairs_of(choose(frame, "ab", select="dominance", per_case=count)) == expected
    shuffled = choose(frame.sample(frac=1, random_state=1), "ab", select="dominance", per_case=5)
    pd.testing.assert_frame_equal(shuffled, choose(frame, "ab", select="dominance", per_case=5))


def test_backgrounds_of_a_date_are_cases_of_their_own_and_held_out_together() -> None:
    frame = table(*[LAST] * 4)
    both = pd.concat([frame, frame.assign(draw=1, candidate="other " + frame["candidate"])])
    found = choose(both, top=1)
    assert found[["draw", "winner", "loser"]].drop_duplicates().to_numpy().tolist() == [[0, 3, 0], [1, 3, 0]]
    kept = found.groupby("time")["held_out"].agg(["size", "any", "all"])
    assert kept.to_numpy().tolist() == [[2, False, False]] * 3 + [[2, True, True]]
    other = found[["winner_candidate", "loser_candidate"]].apply(lambda names: names.str.startswith("other"))
    assert (other.nunique(axis=1) == 1).all()


def test_a_date_without_an_intersection_takes_no_part() -> None:
    against: Rows = {"a": [0, 1, 2, 3], "b": [3, 2, 1, 0]}
    frame = table(against, LAST, LAST)
    found = choose(frame, "ab")
    assert pairs_of(found) == set()
    assert summary(found, frame, PairsConfig(), several=True)["dates_not_chosen"] == 1
    with pytest.raises(InputError, match=r"no pairs to train on in 2 dates: .* by all of a, b; accepted are a wider"):
        choose(table(against, against, LAST), "ab")
    with pytest.raises(InputError, match="no pairs to validate with in 1 dates"):
        choose(table(LAST, against), "ab")


def test_the_same_latents_are_paired_once() -> None:
    frame = table({"a": [0, 0.1, 0.8, 0.9]}, {"a": LAST["a"]}, latents=["l", "l", "w", "w"])
    found = choose(frame, top=2)
    assert pairs_of(found) == {(2, 0)}
    same = table({"a": [0, 0.1, 0.8, 0.9]}, {"a": LAST["a"]}, latents=["s", "s", "s", "s"])
    with pytest.raises(InputError, match="no pairs to train on"):
        choose(same, top=2)


def many(dates: int = 8, members: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return table(*({"a": rng.random(members).tolist()} for _ in range(dates)))


def test_dates_share_evenly() -> None:
    poor = table({"a": [0.0, 1.0]}, *({"a": list(range(12))} for _ in range(5)))
    found = choose(poor, top=4, count=41)
    counts = found[~found["held_out"]].groupby("time").size()
    assert counts.tolist() == [1, 10, 10, 10, 10]
    assert choose(poor, top=4, count=10**6)["held_out"].value_counts().tolist() == [4 * 16 + 1, 16]


def test_pairs_held_out_are_their_share_of_all() -> None:
    found = choose(many(dates=10), top=4, count=27)
    assert found["held_out"].value_counts().to_dict() == {False: 27, True: 3}


def test_pairs_depend_on_the_table_and_the_seed_alone() -> None:
    frame = many()
    found = choose(frame, top=4, count=30)
    shuffled = choose(frame.sample(frac=1, random_state=1), top=4, count=30)
    pd.testing.assert_frame_equal(found, shuffled)
    assert pairs_hash(found) == pairs_hash(shuffled)
    other = select_pairs(frame, ["a"], PairsConfig(top=4, count=30, held_out=0.1), seed=1)
    assert pairs_hash(other) != pairs_hash(found)
    renamed = found.assign(winner_candidate=found["winner_candidate"] + "x")
    assert pairs_hash(renamed) != pairs_hash(found)


def test_a_reward_that_is_not_in_the_table() -> None:
    with pytest.raises(InputError, match="has no b; its columns are time, draw, member, candidate, a"):
        choose(many(), "ab")
