"""The plan of an analysis is what the analysis does then."""

from dataclasses import replace

import pytest
import torch

from lsda_fast.assimilator import Assimilator
from lsda_fast.diffusion import Langevin
from lsda_fast.engine import engine
from lsda_fast.engine.footprint import Footprint, choose_chunk
from lsda_fast.engine.watch import Watch
from lsda_fast.guidance import DPS, LBFGS, MMPS, Adam, GaussNewton, LatentOptimization, ObsFree, Repaint
from lsda_fast.members import even_chunk

PRECONDITIONED = LatentOptimization(GaussNewton(outer=1, cg=2, halvings=1, precondition=2))
CASES = {
    "none": (ObsFree(), {"steps": 5, "solver": "heun"}, 3),
    "corrected": (ObsFree(), {"steps": 4, "corrector": Langevin(rounds=1)}, 2),
    "repaint": (Repaint(), {"steps": 2}, 2),
    "dps": (DPS(), {"steps": 2, "block": 2}, [0, 5]),
    "mmps": (MMPS(iterations=2), {"steps": 1}, 1),
    "preconditioned": (PRECONDITIONED, {"steps": 1, "block": 3}, 4),
    "adam": (LatentOptimization(Adam(steps=2)), {"steps": 1}, 2),
    "tweedie": (LatentOptimization(GaussNewton(outer=1, cg=2), prior_covariance="tweedie"), {"steps": 1}, 2),
}


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "fused") for name in CASES), ("none", "reference"), ("dps", "reference")]
)
def test_a_run_is_as_planned(tiny, name, backend):
    guidance, settings, members = CASES[name]
    assimilate = Assimilator(tiny.package(), guidance, backend=backend, **settings)
    observations = tiny.table(20)
    plan = assimilate.plan(observations=observations, members=members, background=tiny.background())
    with Watch(torch.device("cpu")) as watch:
        result = assimilate(tiny.background(), observations, members=members)
    assert plan.exact
    assert plan.evaluations == dict(result.evaluations)
    assert replace(plan, execution="eager").peak - plan.weights == pytest.approx(watch.peak, rel=0.1)
    assert plan.chunk == result.analysis.attrs["members_in_a_block"]
    eager = guidance.obstacle or backend == "reference"
    assert (plan.backend, plan.execution) == (backend, "eager" if eager else "graph")
    assert plan.levels == settings["steps"]
    assert plan.observations == 40


def test_what_prepares_an_analysis_counts_whoever_asks_first(tiny):
    """The memory plan of a GPU fits the tangent before the sampler does."""
    assimilate = Assimilator(tiny.package(), PRECONDITIONED, steps=1, block=2)
    runs = []
    for choose in (False, True):
        assimilate.engine._by_memory = choose
        runs.append(assimilate(tiny.background(), tiny.table(20), members=2).evaluations)
    assert runs[0] == runs[1]


def test_the_background_changes_nothing_and_is_not_needed(tiny):
    assimilate = Assimilator(tiny.package(), DPS(), steps=1)
    plans = [assimilate.plan(observations=tiny.table(20), background=b) for b in (None, tiny.background(3))]
    assert plans[0].evaluations == plans[1].evaluations
    assert plans[0].peak == pytest.approx(plans[1].peak, rel=0.02)


def test_a_search_that_may_end_early_is_planned_at_its_longest(tiny):
    assimilate = Assimilator(tiny.package(), LatentOptimization(LBFGS(steps=1)), steps=1)
    plan = assimilate.plan(observations=tiny.table(20))
    done = assimilate(tiny.background(), tiny.table(20)).evaluations
    assert not plan.exact
    assert "at most decoder" in str(plan)
    assert all(plan.evaluations[kind] >= done[kind] for kind in done)


def test_settings_that_were_changed_are_planned_anew(tiny):
    assimilate = Assimilator(tiny.package(), DPS(), steps=2)
    before = assimilate.plan(observations=tiny.table(16))
    assimilate.sampler.steps = 6
    after = assimilate.plan(observations=tiny.table(16))
    assert after.evaluations == {name: 3 * count for name, count in before.evaluations.items()}


def test_what_is_recorded_on_a_cpu_stays(tiny):
    plan = Assimilator(tiny.package(), PRECONDITIONED, steps=2, block=2).plan(observations=tiny.table(20), members=8)
    stays = plan.kept + plan.block
    assert plan.execution == "graph"
    assert plan.peak == plan.weights + stays + max(plan.preparation, plan.kept + plan.states)
    assert replace(plan, device="cuda:0").peak == replace(plan, execution="eager").peak < plan.peak


def test_what_a_plan_says(tiny):
    text = str(Assimilator(tiny.package(), ObsFree(), steps=3, block=4).plan(observations=tiny.table(5), members=6))
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "backend",
        "device",
        "members",
        "observations",
        "noise levels",
        "evaluations",
        "peak memory",
        "execution",
    ]
    assert "6, 4 at a time" in text
    assert "denoiser 24" in text
    assert "cpu, matrix products in float32" in text
    assert "graph: a block asks nothing of the host" in text


def test_a_chunk_holds_the_members_or_what_memory_allows():
    one = Footprint(1000.0, 100.0, None)
    assert [choose_chunk(one, members, 10**9) for members in (1, 2, 3, 8, 500)] == [1, 2, 4, 8, 64]
    assert choose_chunk(one, 500, 2000) == 8
    assert choose_chunk(one, 500, 0) == 1


def test_chunks_are_even_and_smaller_of_large_latents():
    assert [even_chunk(members, 1000) for members in (1, 16, 17, 20, 40)] == [1, 16, 9, 10, 14]
    assert [even_chunk(8, latents) for latents in (2**16, 2**17, 2**18, 2**19, 2**24)] == [8, 4, 2, 1, 1]


def test_on_a_gpu_the_chunk_follows_members_and_memory(tiny, monkeypatch):
    assimilate = Assimilator(tiny.package(), ObsFree(), steps=2)
    assimilate.engine._by_memory = True
    plan = assimilate.plan(observations=tiny.table(5), members=6)
    assert plan.chunk == 8
    assert plan.evaluations == {"denoiser": 16}
    monkeypatch.setattr(engine, "free_memory", lambda device: 1)
    result = assimilate(tiny.background(), tiny.table(5), members=2)
    assert result.analysis.attrs["members_in_a_block"] == 1
    assert result.evaluations == {"denoiser": 4}
