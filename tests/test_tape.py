"""Blocks as lists of calls: the bits of the block, for other numbers, in less memory than its results take."""

import pickle
import random
import threading
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from bench.cases.analysis import demo
from lsda_fast import kernels
from lsda_fast.assimilator import Assimilator
from lsda_fast.diffusion.noise import Key
from lsda_fast.engine import tape
from lsda_fast.engine.arena import Arena, arranged
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Graphs, TapeRecorder
from lsda_fast.engine.tape import Replay, Tape
from lsda_fast.engine.watch import HostReadError
from lsda_fast.guidance import DPS, GaussNewton, LatentOptimization, ObsFree
from lsda_fast.kernels.kept import is_kept
from lsda_fast.kernels.norm_silu import norm_silu
from lsda_fast.models import DiagonalWhitening
from lsda_fast.sampler import Sampler

SHORT = LatentOptimization(GaussNewton(outer=1, cg=2, precondition=2))


def replay_of(block, *inputs):
    """The recording of ``block(*inputs)``; recorded as it is run."""
    with torch.no_grad():
        expected = block(*inputs)
        taped = Tape(inputs)
        outputs = taped.record(lambda: block(*inputs))
        same(outputs, expected)
        return Replay(taped, inputs, outputs, Arena())


def same(outputs, expected):
    assert len(outputs) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected))


def filled(replay, *inputs):
    for own, value in zip(replay.inputs, inputs, strict=True):
        own.copy_(value)
    replay()
    return replay.outputs


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = drawn(6, 6, seed=9)


def views(x, y):
    """Results through views, and views put out."""
    a = (x @ WEIGHT[:, ::2]).unflatten(1, (3, 1)).transpose(0, 1)
    return a[1:], a.flatten(), (a * y.movedim(0, 1)[:3, :, None]).expand(2, -1, -1, -1)


def in_place(x, y):
    """Memory that is filled more than once."""
    a = torch.zeros_like(x)
    before = a + 1
    a.add_(x).mul_(2)
    a[:, 1] = y[:, 0]
    a.index_add_(0, torch.arange(2), x[:2])
    return before, a, torch.add(x, y, out=torch.empty_like(x))


def many(x, y):
    """Operations of several results, of complex numbers, without a form that fills memory, of constants."""
    values, order = x.sort(dim=1)
    spectrum = torch.fft.rfft(y, dim=1)
    low, high = y.aminmax(dim=1)
    steps = torch.linspace(0, 1, 6) * torch.ones(4, 1)
    attention = torch.nn.functional.scaled_dot_product_attention(*[x.expand(1, 2, -1, -1)] * 3)
    return values, order, (spectrum.conj() * spectrum).real, low + high, steps + x, attention, x.new_full((2,), 3.0)


def native(x, y):
    """The package's own, whose scratch and results are memory without values at first."""
    image = x.expand(2, 16, 4, 6).contiguous(memory_format=torch.channels_last)
    return (norm_silu(image, groups=4) + norm_silu(image * y[0, 0], groups=4),)


@pytest.mark.parametrize("block", [views, in_place, many, native])
def test_a_replay_has_the_bits_of_the_block(block):
    replay = replay_of(block, drawn(4, 6), drawn(4, 6, seed=1))
    for seed in (2, 3):
        x, y = drawn(4, 6, seed=seed), drawn(4, 6, seed=seed + 10)
        with torch.no_grad():
            expected = block(x, y)
        same(filled(replay, x, y), expected)


def test_gradients_within_a_block_are_recorded():
    def block(x):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad((x @ WEIGHT).square().sum(), x)

    replay = replay_of(block, drawn(4, 6))
    x = drawn(4, 6, seed=1)
    same(filled(replay, x), block(x))


def test_the_analysis_and_its_numbers_are_copied():
    x = drawn(4, 6)
    replay = replay_of(lambda x: (x * 2,), x)
    kept = x.clone()
    filled(replay, drawn(4, 6, seed=1))
    assert torch.equal(x, kept)


def test_what_does_not_vary_is_computed_once_and_while_it_is_so():
    weight = WEIGHT.clone()

    def block(x):
        level = torch.full((1, 6), 3.0)
        embedding = (level.sin() @ weight).exp()
        return (x * embedding,)

    replay = replay_of(block, drawn(4, 6))
    assert [name for name, _ in replay._calls] == ["mul"]
    assert replay.valid
    weight.add_(1)
    assert not replay.valid


def test_memory_that_something_else_is_written_to_later_is_no_constant():
    def block(x):
        a = torch.ones(4, 6)
        b = a + 1
        a.copy_(x)
        return b, a

    x = drawn(4, 6, seed=1)
    same(filled(replay_of(block, drawn(4, 6)), x), (torch.full((4, 6), 2.0), x))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (lambda x: (x * x.sum().item(),), "_local_scalar_dense"),
        (lambda x: (x[x > 0],), "whose shape depends on no value"),
        (lambda x: (x * torch.tensor(2.0),), "lift_fresh"),
        (lambda x: (x + torch.from_numpy(np.exp(x)),), "Tensor.__array__ in a block"),
        (lambda x: (x + torch.from_numpy(np.exp(x.numpy())),), "Tensor.numpy in a block"),
        (lambda x: (x.new_full((2,), sum(x[0].tolist())),), "Tensor.tolist in a block"),
        (lambda x: (x + torch.randn(4, 6),), "no random numbers but those of its key"),
    ],
)
def test_what_cannot_be_recorded_is_refused(block, words):
    x = drawn(4, 6)
    with pytest.raises(HostReadError, match=words), torch.no_grad():
        Tape([x]).record(lambda: block(x))


def test_what_is_too_long_is_not_recorded(tiny, monkeypatch):
    monkeypatch.setattr(tape, "_MOST", 50)
    assimilate = Assimilator(tiny.package(), SHORT, steps=2, block=2, backend="fused")
    for _ in range(4):
        assimilate(tiny.background(), tiny.table(16))
    assert "a block of more than 50 calls" in assimilate.engine.execution.reason
    assert assimilate.engine.execution.name == "eager"


WRITTEN = torch.ones(4, 6)


@pytest.mark.parametrize("block", [lambda x: (x.mul_(2),), lambda x: (WRITTEN.add_(x),), lambda x: (x[0].zero_(),)])
def test_a_block_that_writes_to_what_it_was_given_is_refused(block):
    x = drawn(4, 6)
    with pytest.raises(RuntimeError, match="writes to what a block was given"), torch.no_grad():
        Tape([x]).record(lambda: block(x))


def test_results_share_memory_that_lives_do_not():
    """A chain of a hundred results needs two at a time; two that are put out, and a branch, their own."""

    def block(x):
        first = y = x + 1
        for _ in range(100):
            y = y * 1.01
        return first, y

    sizes = []

    class Told(Arena):
        def of(self, size):
            sizes.append(size)
            return super().of(size)

    x = torch.zeros(1000)
    taped = Tape([x])
    with torch.no_grad():
        Replay(taped, [x], taped.record(lambda: block(x)), Told())
    assert sizes == [3 * 4032]


def test_no_two_that_live_together_share_a_byte():
    draw = random.Random(0)
    sizes = {n: draw.randrange(0, 5000) for n in range(200)}
    lives = {n: (first, first + draw.randrange(0, 20)) for n in sizes for first in [draw.randrange(0, 100)]}
    begins, size = arranged(sizes, lives)
    spans = {n: (begins[n], begins[n] + sizes[n], *lives[n]) for n in sizes}
    for n, (a, b, first, last) in spans.items():
        assert a % 64 == 0
        assert b <= size
        for m, (c, d, begin, end) in spans.items():
            assert n >= m or last < begin or end < first or b <= c or d <= a
    needed = max(sum(sizes[n] for n, (first, last) in lives.items() if first <= t <= last) for t in range(120))
    assert needed <= size <= 1.25 * needed
    assert arranged({}, {}) == ({}, 0)


def test_the_arena_grows_and_is_shared():
    arena = Arena()
    first = arena.of(100)
    assert first.nbytes() >= 100
    assert arena.of(50).data_ptr() == first.data_ptr()
    assert arena.of(10 * first.nbytes()).nbytes() >= 10 * first.nbytes()


@pytest.mark.parametrize("code", [nullcontext, partial(kernels.use, "reference")], ids=["native", "plain torch"])
def test_an_assimilator_records_the_third_block_of_a_shape(tiny, code):
    assimilate = Assimilator(tiny.package(), SHORT, steps=2, block=2, backend="fused")
    plain = Assimilator(tiny.package(), SHORT, steps=2, block=2, backend="fused")
    plain.engine.graphs = None
    graphs = assimilate.engine.graphs
    for seed, count in enumerate((0, 0, 1, 1, 1)):
        case = tiny.background(seed), tiny.table(16, seed=0)
        with code():
            found, expected = assimilate(*case, seed=seed), plain(*case, seed=seed)
        assert found.analysis.equals(expected.analysis)
        assert found.evaluations == expected.evaluations
        assert len(graphs) == count
    assert not graphs.failure
    assert assimilate.engine.execution.name == "graph"


def test_weights_that_were_written_to_are_read_anew(tiny):
    assimilate, other = (Assimilator(tiny.package(), SHORT, steps=2, block=2, backend="fused") for _ in range(2))
    case = tiny.background(), tiny.table(16)
    for _ in range(4):
        before = assimilate(*case).analysis
    for change in ("parameters", "buffers"):
        for one in (assimilate, other):
            with torch.no_grad():
                for module in one.package.modules.values():
                    for weight in getattr(module, change)():
                        weight.mul_(1.01)
        after = assimilate(*case).analysis
        assert after.equals(other(*case).analysis)
        assert not after.equals(before)
        before = after


def scaled(module):
    for parameter in module.parameters():
        parameter.mul_(1.2)


def replaced(module):
    module.load_state_dict({name: 1.2 * value for name, value in module.state_dict().items()}, assign=True)


def moved(module):
    """Into other memory and back, where there may be something else by now."""
    module.double().float()


def set_anew(module):
    for parameter in module.parameters():
        parameter.data = 1.2 * parameter.data


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [scaled, replaced, moved, set_anew, "another", "inflated"])
def test_a_package_that_was_changed_is_read_anew(tiny, change, precision):
    """What follows from its weights once an analysis, too: filters, lower precisions, variances."""
    guidance = replace(SHORT, prior_covariance="diagonal" if change == "inflated" else "isotropic")
    plain = {"whitened": False} if change == "inflated" else {}
    packages = [replace(tiny.package(), **plain) for _ in range(2)]
    if change == "inflated":
        for package in packages:
            package.modules["whitening"] = DiagonalWhitening(tiny.LATENT)
    used, other = (Assimilator(p, guidance, steps=2, block=2, precision=precision) for p in packages)
    case = tiny.background(), tiny.table(16)
    for _ in range(4):
        before = used(*case).analysis
    assert len(used.engine.graphs) == 1
    with torch.no_grad():
        for package in packages:
            if change == "another":
                package.modules["denoiser"] = deepcopy(package.modules["denoiser"])
                scaled(package.modules["denoiser"])
            elif change == "inflated":
                package.modules["whitening"].inflate(9.0)
            else:
                for name in ("autoencoder", "denoiser"):
                    change(package.modules[name])
    after = used(*case).analysis
    assert after.equals(other(*case).analysis)
    assert after.equals(before) == (change is moved)


def test_the_callers_inference_mode_changes_nothing(tiny):
    used, other = (Assimilator(tiny.package(), SHORT, steps=2, block=2, backend="fused") for _ in range(2))
    case = tiny.background(), tiny.table(16)
    with torch.inference_mode():
        for _ in range(4):
            before = used(*case).analysis
    assert len(used.engine.graphs) == 1
    assert before.equals(other(*case).analysis)
    for one in (used, other):
        with torch.no_grad():
            scaled(one.package.modules["denoiser"])
    with torch.inference_mode():
        assert used(*case).analysis.equals(other(*case).analysis)


def test_weights_whose_changes_nobody_counts_are_not_recorded(tiny):
    with torch.inference_mode():
        package = tiny.package()
    assimilate = Assimilator(package, SHORT, steps=2, block=2, backend="fused")
    for _ in range(4):
        assimilate(tiny.background(), tiny.table(16))
    assert len(assimilate.engine.graphs) == 0
    assert "inference tensors, whose changes torch does not count" in assimilate.engine.execution.reason


def test_a_kernel_without_huge_pages_has_others(monkeypatch):
    def refuses(*_, **__):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("lsda_fast.engine.arena.mmap.mmap", refuses)
    assert Arena().of(1000).nbytes() >= 1000


def test_what_is_kept_for_all_analyses_is_read_where_it_is():
    """The matrices of a covariance are most of what an analysis has."""
    case = demo()
    graphs = Graphs(Sampler(SHORT, steps=1, block=1), TapeRecorder(), partial(weights_of, case.package))
    likelihood = case.likelihood(0.01)
    for _ in range(3):
        prior = case.prior(fused=True)
        graphs._sampler(prior, likelihood, run=graphs)
    (graph,) = graphs._graphs.values()
    kept = [t for t in graphs._sampler.inputs(prior, likelihood) if is_kept(t)]
    copied = sum(t.untyped_storage().nbytes() for t in graph.recording.inputs)
    assert 10 * copied < sum(t.nbytes for t in kept)
    storages = {t.untyped_storage().data_ptr() for t in kept}
    assert not storages & {t.untyped_storage().data_ptr() for t in graph.recording.inputs}


def test_blocks_of_another_number_of_threads_are_others(tiny):
    assimilate = Assimilator(tiny.package(), ObsFree(), steps=2, block=2, backend="fused")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for _ in range(3):
                assimilate(tiny.background(), tiny.table(16))
            assert len(assimilate.engine.graphs) == count
    finally:
        torch.set_num_threads(threads)


def test_settings_that_were_changed_are_others(tiny):
    assimilate, other = (Assimilator(tiny.package(), DPS(), steps=2, block=2, backend="fused") for _ in range(2))
    for _ in range(4):
        assimilate(tiny.background(), tiny.table(16))
    assert len(assimilate.engine.graphs) == 1
    for one in (assimilate, other):
        one.sampler.steps, one.sampler.guidance = 3, DPS(gamma=1e-3)
    found, expected = (one(tiny.background(), tiny.table(16)) for one in (assimilate, other))
    assert found.analysis.equals(expected.analysis)
    with kernels.use("reference"):
        assimilate(tiny.background(), tiny.table(16))
    assert len(assimilate.engine.graphs) == 1


def test_while_one_thread_replays_another_runs_the_block(tiny):
    package = tiny.package()
    sampler = Sampler(DPS(), steps=2, block=2)
    graphs = Graphs(sampler, TapeRecorder(), partial(weights_of, package))
    prior = package.prior(torch.zeros(tiny.SHAPE), fused=True)
    likelihood = Assimilator(package, backend="fused").likelihood(tiny.table(20))[1]
    key = Key.of(0, [0, 1])
    expected = sampler.block_of(prior, likelihood, key)
    found = []
    with graphs._lock:
        for _ in range(4):
            thread = threading.Thread(target=lambda: found.append(graphs(prior, likelihood, key)))
            thread.start()
            thread.join()
    assert len(graphs) == 0
    assert [torch.equal(estimate.z0, expected.z0) for estimate in found] == [True] * 4


@pytest.mark.parametrize("copied", [deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_no_graphs_yet(tiny, copied):
    sampler = Sampler(ObsFree(), steps=2, block=2)
    package = tiny.package()
    graphs = Graphs(sampler, TapeRecorder(), partial(weights_of, package))
    likelihood = Assimilator(package, backend="fused").likelihood(tiny.table(20))[1]
    for _ in range(3):
        sampler(package.prior(torch.zeros(tiny.SHAPE), fused=True), likelihood, run=graphs)
    assert len(graphs) == 1
    assert len(copied(graphs)) == 0


def test_a_profiler_sees_the_calls():
    replay = replay_of(native, drawn(4, 6), drawn(4, 6, seed=1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        replay()
    assert {name for name, _ in replay._calls} <= {event.key for event in profiled.key_averages()}


def test_in_plain_torch_what_an_operation_is_made_of_is_recorded():
    with kernels.use("reference"):
        replay = replay_of(native, drawn(4, 6), drawn(4, 6, seed=1))
    assert not any(name.startswith("lsda::") for name, _ in replay._calls)
    x, y = drawn(4, 6, seed=2), drawn(4, 6, seed=3)
    with torch.no_grad(), kernels.use("reference"):
        expected = native(x, y)
    same(filled(replay, x, y), expected)
