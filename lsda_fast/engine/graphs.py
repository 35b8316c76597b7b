"""A block of members as a CUDA graph: its thousands of launches become one.

A graph reads and writes fixed memory. The tensors of the analysis that it was recorded with (``Sampler.inputs``), and
the members and seed of its noise, become its own; a later block of the same shapes is copied into them, and the graph
is replayed. Observation counts are rounded up (``Likelihood.padded``), so that shapes come again. The prior and the
likelihood that a graph was recorded with belong to it from then on, with all else that they read: it keeps them, and
refuses them once another analysis was copied over theirs.

What records is a ``Recorder``: ``CudaRecorder`` on a GPU; ``Rerun`` anywhere, which runs the same function on the same
memory again, and so shows that nothing else is read.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.backend import Backend
from lsda_fast.engine.watch import Watch
from lsda_fast.errors import InputError
from lsda_fast.guidance import Estimate, Guidance, Likelihood
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler

__all__ = ["CudaRecorder", "Execution", "Graphs", "Recorder", "Rerun", "choose_execution"]

Block = Callable[[], tuple[Tensor, ...]]
Recording = tuple[Callable[[], None], tuple[Tensor, ...]]


class Execution(NamedTuple):
    """``graph`` or ``eager``, and why."""

    name: str
    reason: str


def choose_execution(backend: Backend, device: torch.device, guidance: Guidance) -> Execution:
    """How blocks are run."""
    if device.type != "cuda":
        return Execution("eager", f"a {device.type} has no graphs to capture")
    if backend.name != "fused":
        return Execution("eager", f"the {backend.name} backend is not captured")
    if guidance.obstacle:
        return Execution("eager", guidance.obstacle)
    return Execution("graph", "a block asks nothing of the host")


class Recorder(Protocol):
    """Records a function of fixed memory."""

    def record(self, block: Block) -> Recording:
        """How to replay it, and its outputs, whose memory every replay fills anew."""


class Rerun:
    """Records by running, replays by running again: for a machine without a GPU."""

    def record(self, block: Block) -> Recording:
        """See ``Recorder``."""
        outputs = block()

        def replay() -> None:
            for output, value in zip(outputs, block(), strict=True):
                output.copy_(value)

        return replay, outputs


class CudaRecorder:
    """CUDA graphs that share one pool of memory of their own: no two are replayed at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, block: Block) -> Recording:
        """See ``Recorder``. Everything is compiled, tuned and given its workspace before the capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            block()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side):
            outputs = block()
        return graph.replay, outputs


class _Graph(NamedTuple):
    """What is replayed, with the block that it was recorded from, which keeps alive whatever the graph reads.

    ``lent``: places of the inputs that hold the numbers of another analysis.
    """

    inputs: list[Tensor]
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]
    evaluations: Counter[str]
    block: Block
    lent: set[int]


class Graphs:
    """Recorded blocks of one sampler with one package; a ``run`` of ``Sampler``.

    Parameters
    ----------
    sampler : Sampler
    recorder : Recorder
    most : int
        Graphs that are kept, those used last.

    Attributes
    ----------
    failure : str
        Why a block was run without a graph, the last time that one was.
    """

    def __init__(self, sampler: Sampler, recorder: Recorder, *, most: int = 4) -> None:
        self._sampler, self._recorder, self._most = sampler, recorder, most
        self._graphs: dict[tuple, _Graph | None] = {}
        self.failure = ""

    def __len__(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, prior: Prior, likelihood: Likelihood, key: Key) -> Estimate:
        """One block of members; without a graph where it cannot be recorded.

        Raises
        ------
        InputError
            A prior or likelihood that a graph has taken, after another analysis.
        """
        inputs = [*self._sampler.inputs(prior, likelihood), key.members, key.seed]
        shapes = tuple((tuple(t.shape), t.stride(), t.dtype) for t in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(prior, likelihood, key, inputs)
        graph = self._graphs[shapes] = self._graphs.pop(shapes)
        if graph is None:
            return self._sampler.block_of(prior, likelihood, key)
        while len(self) > self._most:
            del self._graphs[next(shapes for shapes, graph in self._graphs.items() if graph)]
        for place, (own, value) in enumerate(zip(graph.inputs, inputs, strict=True)):
            if own is not value:
                own.copy_(value)
                graph.lent.add(place)
            elif place in graph.lent:
                raise InputError(
                    "the prior or likelihood of an earlier analysis came, whose memory a graph has used for another "
                    "since; accepted: one made anew"
                )
        graph.replay()
        prior.evaluations.update(graph.evaluations)
        return Estimate(*(output.clone() for output in graph.outputs))

    def _record(self, prior: Prior, likelihood: Likelihood, key: Key, inputs: list[Tensor]) -> _Graph | None:
        """The graph of a block; nothing, and ``failure``, where it cannot be recorded."""
        own = replace(prior, evaluations=Counter())

        def block() -> tuple[Tensor, ...]:
            estimate = self._sampler.block_of(own, likelihood, key)
            return tuple(t for t in (estimate.z0, estimate.mean) if t is not None)

        try:
            with Watch(prior.device, strict=True):
                block()
            evaluations = Counter(own.evaluations)
            replay, outputs = self._recorder.record(block)
            return _Graph(inputs, replay, outputs, evaluations, block, set())
        except RuntimeError as error:
            short = isinstance(error, torch.OutOfMemoryError)
            self.failure = " ".join(str(error).split())
        if not (short and len(self)):
            return None
        # What graphs keep is free, but not for the runs before a capture.
        self._graphs = {shapes: graph for shapes, graph in self._graphs.items() if graph is None}
        self.failure = ""
        torch.cuda.empty_cache()
        return self._record(prior, likelihood, key, inputs)
