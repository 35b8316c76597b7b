"""How fast are the networks: the denoiser, and value, J v and J' u of the observed decoder, against the matrix rate?

Of the fused backend in bfloat16, as launched from Python and captured as a graph; a replay must have the bits of the
call. The operations are those of matrix products, convolutions and attention, as torch counts them: what the head and
the observation operator do comes on top, and is little.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cases.analysis import Twin
from bench.gpu.accuracy import differing
from bench.gpu.ceilings import Ceilings
from bench.gpu.models import FRACTION, Setting, twins
from bench.gpu.run import Row, Run, because
from lsda_fast.kernels import window_attention  # noqa: F401  torch.ops.lsda has it then
from lsda_fast.prior import Derivative

__all__ = ["parts", "rows"]

Measure = Callable[[Run, Callable[[], Tensor]], Row]


def _attention(products: int, *shapes: Any, **rest: Any) -> int:
    """That of so many products of a window's scores or weights with its tokens."""
    B, L, _, H, d = next(shape for shape in shapes if shape is not None and len(shape) == 5)
    return 2 * products * B * H * L * L * d


# What is done again in the tiles of a derivative does not count.
ATTENTION = {
    torch.ops.lsda.window_attention: partial(_attention, 2),
    torch.ops.lsda.window_attention_jvp: partial(_attention, 4),
    torch.ops.lsda.window_attention_vjp: partial(_attention, 4),
}


def rows(run: Run) -> Iterator[Row]:
    """Two rows a package, number of members and part: launched and captured."""
    for package, twin in twins(run):
        for members in (2,) if run.dry else (1, 8, 16, 32):
            run.device.release()
            yield from _of_members(run, package, twin, members)


def _of_members(run: Run, package: str, twin: Twin, members: int) -> Iterator[Row]:
    # What is made here, which may be most of the memory, ends with it.
    setting = Setting("fused", "bfloat16")
    labels = {"package": package, **setting._asdict(), "members": members}
    with setting.active(run):
        for part, call_of in parts(twin, setting, members).items():
            for measure in (_launched, _captured):
                yield run.attempt({**labels, "part": part}, partial(_fitting, run, measure, call_of), least=5)


def parts(twin: Twin, setting: Setting, members: int) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    """The networks as functions of nothing, by what makes them ready."""
    prior, operator = setting.prior(twin), twin.likelihood(FRACTION).operator
    z = torch.randn(members, *prior.latent_shape, device=prior.device)
    observed, level = prior.observe(operator), prior.schedule.level(0.5)
    # At the published size it holds 4 GiB a member.
    at = cache(partial(Derivative.of, observed, z))
    return {
        "denoiser": lambda: partial(prior.denoise, z, level),
        "decoder value": lambda: lambda: Derivative.of(observed, z).value,
        "decoder jvp": lambda: partial(at().jvp, z),
        "decoder vjp": lambda: partial(at().vjp, at().value),
    }


def _fitting(run: Run, measure: Measure, call_of: Callable[[], Callable[[], Tensor]]) -> Row:
    """Skipped where memory is short: the members that an analysis has at once are fewer then, too."""
    try:
        return measure(run, call_of())
    except torch.OutOfMemoryError as error:
        return {"skipped": because(error)}


def _launched(run: Run, call: Callable[[], Tensor]) -> Row:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        call()
    return {"captured": False, **_rates(run, counter.get_total_flops(), call)}


def _captured(run: Run, call: Callable[[], Tensor]) -> Row:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        eager = call().clone()
    with run.device.unsynchronized():
        call()
    replay, output = run.device.capture(call)
    output.fill_(float("nan"))
    replay()
    same = int(differing([output], [eager])) == 0
    return {"captured": True, "ok": same, **_rates(run, counter.get_total_flops(), replay)}


def _rates(run: Run, flops: float, call: Callable[[], Any]) -> Row:
    ms = run.device.times(call, 1 if run.dry else 10)
    share, _ = Ceilings(run).share(1e-3 * ms.p50, 0.0, flops, "bfloat16")
    return {"ms": ms._asdict(), "tflop_per_s": round(1e-9 * flops / ms.p50, 2), "of_matrix_rate": round(share, 4)}
