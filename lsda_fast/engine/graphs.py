"""A block of members recorded: its thousands of operations become one call.

A recording reads and writes fixed memory: on a GPU a CUDA graph, on a CPU a list of calls (``engine.tape``). A later
block of the same shapes is copied into it, and replayed. Observation counts are rounded up (``Likelihood.padded``), so
that shapes come again.

A CUDA graph takes the tensors of the analysis that it was recorded with (``Sampler.inputs``), and the members and seed
of its noise, for its own. The prior and the likelihood belong to it from then on, with all else that they read: it
keeps them, and refuses them once another analysis was copied over theirs. A tape has copies.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from threading import Lock, RLock
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.arena import Arena
from lsda_fast.engine.backend import Backend
from lsda_fast.engine.capture import captured, warm_up
from lsda_fast.engine.tape import Replay, Tape
from lsda_fast.engine.watch import Watch
from lsda_fast.errors import InputError
from lsda_fast.guidance import Estimate, Guidance, Likelihood
from lsda_fast.kernels.buckets import bucket
from lsda_fast.kernels.kept import State, is_kept, state_of, unchanged
from lsda_fast.kernels.registry import forced
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler

__all__ = [
    "CudaRecorder",
    "Execution",
    "Graphs",
    "Recorder",
    "Recording",
    "TapeRecorder",
    "choose_execution",
    "recorder_on",
    "settings_of",
]

_SEEN = 256  # shapes that are remembered

Block = Callable[[], tuple[Tensor, ...]]


class Execution(NamedTuple):
    """``graph`` or ``eager``, and why."""

    name: str
    reason: str


class Recording(NamedTuple):
    """How to run a block again.

    Parameters
    ----------
    replay : callable
    inputs : list of Tensor
        What a replay reads of an analysis.
    outputs : tuple of Tensor
        What it fills anew.
    computed : bool
        Whether to record computed the block.
    valid : callable
        Whether all else that a replay reads is as it was.
    keeps : object
        Whatever it needs to stay alive.
    """

    replay: Callable[[], None]
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    computed: bool = False
    valid: Callable[[], bool] = lambda: True
    keeps: Any = None


class Recorder(Protocol):
    """Records a function of fixed memory.

    Parameters
    ----------
    waits : int
        Blocks of a shape that are run as they are before the next is recorded.
    most : int
        Recordings that are kept, those used last.
    parts : int
        How finely observation counts are rounded up (``kernels.buckets``).
    takes : bool
        Whether a recording has the tensors of the analysis that it was made with for its own.
    """

    waits: ClassVar[int]
    most: ClassVar[int]
    parts: ClassVar[int]
    takes: ClassVar[bool]

    def record(self, block: Block, inputs: Sequence[Tensor]) -> Recording:
        """RuntimeError where it cannot be recorded."""

    def turn(self) -> AbstractContextManager[None]:
        """A block in which one recording is filled, replayed and read, after the last one was."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory of their own: no two are replayed at the same time.

    The pool is shared between captures on one stream, which is therefore one for all.
    """

    waits: ClassVar[int] = 0
    most: ClassVar[int] = 4
    parts: ClassVar[int] = 2
    takes: ClassVar[bool] = True

    def __init__(self) -> None:
        self._side: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None
        self._pool: tuple[int, int] | None = None
        self._made: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def record(self, block: Block, inputs: Sequence[Tensor]) -> Recording:
        """See ``Recorder``. Everything is compiled, tuned and given its workspace before the capture."""
        with torch.cuda.device(inputs[0].device):
            with Watch(inputs[0].device, strict=True):
                block()
            side = self._side = self._side or torch.cuda.Stream()
            warm_up(block, side)
            # A pool that all graphs have left is not to be entered again.
            pool = self._pool if self._pool and self._made else torch.cuda.graph_pool_handle()
            self._pool = None
            graph, outputs = captured(block, side, pool)
            self._pool = pool
            self._made.add(graph)
        return Recording(graph.replay, list(inputs), outputs, keeps=block)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See ``Recorder``; also where callers have streams of their own."""
        if self._side is None:
            yield
            return
        with torch.cuda.device(self._side.device):
            if self._done is None:
                self._done = torch.cuda.Event()
            else:
                torch.cuda.current_stream().wait_event(self._done)
            yield
            self._done.record()


class TapeRecorder:
    """Lists of calls on a CPU, which share their memory.

    To record costs what some replays gain: what is asked for once or twice is not. A CPU works on what is filled up.
    """

    waits: ClassVar[int] = 2
    most: ClassVar[int] = 16
    parts: ClassVar[int] = 8
    takes: ClassVar[bool] = False

    def __init__(self) -> None:
        self._arena = Arena()

    def turn(self) -> AbstractContextManager[None]:
        """See ``Recorder``: a CPU does what it is told when it is."""
        return nullcontext()

    def record(self, block: Block, inputs: Sequence[Tensor]) -> Recording:
        """See ``Recorder``."""
        tape = Tape(inputs)
        outputs = tape.record(block)
        replay = Replay(tape, inputs, outputs, self._arena)
        return Recording(replay, replay.inputs, replay.outputs, True, lambda: replay.valid)


def recorder_on(device: torch.device) -> Recorder:
    """What records on a device."""
    return CudaRecorder() if device.type == "cuda" else TapeRecorder()


def choose_execution(backend: Backend, device: torch.device, guidance: Guidance) -> Execution:
    """How blocks are run."""
    if device.type not in ("cpu", "cuda"):
        return Execution("eager", f"a {device.type} has no graphs to capture")
    if backend.name != "fused":
        return Execution("eager", f"the {backend.name} backend is not captured")
    if guidance.obstacle:
        return Execution("eager", guidance.obstacle)
    return Execution("graph", "a block asks nothing of the host")


def settings_of(sampler: Sampler, likelihood: Likelihood) -> tuple:
    """What decides, besides shapes, which operations a block is."""
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul
    return (
        repr(vars(sampler)),
        repr(likelihood.robust),
        forced(),
        *(product.fp32_precision for product in products),
        torch.is_autocast_enabled(likelihood.y.device.type),
    )


class _Graph(NamedTuple):
    """A recording, and a run's evaluations; ``lent``: places of its inputs with the numbers of another analysis."""

    recording: Recording
    evaluations: Counter[str]
    lent: set[int]


class Graphs:
    """Recorded blocks of one sampler with one package; a ``run`` of ``Sampler``.

    A recording serves blocks of its shapes, with the settings that the sampler and ``kernels.use`` had for it, as long
    as the package's weights are the same tensors and are not written to (through ``.data``: nobody can tell).

    One block runs at a time; another thread's, meanwhile, is run without a graph.

    Parameters
    ----------
    sampler : Sampler
    recorder : Recorder
    weights : callable
        The tensors of the package's networks.

    Attributes
    ----------
    failure : str
        Why a block was run without a graph, the last time that one could not be recorded.
    """

    def __init__(self, sampler: Sampler, recorder: Recorder, weights: Callable[[], Iterable[Tensor]]) -> None:
        self._sampler, self._recorder, self._weights = sampler, recorder, weights
        self._state: State | None = None
        self._graphs: dict[Any, _Graph | None] = {}  # None: cannot be recorded
        self._seen: dict[Any, int] = {}  # how often, those of late
        self._lock, self._whole = Lock(), RLock()
        self.failure = ""

    def __len__(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def __reduce__(self) -> tuple:
        """A copy, or one in another process, has no graphs yet."""
        return _without, (self._sampler, type(self._recorder), self._weights)

    def alone(self) -> AbstractContextManager[Any]:
        """A block in which no other thread's analysis comes into the tensors that a graph took from this one."""
        return self._whole if self._recorder.takes else nullcontext()

    def padded(self, likelihood: Likelihood) -> Likelihood:
        """Filled up, so that its shapes come again."""
        return likelihood.padded(partial(bucket, parts=self._recorder.parts))

    def __call__(self, prior: Prior, likelihood: Likelihood, key: Key) -> Estimate:
        """One block of members; without a graph where it cannot be recorded.

        Raises
        ------
        InputError
            A prior or likelihood that a graph has taken, after another analysis.
        """
        if not self._lock.acquire(blocking=False):
            return self._sampler.block_of(prior, likelihood, key)
        try:
            return self._run(prior, likelihood, key)
        finally:
            self._lock.release()

    def _run(self, prior: Prior, likelihood: Likelihood, key: Key) -> Estimate:
        if not self._same_weights():
            return self._sampler.block_of(prior, likelihood, key)
        tensors = [*self._sampler.inputs(prior, likelihood), key.members, key.seed]
        # What is kept for all analyses is read where it is; where it is made anew there is another recording.
        kept, inputs = ([t for t in tensors if is_kept(t) == either] for either in (True, False))
        settings = *settings_of(self._sampler, likelihood), torch.get_num_threads(), *map(id, kept)
        shapes = (settings, *((tuple(t.shape), t.stride(), t.dtype) for t in inputs))
        graph = self._graphs.get(shapes)
        if graph and not graph.recording.valid():
            del self._graphs[shapes]
        done: Estimate | None = None
        if shapes not in self._graphs:
            self._seen[shapes] = self._seen.pop(shapes, 0) + 1
            _keep_latest(self._seen)
            if self._seen[shapes] <= self._recorder.waits:
                return self._sampler.block_of(prior, likelihood, key)
            self._graphs[shapes], done = self._record(prior, likelihood, key, inputs)
            _keep_latest(self._graphs)
        graph = self._graphs[shapes] = self._graphs.pop(shapes)
        if graph is None:
            return self._sampler.block_of(prior, likelihood, key)
        while len(self) > self._recorder.most:
            del self._graphs[next(shapes for shapes, graph in self._graphs.items() if graph)]
        prior.evaluations.update(graph.evaluations)
        if done:
            return done
        with self._recorder.turn():
            _fill(graph, inputs)
            graph.recording.replay()
            return Estimate(*(output.clone() for output in graph.recording.outputs))

    def _same_weights(self) -> bool:
        """Whether recordings are of the weights as they are: those of others are dropped; False where none can be."""
        weights = list(self._weights())
        if self._state is None or not unchanged(self._state, weights):
            self._graphs.clear()
            self._state = state_of(weights)
            if self._state is None:
                self.failure = "weights that are inference tensors, whose changes torch does not count"
        return self._state is not None

    def _record(
        self, prior: Prior, likelihood: Likelihood, key: Key, inputs: list[Tensor]
    ) -> tuple[_Graph | None, Estimate | None]:
        """The graph of a block; nothing, and ``failure``, where it cannot be recorded. What was computed on the way."""
        own = replace(prior, evaluations=Counter())
        estimates: list[Estimate] = []

        def block() -> tuple[Tensor, ...]:
            own.evaluations.clear()
            estimate = self._sampler.block_of(own, likelihood, key)
            estimates[:] = [estimate]
            return tuple(t for t in (estimate.z0, estimate.mean) if t is not None)

        try:
            recording = self._recorder.record(block, inputs)
            graph = _Graph(recording, Counter(own.evaluations), set())
            return graph, estimates.pop() if recording.computed else None
        except RuntimeError as error:
            short = isinstance(error, torch.OutOfMemoryError)
            self.failure = " ".join(str(error).split())
        if not (short and len(self)):
            return None, None
        # What graphs keep is free, but not for the runs before a capture.
        self._graphs = {shapes: graph for shapes, graph in self._graphs.items() if graph is None}
        self.failure = ""
        torch.cuda.empty_cache()
        return self._record(prior, likelihood, key, inputs)


def _keep_latest(found: dict[Any, Any]) -> None:
    while len(found) > _SEEN:
        del found[next(iter(found))]


def _fill(graph: _Graph, inputs: Sequence[Tensor]) -> None:
    """An analysis into a graph's inputs; InputError where it is one that a graph has taken, after another."""
    for place, (own, value) in enumerate(zip(graph.recording.inputs, inputs, strict=True)):
        if own is not value:
            own.copy_(value)
            graph.lent.add(place)
        elif place in graph.lent:
            raise InputError(
                "the prior or likelihood of an earlier analysis came, whose memory a graph has used for another since; "
                "accepted: one made anew"
            )


def _without(sampler: Sampler, recorder: Callable[[], Recorder], weights: Callable[[], Iterable[Tensor]]) -> Graphs:
    return Graphs(sampler, recorder(), weights)
