"""Does an analysis take the memory that its plan says? Within 10 %, and the workspaces of the device's libraries.

``predicted`` and ``measured`` are the most bytes beyond the networks, from the table of observations to the members'
states.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.cases.analysis import Twin
from bench.gpu.models import FRACTION, Setting, observed, twins
from bench.gpu.run import Row, Run
from lsda_fast.assimilator import Assimilator

__all__ = ["rows"]

MEMBERS = {"built-in": (1, 8, 32, 128), "papers": (1, 8), "tiny": (1, 2)}
WITHIN = 0.1


def rows(run: Run) -> Iterator[Row]:
    """One row a package, precision and number of members."""
    for package, twin in twins(run):
        for setting in (Setting("fused", "bfloat16"), Setting("fused", "float32")):
            with setting.active(run):
                for members in MEMBERS[package]:
                    labels = {"package": package, **setting._asdict(), "members": members}
                    yield run.attempt(labels, partial(_compared, run, twin, setting, members), least=6)


def _compared(run: Run, twin: Twin, setting: Setting, members: int) -> Row:
    def analyse(assimilate: Assimilator, members: int) -> Tensor:
        likelihood = observed(assimilate, twin)
        prior, samples, _ = setting.samples(assimilate, twin, likelihood, members)
        return torch.cat([prior.decode(z[None]) for z in samples.z])

    if not run.dry:
        analyse(setting.assimilator(run, twin), 1)  # what is loaded and compiled once is not the analysis'
    # No graph yet: the memory that one keeps is not counted when it is replayed, nor here what a CPU's would keep.
    assimilate = setting.assimilator(run, twin)
    plan = assimilate.plan(observations=twin.observations(FRACTION), members=members)
    predicted = replace(plan, execution="eager").peak - plan.weights
    measured = run.device.peak(partial(analyse, assimilate, members))
    off = max(0, abs(measured - predicted) - run.device.workspace) / predicted
    return {
        "chunk": plan.chunk,
        "execution": assimilate.engine.execution.name,
        "predicted": predicted,
        "measured": measured,
        "ratio": round(measured / predicted, 4),
        "off": round(off, 4),
        "ok": off <= WITHIN,
    }
