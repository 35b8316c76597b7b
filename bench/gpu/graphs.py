"""Whole blocks of members as CUDA graphs: the bits of the same block launched one operation after the other.

Every guidance that can be captured is: first with one background, its observations, members and seed, then replayed
with others. The block never waits for the device. ``idle`` is the share of a replay in which no kernel runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bench.cases.analysis import GUIDANCES, Twin
from bench.gpu.accuracy import differing
from bench.gpu.device import Device
from bench.gpu.models import FRACTION, Setting, method, twins
from bench.gpu.run import Row, Run, because
from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Block, Graphs, Recorder, Recording
from lsda_fast.guidance import Guidance, Likelihood
from lsda_fast.kernels.buckets import bucket
from lsda_fast.sampler import Sampler

__all__ = ["Kept", "idle", "rows"]

MEMBERS = 2


@dataclass
class Kept:
    """A recorder that keeps how its last recording is replayed."""

    recorder: Recorder
    replay: Callable[[], None] = lambda: None
    waits: ClassVar[int] = 0
    most: ClassVar[int] = 4
    parts: ClassVar[int] = 2
    takes: ClassVar[bool] = True

    def turn(self) -> AbstractContextManager[None]:
        """See ``Recorder``."""
        return self.recorder.turn()

    def record(self, block: Block, inputs: Sequence[Tensor]) -> Recording:
        """See ``Recorder``."""
        recording = self.recorder.record(block, inputs)
        self.replay = recording.replay
        return recording


def idle(device: Device, call: Callable[[], None], repeats: int) -> Row:
    """A call's milliseconds, kernels, and the share of its time in which none runs; None where none is seen."""
    ms, (busy, kernels) = device.times(call, repeats), device.busy(call)
    share = round(max(0.0, 1 - 1e3 * busy / ms.p50), 4) if kernels else None
    return {"ms": ms.p50, "kernels": kernels, "idle": share}


def rows(run: Run) -> Iterator[Row]:
    """One row a package and guidance: of the built-in package all, of the others the method that is timed."""
    for package, twin in twins(run):
        run.device.release()
        few = {"LO-SDA": method(run.dry)[0]}
        for name, guidance in (few if package == "papers" else {**few, **GUIDANCES}).items():
            labels = {"package": package, "guidance": name}
            if guidance.obstacle:
                yield {**labels, "captured": False, "why": guidance.obstacle}
                continue
            yield run.attempt(labels, partial(_compared, run, twin, guidance), least=5)


def _compared(run: Run, twin: Twin, guidance: Guidance) -> Row:
    setting, kept = Setting("fused", "bfloat16"), Kept(run.device.recorder())
    sampler = Sampler(guidance, steps=1 if run.dry else 2, block=MEMBERS)
    graphs = Graphs(sampler, kept, partial(weights_of, twin.package))
    with setting.active(run):
        errors = [] if run.dry else _waits(run, setting, sampler, twin)
        eager = [_sample(setting, sampler, twin, case, None) for case in (0, 1)]
        # The first records, the second replays with everything else, the third with the first's again.
        for case in (0, 1) if run.dry else (0, 1, 0):
            found = _sample(setting, sampler, twin, case, graphs)
            if int(differing([found], [eager[case]])):
                errors.append(f"case {case}: the graph's bits differ")
        if graphs.failure or len(graphs) != 1:
            errors.append(graphs.failure or f"{len(graphs)} graphs for one shape")
            return {"captured": False, "ok": False, "errors": errors}
        return {
            "captured": True,
            "ok": not errors,
            "errors": errors,
            **idle(run.device, kept.replay, 1 if run.dry else 5),
        }


def _case(twin: Twin, case: int) -> tuple[Tensor, Likelihood]:
    """A background, and observations with other values: made anew, for a graph overwrites what it was recorded with."""
    x_b, likelihood = twin.normalized(), twin.likelihood(FRACTION)
    noise = torch.randn(x_b.shape, generator=torch.Generator().manual_seed(case)).to(x_b)
    likelihood.y.add_(0.1 * case)
    return x_b + 0.1 * case * noise, likelihood.padded(bucket)


def _sample(setting: Setting, sampler: Sampler, twin: Twin, case: int, graphs: Graphs | None) -> Tensor:
    x_b, likelihood = _case(twin, case)
    members = range(case * MEMBERS, (case + 1) * MEMBERS)
    return sampler(setting.about(twin, x_b), likelihood, members=list(members), seed=case, run=graphs).z


def _waits(run: Run, setting: Setting, sampler: Sampler, twin: Twin) -> list[str]:
    """Why the host waits for the device, in a block that has run before."""
    x_b, likelihood = _case(twin, 0)
    prior = setting.about(twin, x_b)
    key = Key.of(0, range(MEMBERS), antithetic=sampler.guidance.antithetic, device=prior.device)
    sampler.inputs(prior, likelihood)
    sampler.block_of(prior, likelihood, key)
    try:
        with run.device.unsynchronized():
            sampler.block_of(prior, likelihood, key)
    except RuntimeError as error:
        return [f"it waits: {because(error)}"]
    return []
