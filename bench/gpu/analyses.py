"""Whole analyses, fused against the reference: every guidance and inner solver, in float32 and bfloat16.

In float32 the two differ by rounding: less than 1e-4 of the largest value, and than 2e-3 of a channel's standard
deviation. Where float32 itself is no better, the fused one is at most 3 times as far from the reference in float64 as
the reference is (``from_double``, largest distances). In bfloat16 the fused one may be as far from the reference in
float32 as 3 times the reference in bfloat16.
"""

import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.cases.analysis import GUIDANCES, Twin
from bench.gpu.accuracy import LIMIT
from bench.gpu.models import FRACTION, Setting, twins
from bench.gpu.run import Row, Run
from lsda_fast import kernels
from lsda_fast.guidance import Guidance
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler

__all__ = ["rows"]

FEW = ("preconditioned", "dps", "none")
MEMBERS = 2


def rows(run: Run) -> Iterator[Row]:
    """One row a package and guidance: of the built-in package all, of the others a few."""
    for package, twin in twins(run):
        for name, guidance in GUIDANCES.items():
            if package != "built-in" and name not in FEW:
                continue
            labels = {"package": package, "guidance": name}
            yield run.attempt(labels, partial(_compared, run, twin, guidance), least=5)


def _compared(run: Run, twin: Twin, guidance: Guidance) -> Row:
    begin = time.monotonic()
    states = {
        (backend, precision): _analysis(run, twin, guidance, Setting(backend, precision))
        for backend in ("reference", "fused")
        for precision in ("float32", "bfloat16")
    }
    reference = states["reference", "float32"]
    largest, difference = float(reference.abs().max()), float((states["fused", "float32"] - reference).abs().max())
    half = {
        backend: float((states[backend, "bfloat16"] - reference).square().mean().sqrt())
        for backend in ("fused", "reference")
    }
    same, close = difference < min(1e-4 * largest, 2e-3), half["fused"] <= LIMIT * half["reference"]
    rounding = {}
    if not same:
        double = twin.double()
        with kernels.use("reference"):
            exact = _states(run, double.prior(), double, guidance)
        rounding = {b: float((states[b, "float32"] - exact).abs().max()) for b in ("reference", "fused")}
        same = rounding["fused"] <= LIMIT * rounding["reference"]
    return {
        "ok": same and close,
        "float32": {"difference": difference, "largest": largest, "ok": same, "from_double": rounding},
        "bfloat16": {**half, "ok": close},
        "seconds": round(time.monotonic() - begin, 2),
    }


def _analysis(run: Run, twin: Twin, guidance: Guidance, setting: Setting) -> Tensor:
    with setting.active(run):
        return _states(run, setting.prior(twin), twin, guidance)


def _states(run: Run, prior: Prior, twin: Twin, guidance: Guidance) -> Tensor:
    """Those of the members, decoded in the package's precision."""
    z = Sampler(guidance, steps=1 if run.dry else 2, block=MEMBERS)(
        prior, twin.likelihood(FRACTION), members=MEMBERS, seed=0
    ).z
    with run.device.precision("float32"), torch.no_grad():
        return prior.decode(z.to(prior.dtype)).cpu()
