"""CUDA graphs on a ``torch.cuda`` that is made up: one stream and pool, replays in order, captures that fail."""

import gc
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from lsda_fast.engine.graphs import CudaRecorder


class Cuda:
    """torch.cuda as far as captures go: which stream is the current one, and which pools are captured into."""

    def __init__(self, monkeypatch, *, ends=True):
        self.current, self.ends, self.log, self.pools, self.open = "caller", ends, [], 0, []
        names = ("graph", "CUDAGraph", "graph_pool_handle", "current_stream", "set_stream", "current_device", "Stream")
        for name in (*names, "Event", "device", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(torch._C, name, getattr(self, name), raising=False)

    def _graph_pool_handle(self):
        self.pools += 1
        return 0, self.pools

    def _graph(self, graph, pool, stream, capture_error_mode):
        @contextmanager
        def capture():
            before, self.current = self.current, stream
            assert pool not in self.open
            self.open.append(pool)
            self.log.append((pool, stream))
            try:
                yield
            finally:
                if not self.ends:
                    raise RuntimeError("operation failed due to a previous error during capture")
                self.open.remove(pool)
                self.current = before

        return capture()

    def _cuda_endAllocateToPool(self, device, pool):
        if pool not in self.open:
            raise RuntimeError("not currently recording to it")
        self.open.remove(pool)

    def _cuda_releasePool(self, device, pool):
        self.log.append(("released", pool))

    def _Stream(self):
        self.log.append("stream")
        return SimpleNamespace(wait_stream=lambda other: None, device=torch.device("cpu"))

    def _Event(self):
        return SimpleNamespace(record=lambda: self.log.append("record"))

    def _current_stream(self):
        wait = lambda event: self.log.append("wait")  # noqa: E731
        return SimpleNamespace(name=self.current, wait_event=wait, wait_stream=lambda other: None)

    def _set_stream(self, stream):
        self.current = stream.name

    _current_device = staticmethod(lambda: 0)
    _device = _stream = staticmethod(lambda place: nullcontext())

    class _CUDAGraph:
        def replay(self):
            pass


def sums(x):
    return lambda: (x + 1,)


def test_graphs_share_a_stream_and_a_pool_while_one_of_them_is_there(monkeypatch):
    cuda, x, recorder = Cuda(monkeypatch), torch.zeros(2), CudaRecorder()
    with recorder.turn():
        pass
    one, two = recorder.record(sums(x), [x]), recorder.record(sums(x), [x])
    (first, side), (second, again) = [entry for entry in cuda.log if entry != "stream"]
    assert (first, side) == (second, again)
    assert cuda.log.count("stream") == 1
    del one, two
    gc.collect()
    recorder.record(sums(x), [x])
    assert cuda.log[-1] == ((0, 2), side)


def test_a_replay_waits_for_the_last_on_whatever_stream(monkeypatch):
    cuda, x, recorder = Cuda(monkeypatch), torch.zeros(2), CudaRecorder()
    recorder.record(sums(x), [x])
    for _ in range(2):
        with recorder.turn():
            cuda.log.append("replay")
    assert cuda.log[2:] == ["replay", "record", "wait", "replay", "record"]


@pytest.mark.parametrize("ends", [True, False])
def test_a_capture_that_fails_leaves_neither_its_stream_nor_its_pool_behind(monkeypatch, ends):
    cuda, x, recorder, calls = Cuda(monkeypatch), torch.zeros(2), CudaRecorder(), []
    kept = recorder.record(sums(x), [x])

    def block():
        calls.append(cuda.current)
        if len(calls) == 3:
            raise RuntimeError("what is not allowed")
        return (x + 1,)

    cuda.ends = ends
    with pytest.raises(RuntimeError, match="what is not allowed"):
        recorder.record(block, [x])
    assert (cuda.current, cuda.open) == ("caller", [])
    assert (("released", (0, 1)) in cuda.log) is not ends
    cuda.ends = True
    recorder.record(sums(x), [x])
    assert cuda.log[-1][0] == (0, 2)
    del kept
