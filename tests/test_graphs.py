"""Blocks as graphs: on a CPU; of a GPU everything but torch.cuda.graph itself, by running again on the same memory."""

import gc
import threading
from collections import Counter
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lsda_fast import kernels
from lsda_fast.assimilator import Assimilator
from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.backend import Backend
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Graphs, Recording, TapeRecorder, choose_execution
from lsda_fast.engine.watch import Watch
from lsda_fast.errors import InputError
from lsda_fast.guidance import DPS, LBFGS, MMPS, Adam, GaussNewton, Huber, LatentOptimization, ObsFree, Repaint
from lsda_fast.kernels.buckets import bucket
from lsda_fast.kernels.norm_conv import kept_filters
from lsda_fast.sampler import Sampler

GUIDANCES = {
    "none": ObsFree(),
    "repaint": Repaint(),
    "dps": DPS(),
    "mmps": MMPS(iterations=2),
    "gauss_newton": LatentOptimization(GaussNewton(outer=2, cg=2)),
    "preconditioned": LatentOptimization(GaussNewton(outer=1, cg=2, precondition=2)),
    "adam": LatentOptimization(Adam(steps=2)),
}


class Rerun:
    """As a GPU records, but that it runs the block again: on the memory of the analysis that it was recorded with."""

    waits, most, parts, takes = 0, 2, 2, True

    def turn(self):
        return nullcontext()

    def record(self, block, inputs):
        with Watch(torch.device("cpu"), strict=True):
            outputs = block()

        def replay():
            for output, value in zip(outputs, block(), strict=True):
                output.copy_(value)

        return Recording(replay, list(inputs), outputs, keeps=block)


class Taped(TapeRecorder):
    """Of the first block, and as few as on a GPU."""

    waits, most, parts = 0, 2, 2


RECORDERS = {"gpu": Rerun, "cpu": Taped}


def graphs_of(assimilate, recorder):
    return Graphs(assimilate.sampler, recorder, partial(weights_of, assimilate.package))


def recorded(tiny, guidance, recorder=Taped, **settings):
    assimilate = Assimilator(tiny.package(**settings), guidance, steps=2, block=2, backend="fused")
    assimilate.engine.graphs = graphs_of(assimilate, recorder())
    return assimilate


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize(
    ("name", "conditioning"), [*((name, "concatenate") for name in GUIDANCES), ("none", "cross_attention")]
)
def test_a_replay_is_the_analysis_bit_for_bit(tiny, name, conditioning, recorder):
    """Of other backgrounds, times, observations and seeds: a graph reads nothing else of its first analysis."""
    replayed, other = (
        recorded(tiny, GUIDANCES[name], kind, conditioning=conditioning) for kind in (RECORDERS[recorder], Rerun)
    )
    replayed(tiny.background(0), tiny.table(30, seed=0), members=1)
    case = tiny.background(1), tiny.table(31, seed=1)
    again, fresh = (run(*case, members=[0, 5], seed=1) for run in (replayed, other))
    assert again.analysis.equals(fresh.analysis)
    assert again.evaluations == fresh.evaluations
    assert len(replayed.engine.graphs) == 1
    assert not replayed.engine.graphs.failure


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_block_reads_its_inputs_and_weights(tiny, name):
    assimilate = recorded(tiny, GUIDANCES[name])
    package, sampler = assimilate.package, assimilate.sampler
    case = assimilate._case(torch.zeros(package.layout.shape), torch.ones(1, 4), tiny.table(20))
    key = Key.of(0, [0, 1])
    known = [*sampler.inputs(case.prior, case.likelihood), key.members, key.seed]
    weights = weights_of(package)
    known += [*weights, *(t for weight in weights for t in kept_filters(weight)), case.prior.variance]
    with torch.no_grad(), Watch(torch.device("cpu")) as watch:
        sampler.block_of(case.prior, case.likelihood, key)
    storages = {t.untyped_storage().data_ptr() for t in known}
    assert [tuple(t.shape) for t in watch.outside if t.untyped_storage().data_ptr() not in storages] == []


def test_a_recording_is_of_one_robust_cost(tiny):
    """Its thresholds are numbers that a recording has for constants."""
    used, fresh = (recorded(tiny, GUIDANCES["gauss_newton"]) for _ in range(2))
    case, found = (tiny.background(), tiny.table(20)), []
    for run, threshold in ((used, 2.0), (used, 0.3), (fresh, 0.3)):
        run.robust = Huber(threshold)
        found.append(run(*case).analysis)
    assert not found[1].equals(found[0])
    assert found[1].equals(found[2])


class Reading:
    """Records nothing, and knows what the block read."""

    waits, most, parts, takes = 0, 1, 2, True

    def turn(self):
        return nullcontext()

    def record(self, block, inputs):
        with Watch(torch.device("cpu")) as watch:
            outputs = block()
        self.read = [StorageWeakRef(t.untyped_storage()) for t in watch.outside]
        return Recording(lambda: None, list(inputs), outputs, keeps=block)


@pytest.mark.parametrize(
    ("guidance", "precision"),
    [
        (ObsFree(), "float32"),
        (LatentOptimization(GaussNewton(1, 2)), "bfloat16"),
        (LatentOptimization(GaussNewton(1, 2), prior_covariance="diagonal"), "float32"),
    ],
)
def test_a_graph_keeps_all_that_it_reads(tiny, guidance, precision):
    assimilate = Assimilator(tiny.package(), guidance, steps=2, block=2, backend="fused", precision=precision)
    recorder = Reading()
    assimilate.engine.graphs = graphs_of(assimilate, recorder)
    assimilate(tiny.background(), tiny.table(20))
    gc.collect()
    assert recorder.read
    assert not any(storage.expired() for storage in recorder.read)


def test_what_a_graph_has_taken_is_refused_once_another_was_there(tiny):
    package = tiny.package()
    sampler = Sampler(ObsFree(), steps=2, block=2)
    graphs = Graphs(sampler, Rerun(), partial(weights_of, package))
    given = torch.randn(2, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    kept = given.clone()
    likelihood = Assimilator(package, backend="fused").likelihood(tiny.table(20))[1]
    one, other = (package.prior(z, fused=True) for z in given)
    first = sampler(one, likelihood, run=graphs).z
    assert torch.equal(sampler(one, likelihood, run=graphs).z, first)
    assert not torch.equal(sampler(other, likelihood, run=graphs).z, first)
    assert torch.equal(given, kept)
    with pytest.raises(InputError, match="whose memory a graph has used for another since; accepted: one made anew"):
        sampler(one, likelihood, run=graphs)
    assert torch.equal(sampler(package.prior(given[0], fused=True), likelihood, run=graphs).z, first)


class Counting(Rerun):
    """Counts its recordings, which are valid for as long as it says so."""

    recorded, valid = 0, True

    def record(self, block, inputs):
        self.recorded += 1
        return super().record(block, inputs)._replace(valid=lambda: self.valid)


@pytest.fixture
def counted(toy):
    """A recorder, and an analysis by what it records."""
    problem, recorder = toy.build("correlated", n=20, P=8), Counting()
    sampler = Sampler(LatentOptimization(GaussNewton(1, 3)), steps=2, block=2)
    graphs = Graphs(sampler, recorder, tuple)
    return recorder, lambda: sampler(problem.prior, problem.likelihood, members=2, run=graphs)


def test_a_recording_is_of_the_kernels_that_were_chosen(counted):
    recorder, run = counted
    run()
    run()
    assert recorder.recorded == 1
    with kernels.use("reference"):
        run()
    assert recorder.recorded == 2
    run()
    assert recorder.recorded == 2


def test_what_is_no_longer_valid_is_recorded_anew(counted):
    recorder, run = counted
    run()
    recorder.valid = False
    run()
    assert recorder.recorded == 2


class Small(Rerun):
    """A device on which there is no room for a second graph."""

    recorded = 0

    def record(self, block, inputs):
        self.recorded += 1
        if self.recorded == 2:
            raise torch.OutOfMemoryError("no room")
        return super().record(block, inputs)


def test_where_memory_is_short_graphs_give_way(tiny):
    assimilate = recorded(tiny, ObsFree())
    assimilate.engine.graphs = graphs = graphs_of(assimilate, Small())
    assimilate(tiny.background(), tiny.table(20))
    assimilate(tiny.background(), tiny.table(60))
    assert (len(graphs), graphs.failure, graphs._recorder.recorded) == (1, "", 3)


@pytest.mark.parametrize("name", GUIDANCES)
def test_padded_observations_change_nothing(tiny, name):
    """Not a bit of an observed value or product; sums over observations round in another order."""
    plain = Assimilator(tiny.package(), GUIDANCES[name], steps=2, block=2, backend="fused")
    case = tiny.background(), tiny.table(37)
    a, b = (run(*case, members=2).analysis.to_dataarray() for run in (plain, recorded(tiny, GUIDANCES[name])))
    scale = abs(a).max(("latitude", "longitude", "member"))
    assert float((abs(a - b) / scale).max()) < 2e-6


def test_padded_operators_are_the_same_bit_for_bit(tiny):
    assimilate = Assimilator(tiny.package(), backend="fused")
    _, likelihood, _ = assimilate.likelihood(tiny.table(37))
    padded = likelihood.padded(bucket)
    prior = assimilate.package.prior(torch.zeros(tiny.SHAPE), fused=True)
    assert (len(likelihood.y), len(padded.y)) == (74, 96)
    u, v = torch.randn(2, 3, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    r = torch.randn(3, 74, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        products = []
        for one, cotangent in ((likelihood, r), (padded, torch.nn.functional.pad(r, (0, 22), value=1.0))):
            (value, slope, _), (jvp, vjp) = one.linearize(prior.observe(one.operator), u)
            products.append((value, slope * jvp(v), vjp(slope * cotangent)))
    (value, tangent, gradient), (padded_value, padded_tangent, padded_gradient) = products
    assert torch.equal(padded_value[:, :74], value)
    assert torch.equal(padded_tangent[:, :74], tangent)
    assert torch.equal(padded_gradient, gradient)
    assert not padded_value[:, 74:].any()
    assert not padded_tangent[:, 74:].any()


def test_graphs_are_bounded_and_the_last_used_stay(tiny):
    assimilate = recorded(tiny, ObsFree())
    graphs = assimilate.engine.graphs
    for places in (5, 20, 5, 60, 5):
        assimilate(tiny.background(), tiny.table(places))
        assert len(graphs) <= 2
    kept = [max(shape[0] for shape, *_ in shapes if len(shape) == 1) for _, *shapes in graphs._graphs]
    assert kept == [128, 16]


def test_what_cannot_be_recorded_runs_and_says_why(tiny):
    eager = Assimilator(tiny.package(), LatentOptimization(LBFGS(steps=1)), steps=1, block=2, backend="fused")
    expected = eager(tiny.background(), tiny.table(24))
    captured = recorded(tiny, LatentOptimization(LBFGS(steps=1)))
    captured.sampler.steps = 1
    result = captured(tiny.background(), tiny.table(24))
    assert result.analysis.to_dataarray().equals(expected.analysis.to_dataarray())
    assert result.evaluations == expected.evaluations
    assert captured.engine.execution.name == "eager"
    assert "_local_scalar_dense.default in a block of members" in captured.engine.execution.reason


def test_a_recording_gives_back_what_is_its_own(toy):
    """The outputs of one replay are not the next one's."""
    problem = toy.build("correlated", n=20, P=8)
    sampler = Sampler(LatentOptimization(GaussNewton(1, 3)), steps=2, block=2)
    graphs = Graphs(sampler, Taped(), tuple)
    expected = sampler(problem.prior, problem.likelihood, members=6)
    again = sampler(problem.prior, problem.likelihood, members=6, run=graphs)
    assert torch.equal(again.z, expected.z)
    assert again.evaluations == expected.evaluations == Counter(again.evaluations)


@pytest.mark.parametrize(
    ("device", "backend", "guidance", "expected"),
    [
        ("mps", "fused", ObsFree(), ("eager", "a mps has no graphs to capture")),
        ("cpu", "fused", ObsFree(), ("graph", "a block asks nothing of the host")),
        ("cuda", "reference", ObsFree(), ("eager", "the reference backend is not captured")),
        ("cuda", "fused", LatentOptimization(LBFGS()), ("eager", "the line search of LBFGS asks the host when to end")),
        ("cuda", "fused", LatentOptimization(), ("graph", "a block asks nothing of the host")),
    ],
)
def test_what_is_captured_and_why_not(device, backend, guidance, expected):
    assert choose_execution(Backend(backend, ""), SimpleNamespace(type=device), guidance) == expected


def test_buckets():
    assert [bucket(n) for n in (0, 1, 16, 17, 24, 25, 33, 48, 49, 97, 1000)] == [
        *(0, 16, 16, 24, 24, 32, 48, 48, 64, 128, 1024)
    ]


@pytest.mark.parametrize(("recorder", "waits"), [(Rerun, True), (Taped, False)])
def test_an_analysis_ends_before_another_threads_comes_into_its_tensors(tiny, monkeypatch, recorder, waits):
    """A graph's tensors are those of the analysis that it was recorded with: to decode them is part of it."""
    assimilate = recorded(tiny, ObsFree(), recorder)
    case = tiny.background(), tiny.table(16)
    run, inside, entered = assimilate.engine.run, threading.Event(), []

    def watched(*arguments, **settings):
        entered.append(threading.get_ident())
        if entered == [threading.main_thread().ident]:
            other.start()
            entered.append(inside.wait(2 if waits else 20))
        else:
            inside.set()
        return run(*arguments, **settings)

    other = threading.Thread(target=assimilate, args=case)
    monkeypatch.setattr(assimilate.engine, "run", watched)
    assimilate(*case)
    other.join()
    assert entered[1 if waits else 2] is not waits
    assert len(entered) == 3


def test_products_of_another_precision_are_another_graph(counted):
    recorder, run = counted
    run()
    run()
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        run()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    with torch.autocast("cpu", torch.bfloat16):
        run()
    assert recorder.recorded == 3
