"""The packages whose analyses are measured: the built-in one, and the published set-up with random weights."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases.analysis import Twin, drawn
from bench.cases.papers import papers, tiny
from bench.gpu.run import Run
from lsda_fast import kernels
from lsda_fast.assimilator import Assimilator
from lsda_fast.demo import METHODS, built_in_package
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Graphs
from lsda_fast.guidance import GaussNewton, Guidance, LatentOptimization, Likelihood
from lsda_fast.prior import Prior
from lsda_fast.sampler import Samples

__all__ = ["FRACTION", "Setting", "method", "observed", "twin", "twins"]

FRACTION = 0.01  # of the columns observed
SHORT = LatentOptimization(GaussNewton(outer=1, cg=1, halvings=0, precondition=1)), 1


def twins(run: Run) -> Iterator[tuple[str, Twin]]:
    """By name, on the run's device; a dry run has one tiny package."""
    for name in ("tiny",) if run.dry else ("built-in", "papers"):
        yield name, twin(name, run.device.name)


def method(dry: bool) -> tuple[Guidance, int]:
    """LO-SDA: guidance and noise levels."""
    return SHORT if dry else METHODS["LO-SDA"]


class Setting(NamedTuple):
    """How an analysis is run: ``fused`` or ``reference``, in float32, tf32 or bfloat16.

    The fused backend has a bfloat16 of its own; that of the reference is torch's autocast.
    """

    backend: str
    precision: str

    @contextmanager
    def active(self, run: Run) -> Iterator[None]:
        """The block in which an analysis has this setting."""
        reference, half = self.backend == "reference", self.precision == "bfloat16"
        products = "float32" if half and not reference else self.precision
        with run.device.precision(products), kernels.use("reference") if reference else nullcontext():
            yield

    def prior(self, twin: Twin) -> Prior:
        """The prior of an analysis; inside the block."""
        return self.about(twin, twin.normalized())

    def about(self, twin: Twin, x_b: Tensor) -> Prior:
        """That about another background."""
        return twin.package.prior(x_b, fused=self.backend == "fused", precision=getattr(torch, self._own))

    def assimilator(self, run: Run, twin: Twin) -> Assimilator:
        """LO-SDA with this setting, and no graph yet; inside the block."""
        assimilate = _assimilator(twin, run.dry, self.backend, self._own)
        if assimilate.engine.graphs is not None:
            weights = partial(weights_of, twin.package)
            assimilate.engine.graphs = Graphs(assimilate.sampler, run.device.recorder(), weights)
        run.device.release()
        return assimilate

    def samples(
        self, assimilate: Assimilator, twin: Twin, likelihood: Likelihood, members: int
    ) -> tuple[Prior, Samples, int]:
        """An analysis as the assimilator runs it, from its prior on; with its prior, and the members of a block."""
        # A prior of its own every time: what it prepares for an analysis belongs to the analysis.
        prior = self.prior(twin)
        samples, chunk = assimilate.engine.run(prior, likelihood, members=members, seed=0, recenter=True, on_step=None)
        return prior, samples, chunk

    @property
    def _own(self) -> str:
        return "bfloat16" if self == ("fused", "bfloat16") else "float32"


def observed(assimilate: Assimilator, twin: Twin) -> Likelihood:
    """The likelihood, filled up where graphs are to be of use again."""
    likelihood = assimilate.likelihood(twin.observations(FRACTION))[1]
    return likelihood if assimilate.engine.graphs is None else assimilate.engine.graphs.padded(likelihood)


@cache
def _assimilator(twin: Twin, dry: bool, backend: str, precision: str) -> Assimilator:
    """Made once: the plan of the published size takes many seconds."""
    guidance, steps = method(dry)
    return Assimilator(twin.package, guidance, steps=steps, backend=backend, precision=precision)


@cache
def twin(name: str, device: str) -> Twin:
    """Made once: the published size takes seconds."""
    package = built_in_package().to(device) if name == "built-in" else {"papers": papers, "tiny": tiny}[name](device)
    return drawn(package)
