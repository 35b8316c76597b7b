"""How the blocks of a sampler are run on a machine: how large, as graphs or one operation after the other; the plan."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from typing import Any

import torch

from lsda_fast.engine.backend import Backend
from lsda_fast.engine.footprint import (
    Footprint,
    choose_chunk,
    footprint,
    free_memory,
    state_bytes,
    total,
    weight_bytes,
    weights_of,
)
from lsda_fast.engine.graphs import Execution, Graphs, choose_execution, recorder_on, settings_of
from lsda_fast.engine.plan import Plan
from lsda_fast.engine.watch import Watch
from lsda_fast.guidance import Likelihood
from lsda_fast.members import member_numbers
from lsda_fast.package import Package
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler, Samples, Step

__all__ = ["Engine"]


class Engine:
    """Runs the sampler of one package.

    Parameters
    ----------
    package : Package
    sampler : Sampler
    backend : Backend
    by_memory : bool
        Whether blocks on a GPU are as large as members and memory make worthwhile, instead of the sampler's.

    Attributes
    ----------
    graphs : Graphs or None
        None where blocks are not captured. Where they are, observations have to be padded (``Likelihood.padded``) for
        graphs to be of use again.
    """

    def __init__(self, package: Package, sampler: Sampler, backend: Backend, *, by_memory: bool = False) -> None:
        self._package, self._sampler, self._backend = package, sampler, backend
        self._by_memory = by_memory and package.device.type == "cuda"
        self._footprints: dict[tuple, Footprint] = {}
        self._execution = choose_execution(backend, package.device, sampler.guidance)
        self.graphs: Graphs | None = None
        if self._execution.name == "graph":
            self.graphs = Graphs(sampler, recorder_on(package.device), partial(weights_of, package))

    @property
    def execution(self) -> Execution:
        """How blocks are run."""
        if self.graphs is not None and self.graphs.failure:
            return Execution("eager", self.graphs.failure)
        return self._execution

    def alone(self) -> AbstractContextManager[Any]:
        """A block for one analysis, from its run to its states; others wait where recordings take its tensors."""
        return nullcontext() if self.graphs is None else self.graphs.alone()

    def run(
        self,
        prior: Prior,
        likelihood: Likelihood,
        *,
        members: int | Sequence[int],
        seed: int,
        recenter: bool,
        on_step: Callable[[Step], None] | None,
    ) -> tuple[Samples, int]:
        """See ``Sampler``; the samples, and how many members a block had."""
        prior.evaluations.clear()
        sampler = self._sized(prior, likelihood, members)
        prepared = Counter(prior.evaluations)
        run = None if on_step else self.graphs
        samples = sampler(prior, likelihood, members=members, seed=seed, recenter=recenter, on_step=on_step, run=run)
        samples.evaluations.update(prepared)
        return samples, sampler.chunk(prior, len(samples.members))

    @torch.no_grad()
    def plan(
        self,
        prepare: Callable[[], tuple[Prior, Likelihood, int]],
        members: int | Sequence[int],
        precision: torch.dtype,
    ) -> Plan:
        """The plan of the analysis that ``prepare`` makes: prior, likelihood, and its number of observations."""
        numbers, device = member_numbers(members), self._package.device

        def prepared() -> tuple[Prior, Likelihood, int]:
            prior, likelihood, size = prepare()
            self._sampler.guidance.prepare(prior, likelihood)
            return prior, likelihood, size

        with self._backend.kernels():
            if device.type == "cpu":
                prepared()  # what the package keeps for other analyses is not this one's
            with Watch(device) as watch:
                prior, likelihood, size = prepared()
            sampler = self._sized(prior, likelihood, members)
            chunk = sampler.chunk(prior, len(numbers))
            one = self._footprint(prior, likelihood, chunk)
            return Plan.of(
                self._backend,
                self.execution,
                device=str(device),
                precision=str(precision).removeprefix("torch."),
                members=len(numbers),
                observations=size,
                levels=len(sampler.levels(prior)),
                chunk=chunk,
                evaluations=total(one.evaluations, prior.evaluations, chunk, numbers),
                exact=sampler.guidance.exact,
                weights=weight_bytes(self._package),
                preparation=watch.peak,
                kept=watch.live,
                block=one.block(chunk),
                states=state_bytes(prior, len(numbers)),
            )

    def _footprint(self, prior: Prior, likelihood: Likelihood, block: int) -> Footprint:
        """Of blocks of this size; where memory is to choose the size, of any."""
        sizes = (2, 4) if self._by_memory else (block,)
        settings = settings_of(self._sampler, likelihood)
        shapes = (sizes, settings, *(tuple(t.shape) for t in self._sampler.inputs(prior, likelihood)))
        if shapes not in self._footprints:
            self._footprints[shapes] = footprint(self._sampler, prior, likelihood, sizes)
        return self._footprints[shapes]

    def _sized(self, prior: Prior, likelihood: Likelihood, members: int | Sequence[int]) -> Sampler:
        """The sampler with the size of block that these members are to have."""
        if not self._by_memory:
            return self._sampler
        sampler, count = copy(self._sampler), len(member_numbers(members))
        one = self._footprint(prior, likelihood, count)
        sampler.block = choose_chunk(one, count, free_memory(self._package.device))
        return sampler
