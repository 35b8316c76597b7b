"""How fast is every operation, in each kind of native code and in plain torch, against what the device can do?

Times are of the device alone, with cold caches. ``of_roof`` is the least time that the ceilings of this run allow for
the operation's bytes, or for its arithmetic where that takes longer, over the measured time; the rate of the matrix
units is that of the precision (TF32 is not used for float32). ``over_torch`` is torch's time over the operation's.
"""

from collections.abc import Iterator

import torch

from bench.cases.operation import Draw
from bench.gpu.ceilings import Ceilings
from bench.gpu.device import Times
from bench.gpu.run import OutOfTime, Row, Run, because
from bench.gpu.workloads import WORKLOADS, Sizes, Workload
from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import registry

__all__ = ["rows"]

DTYPES = (torch.float32, torch.bfloat16)


def rows(run: Run) -> Iterator[Row]:
    """One row an operation, size, precision and implementation."""
    kernels.report()
    sizes = Sizes.dry() if run.dry else Sizes()
    for name in sorted(set(registry.OPERATIONS) - set(WORKLOADS)):
        yield {"operation": name, "ok": False, "error": "no workload in bench/gpu/workloads.py"}
    for name in sorted(set(registry.OPERATIONS) & set(WORKLOADS)):
        if run.left() < 3:
            yield {"operation": name, "skipped": "no time left"}
            continue
        for workload in WORKLOADS[name](sizes, Draw(0, run.device.place, torch.float32)):
            for dtype in DTYPES:
                yield from _timed(run, name, workload, dtype)


def _timed(run: Run, name: str, workload: Workload, dtype: torch.dtype) -> Iterator[Row]:
    torch_ms = None
    for implementation in ("reference", *registry.kinds_on(run.device.place)):
        labels = {
            "operation": name,
            "what": workload.what,
            "dtype": str(dtype).removeprefix("torch."),
            "implementation": "torch" if implementation == "reference" else implementation,
        }
        if implementation != "reference" and implementation not in registry.OPERATIONS[name].natives:
            continue
        try:
            ms = _measure(run, workload, dtype, implementation)
        except InputError as error:
            yield {**labels, "refused": because(error)}
            continue
        except OutOfTime:
            raise
        except Exception as error:
            yield {**labels, "ok": False, "error": because(error)}
            continue
        torch_ms = ms.p50 if implementation == "reference" else torch_ms
        yield {**labels, **_figures(run, workload, dtype, ms), "over_torch": torch_ms and round(torch_ms / ms.p50, 2)}


def _measure(run: Run, workload: Workload, dtype: torch.dtype, implementation: str) -> Times:
    with kernels.use(implementation), run.device.precision("float32"):
        function, inputs = workload.case.prepare(dtype, run.device.place)
        return run.device.times(lambda: function(*inputs), 15)


def _figures(run: Run, workload: Workload, dtype: torch.dtype, ms: Times) -> Row:
    moved, seconds = workload.moved(dtype.itemsize), 1e-3 * ms.p50
    rate = "bfloat16" if dtype == torch.bfloat16 else "float32"
    share, bound = Ceilings(run).share(seconds, moved, workload.flops, rate)
    return {
        "ms": ms._asdict(),
        "gb_per_s": round(1e-9 * moved / seconds, 2),
        "tflop_per_s": round(1e-12 * workload.flops / seconds, 3),
        "of_roof": round(share, 4),
        "bound": bound,
    }
