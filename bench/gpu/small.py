"""The cases of every operation on every kind of native code, once: what compute-sanitizer watches, and what is
compiled ahead, then with the sizes that are timed and with whole analyses.

python -m bench.gpu.small cuda --most 8000
"""

import argparse
from contextlib import suppress

import torch

from bench.cases.operation import Case, Draw
from bench.cases.table import CASES
from bench.gpu.accuracy import DERIVATIVES, one_thread, value
from bench.gpu.models import FRACTION, Setting, method, twin
from bench.gpu.workloads import WORKLOADS, Sizes
from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import registry
from lsda_fast.sampler import Sampler


def main(options: argparse.Namespace) -> int:
    """How many calls there were."""
    place, calls = torch.device(options.device), 0
    kernels.report()
    groups = [(name, dtype) for name in CASES for dtype in (torch.float32, torch.bfloat16)]
    for name, dtype in groups[options.part :: options.parts]:
        for kind in _kinds(name, place):
            for make in CASES[name].values():
                case = make()
                if sum(t.numel() for t in case.inputs) <= options.most:
                    calls += _called(case, kind, dtype, place, case.derivatives if options.derivatives else ())
    if options.timed:
        calls += sum(_timed(name, dtype, place, options.dry) for name, dtype in groups[options.part :: options.parts])
    if place.type == "cuda":
        torch.cuda.synchronize()
    return calls


def analyses(options: argparse.Namespace) -> int:
    """LO-SDA of each package, in float32 and bfloat16, for numbers of members that kernels tell apart."""
    (guidance, steps), calls = method(options.dry), 0
    for name, most in (("tiny", 2),) if options.dry else (("built-in", 16), ("papers", 2)):
        case = twin(name, options.device)
        for members in sorted({1, 2, most}):
            for precision in ("float32", "bfloat16"):
                prior = Setting("fused", precision).prior(case)
                Sampler(guidance, steps=steps, block=members)(prior, case.likelihood(FRACTION), members=members)
                calls += 1
    return calls


def _timed(name: str, dtype: torch.dtype, place: torch.device, dry: bool) -> int:
    calls = 0
    for workload in WORKLOADS[name](Sizes.dry() if dry else Sizes(), Draw(0, place, torch.float32)):
        for kind in _kinds(name, place):
            with kernels.use(kind), suppress(InputError):
                function, inputs = workload.case.prepare(dtype, place)
                function(*inputs)
                calls += 1
    return calls


def _kinds(name: str, place: torch.device) -> list[str]:
    """Of native code that the operation has there."""
    return [kind for kind in registry.kinds_on(place) if kind in registry.OPERATIONS[name].natives]


def _called(case: Case, kind: str, dtype: torch.dtype, place: torch.device, derivatives: tuple[str, ...]) -> int:
    try:
        with kernels.use(kind), one_thread():
            for what in ("value", *derivatives):
                DERIVATIVES.get(what, value)(case, dtype, place, None)
    except InputError:
        return 0
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", choices=["cpu", "cuda"])
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--most", type=float, default=float("inf"), help="numbers of a case")
    parser.add_argument("--derivatives", action="store_true")
    parser.add_argument("--timed", action="store_true", help="the sizes of bench/gpu/workloads.py too")
    parser.add_argument("--analyses", action="store_true", help="whole analyses instead")
    parser.add_argument("--dry", action="store_true", help="tiny sizes")
    with torch.no_grad():
        parsed = parser.parse_args()
        print(f"{(analyses if parsed.analyses else main)(parsed)} calls")
