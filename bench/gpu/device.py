"""The device that is measured, behind one class: an NVIDIA GPU, and the CPU as its twin for dry runs.

Sections ask for times, peak memory, captured graphs and the like, and never which of the two answers. The twin's
answers mean nothing but that the code around them works.
"""

import gc
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch

from lsda_fast.engine.capture import captured, warm_up
from lsda_fast.engine.graphs import CudaRecorder, Recorder, TapeRecorder
from lsda_fast.engine.watch import Watch

__all__ = ["Cpu", "Cuda", "Device", "Times"]

Call = Callable[[], Any]

_FLUSH = 256 * 2**20  # bytes, several times the L2 of any GPU
_SLEEP, _LONGEST = 4_000_000, 500_000_000  # cycles, 2 ms and a quarter of a second: so far the host gets ahead
_CYCLES = 2e9  # a second, or more than there are
_GROUP = 5  # calls that it gets ahead for


class Times(NamedTuple):
    """Quantiles of a call's milliseconds."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, ms: list[float]) -> "Times":
        """Of these measurements."""
        low, *_, high = statistics.quantiles(ms, n=5, method="inclusive") if len(ms) > 1 else ms * 2
        return cls(*(round(value, 5) for value in (low, statistics.median(ms), high)))


class Device(ABC):
    """See the module."""

    name: ClassVar[str]
    workspace: ClassVar[int] = 0  # bytes that libraries may take besides

    @property
    def place(self) -> torch.device:
        """Where tensors go."""
        return torch.device(self.name)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all is done."""

    @abstractmethod
    def times(self, call: Call, repeats: int) -> Times:
        """Time alone, caches cold, without what the host needs to launch it."""

    @abstractmethod
    def peak(self, call: Call) -> int:
        """Most bytes that tensors hold at once during the call, beyond what lies there before."""

    @abstractmethod
    def capture(self, call: Call) -> tuple[Call, Any]:
        """A graph of the call, to replay, and the outputs that a replay fills."""

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured, which nothing may cut short."""
        return False

    @abstractmethod
    def recorder(self) -> Recorder:
        """What records whole blocks."""

    @abstractmethod
    def busy(self, call: Call) -> tuple[float, int]:
        """Seconds of the call in which a kernel runs, and how many kernels."""

    @abstractmethod
    def unsynchronized(self) -> Any:
        """A context in which waiting for the device is an error."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Device, driver and clocks."""

    @abstractmethod
    def release(self) -> None:
        """Give back the memory of what is no longer used."""

    def seconds(self, call: Call) -> float:
        """Wall clock of the call until all is done."""
        self.synchronize()
        begin = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - begin

    @contextmanager
    def precision(self, name: str) -> Iterator[None]:
        """Of matrix products and convolutions: float32, tf32, or bfloat16 with the rest in float32."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        try:
            with torch.autocast(self.name, torch.bfloat16, enabled=name == "bfloat16"):  # or off, within another
                yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


class Cuda(Device):
    """An NVIDIA GPU."""

    name = "cuda"
    workspace = 2**26

    def __init__(self) -> None:
        self._flush = torch.empty(_FLUSH, dtype=torch.int8, device=self.place)
        self._side = torch.cuda.Stream()
        # Bits are compared, and a convolution may be one that has others every time.
        torch.backends.cudnn.deterministic = True

    def synchronize(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize()

    def times(self, call: Call, repeats: int) -> Times:
        """By events; the device first sleeps, so that it never waits for the host between two of them."""
        ms: list[float] = []
        call()
        # What the host needs for a group of calls is no more than they take.
        ahead = int(min(max(_SLEEP, _GROUP * self.seconds(call) * _CYCLES), _LONGEST))
        while len(ms) < repeats:
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(min(_GROUP, repeats))]
            self.synchronize()
            torch.cuda._sleep(ahead)
            for start, end in events:
                self._flush.zero_()
                start.record()
                call()
                end.record()
            self.synchronize()
            ms += [start.elapsed_time(end) for start, end in events]
        return Times.of(ms)

    def peak(self, call: Call) -> int:
        """As torch's allocator counts."""
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def capture(self, call: Call) -> tuple[Call, Any]:
        """After warming up on a stream of its own."""
        warm_up(call, self._side)
        graph, outputs = captured(call, self._side, torch.cuda.graph_pool_handle())
        return graph.replay, outputs

    @property
    def capturing(self) -> bool:
        """See ``Device``."""
        return torch.cuda.is_current_stream_capturing()

    def recorder(self) -> Recorder:
        """CUDA graphs."""
        return CudaRecorder()

    def busy(self, call: Call) -> tuple[float, int]:
        """By torch's profiler; what runs at the same time counts once."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            call()
            self.synchronize()
        on_device = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        end, busy = 0.0, 0.0
        for span in sorted((e.time_range for e in on_device), key=lambda span: span.start):
            busy += max(0.0, span.end - max(span.start, end))
            end = max(end, span.end)
        return 1e-6 * busy, len(on_device)

    def release(self) -> None:
        """What torch keeps, too."""
        gc.collect()
        torch.cuda.empty_cache()

    @contextmanager
    def unsynchronized(self) -> Iterator[None]:
        """By torch's own check."""
        self.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def facts(self) -> dict[str, Any]:
        """From torch and nvidia-smi."""
        gpu = torch.cuda.get_device_properties(0)
        return {
            "device": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **_smi("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu"),
        }


class Cpu(Device):
    """The twin."""

    name = "cpu"

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def times(self, call: Call, repeats: int) -> Times:
        """By the wall clock, once."""
        return Times.of([1e3 * self.seconds(call)])

    def peak(self, call: Call) -> int:
        """As the package's own watch counts."""
        with Watch(self.place) as watch:
            call()
        return watch.peak

    def capture(self, call: Call) -> tuple[Call, Any]:
        """The call itself, into the outputs of the first time."""
        outputs = call()

        def replay() -> None:
            for old, new in zip(_flat(outputs), _flat(call()), strict=True):
                old.copy_(new)

        return replay, outputs

    def recorder(self) -> Recorder:
        """Lists of calls."""
        return TapeRecorder()

    def release(self) -> None:
        """It goes by itself."""

    def busy(self, call: Call) -> tuple[float, int]:
        """All of it."""
        return self.seconds(call), 1

    def unsynchronized(self) -> Any:
        """Nothing is forbidden."""
        return nullcontext()

    def facts(self) -> dict[str, Any]:
        """Instruction set and threads."""
        return {"device": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def _flat(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def _smi(*fields: str) -> dict[str, str]:
    """What nvidia-smi says; nothing where it is not there."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.splitlines()[0].split(","))))
