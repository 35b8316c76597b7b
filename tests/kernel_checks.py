"""What every native operation is held to, written once: accuracy, determinism, poison, registration."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lsda_fast import kernels
from lsda_fast.kernels import native

__all__ = ["SINGLE", "assert_as_accurate", "assert_bitwise_stable", "flat", "isas", "poisoned", "same_bits", "threads"]

SINGLE = torch.float32
Call = Callable[[], Tensor | Sequence[Tensor]]


def isas() -> list[str]:
    """The instruction sets of this processor; skips the test where the native module is not built."""
    if native.load("cpu").missing:
        pytest.skip(native.load("cpu").missing)
    return native.load("cpu").code.build_info()["isas"]


def flat(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def same_bits(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> bool:
    """Equal as bits: NaN is itself, and -0 is not 0."""
    kinds = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
    return all(
        torch.equal(x.view(kinds[x.dtype]), y.view(kinds[y.dtype])) for x, y in zip(flat(a), flat(b), strict=True)
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def poisoned() -> Iterator[None]:
    """Every tensor from torch.empty is full of NaN."""
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("default")


def assert_as_accurate(
    call: Callable[[torch.dtype], Tensor | Sequence[Tensor]], kind: str = "cpu", without: Sequence[str] = ()
) -> None:
    """Native float32 is at most 3 times as far from float64 as torch: on NaN-filled memory, on each instruction set.

    Of those of the processor; the ones that the operation does not have are named.
    """
    with kernels.use("reference"):
        exact, plain = flat(call(torch.float64)), flat(call(torch.float32))
    first = None
    for isa in [isa for isa in isas() if isa not in without] if kind == "cpu" else [None]:
        with kernels.use(kind, isa=isa), poisoned():
            fast = flat(call(torch.float32))
            double = flat(call(torch.float64))
        for x, p, f, d in zip(exact, plain, fast, double, strict=True):
            scale = float(x.abs().max()) if x.numel() else 0.0
            error = float((f.double() - x).abs().max()) if x.numel() else 0.0
            allowed = 3 * float((p.double() - x).abs().max()) if x.numel() else 0.0
            assert f.shape == p.shape
            assert f.is_contiguous()
            assert error <= allowed, f"{kind} {isa}: {error:.2e} from float64, torch {allowed / 3:.2e}"
            torch.testing.assert_close(d, x, rtol=1e-13, atol=1e-13 * scale)
        if first is not None:
            assert same_bits(fast, first), f"{isa} gives other bits than the first"
        first = first or fast


def assert_bitwise_stable(call: Call, repeats: int = 200) -> None:
    """C++ gives the same bits again and again, on 1, 2 and 3 threads."""
    isas()
    with kernels.use("cpu"):
        with threads(1):
            first = [t.clone() for t in flat(call())]
            assert all(same_bits(call(), first) for _ in range(repeats))
        for count in (2, 3):
            with threads(count):
                assert all(same_bits(call(), first) for _ in range(repeats // 20)), f"{count} threads"
