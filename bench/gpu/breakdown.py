"""Where the time of an analysis goes: denoiser, decoder derivatives, their stand-in, operator, updates, and idle.

The prior's parts are wrapped in ranges of torch's profiler. A kernel counts for the innermost part that launched it:
the native operations of observations and head for the operator, else the range it is in; what is in none is an update.
Idle is the time in which none runs: from the first to the last of those launched one by one, or, where the plan says
graph, in its replay, of which the parts are then shares too. On the CPU, operators' own times stand in.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.cases.analysis import Twin
from bench.gpu.graphs import Kept, idle
from bench.gpu.models import FRACTION, Setting, twins
from bench.gpu.run import Row, Run
from lsda_fast.assimilator import Assimilator
from lsda_fast.diffusion.noise import Key
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Graphs
from lsda_fast.guidance import Likelihood
from lsda_fast.kernels.buckets import bucket
from lsda_fast.prior import Derivative, Differentiable, Gram, OfTimes, Prior, ToTimes

__all__ = ["rows"]

RANGES = {"bench.denoiser": "denoiser", "bench.decoder": "decoder derivatives", "bench.tangent": "stand-in"}
OPERATORS = ("lsda::obs_", "lsda::head_")


def rows(run: Run) -> Iterator[Row]:
    """One row a package and number of members."""
    setting = Setting("fused", "bfloat16")
    for package, twin in twins(run):
        with setting.active(run):
            assimilate = setting.assimilator(run, twin)
            for members in (1,) if run.dry else (1, 32):
                labels = {"package": package, **setting._asdict(), "members": members}
                yield run.attempt(labels, partial(_block, run, assimilate, twin, setting, members), least=8)


def _block(run: Run, assimilate: Assimilator, twin: Twin, setting: Setting, members: int) -> Row:
    """Of one block of the plan's size, and executed as it says."""
    observations = twin.observations(FRACTION)
    plan = assimilate.plan(observations=observations, members=members)
    sampler, kept = assimilate.sampler, Kept(run.device.recorder())
    key = Key.of(0, range(plan.chunk), antithetic=sampler.guidance.antithetic, device=run.device.place)

    def case() -> tuple[Prior, Likelihood]:
        likelihood = assimilate.likelihood(observations)[1].padded(bucket)
        prior = ranged(setting.prior(twin))
        sampler.inputs(prior, likelihood)
        return prior, likelihood

    launched = partial(sampler.block_of, *case(), key)
    launched()
    row = {"chunk": plan.chunk, "execution": plan.execution, **_profiled(run, launched)}
    if plan.execution == "graph" or run.dry:
        graphs = Graphs(sampler, kept, partial(weights_of, twin.package))
        graphs(*case(), key)
        if graphs.failure:
            return {**row, "ok": False, "error": graphs.failure}
        # The same kernels, without what the host needs in between.
        replayed = idle(run.device, kept.replay, 1 if run.dry else 3)
        shares = {name: 1e-3 * us / replayed["ms"] for name, us in row["us"].items()}
        row = {**row, "replay": replayed, "shares": _rounded({**shares, "idle": replayed["idle"] or 0.0})}
    return row


def ranged(prior: Prior) -> Prior:
    """The same, its parts in ranges."""
    tangent = prior.tangent
    return replace(
        prior,
        denoise=_in("bench.denoiser", prior.denoise),
        decode=_Decoder(prior.decode, "bench.decoder"),
        tangent=tangent and (lambda evaluations: _Decoder(tangent(evaluations), "bench.tangent")),
    )


@dataclass(frozen=True, eq=False)
class _Decoder:
    decode: Any
    name: str

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        return _in(self.name, self.decode)(z)

    def observe(self, operator: Any) -> Any:
        """As the decoder itself observes."""
        observed = self.decode.observe(operator)
        if not hasattr(observed, "derivative"):
            return _in(self.name, observed)

        def derivative(z: torch.Tensor) -> Derivative:
            value, *products = _in(self.name, observed.derivative)(z)
            return Derivative(value, *(self._inside(product) for product in products))

        return Differentiable(_in(self.name, observed), derivative, observed.tensors)

    def _inside(self, product: Any) -> Any:
        """The product in the range; what an analysis asks it for besides stays."""
        if isinstance(product, OfTimes | ToTimes):
            return replace(product, inner=_in(self.name, product.inner))
        if isinstance(product, Gram):
            solve = product.solve and _in(self.name, product.solve)
            return replace(product, product=_in(self.name, product.product), solve=solve)
        return product and _in(self.name, product)


def _in(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with record_function(name):
            return function(*arguments)

    return run


def _profiled(run: Run, call: Callable[[], Any]) -> Row:
    cuda = run.device.name == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        seconds = run.device.seconds(call)
    events = profiled.events()
    parts: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            busy = sum(kernel.duration for kernel in _kernels(event)) if cuda else event.self_cpu_time_total
            if busy:
                parts[_part(event)] += busy
    # The device has a copy of every range.
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and e.name not in RANGES]
    spans = [e.time_range for e in on_device]
    span = max(s.end for s in spans) - min(s.start for s in spans) if spans else 1e6 * seconds
    shares = {name: us / span for name, us in parts.items()}
    return {
        "seconds": round(seconds, 4),
        "kernels": len(on_device),
        "us": {name: round(us, 1) for name, us in parts.items()},
        "shares": _rounded({**shares, "idle": max(0.0, 1 - sum(shares.values()))}),
    }


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    """The largest first."""
    return {name: round(share, 4) for name, share in sorted(shares.items(), key=itemgetter(1), reverse=True)}


def _kernels(event: Any) -> list[Any]:
    return [kernel for kernel in event.kernels if kernel.name not in RANGES]


def _part(event: Any) -> str:
    while event is not None:
        if event.name.startswith(OPERATORS):
            return "operator"
        if event.name in RANGES:
            return RANGES[event.name]
        event = event.cpu_parent
    return "updates"
