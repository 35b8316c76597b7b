"""The fused backend gives the reference's analyses, and the choice between them is said."""

import numpy as np
import pytest
import torch

from bench.cases.analysis import GUIDANCES, demo
from lsda_fast import kernels
from lsda_fast.assimilator import Assimilator
from lsda_fast.demo import METHODS
from lsda_fast.engine.backend import choose_backend
from lsda_fast.errors import InputError
from lsda_fast.guidance import Huber, ObsFree, VariationalQC
from lsda_fast.kernels import native, triton
from lsda_fast.package import Package


@pytest.fixture(scope="module")
def twin():
    return demo()


@pytest.fixture(scope="module")
def package(twin) -> Package:
    return twin.package


@pytest.fixture(scope="module")
def case(twin):
    return twin.dataset(), twin.observations(0.01)


ROBUST = {"gauss_newton": Huber(1.0), "preconditioned": VariationalQC(0.05, 5.0), "mmps": Huber(1.0)}
RUNS = [*((name, None) for name in GUIDANCES), *ROBUST.items()]


@pytest.mark.parametrize(("name", "robust"), RUNS)
def test_fused_is_the_reference(package, case, name, robust):
    ensembles = []
    for backend in ("reference", "fused"):
        assimilate = Assimilator(package, GUIDANCES[name], steps=2, block=2, robust=robust, backend=backend)
        ensembles.append(package.layout.to_array(assimilate(*case, members=2).analysis))
    reference, fused = ensembles
    error = np.abs(fused - reference) / np.asarray(package.normalization.std)[:, None, None]
    assert np.sqrt(np.mean(error**2, axis=(0, 2, 3))).max() < 2e-5
    # Not 1e-4: the step of Adam and the line search of L-BFGS turn on a sign.
    assert error.max() < 3e-4


def test_fused_is_the_reference_in_the_demonstration(package, case):
    """These members amplify rounding: with the surrogate's products in float32 they differed by 1e-4 and 2e-3."""
    guidance, steps = METHODS["LO-SDA"]
    reference, fused = (
        package.layout.to_array(
            Assimilator(package, guidance, steps=steps, block=4, backend=backend)(*case, members=4, seed=1).analysis
        )
        for backend in ("reference", "fused")
    )
    error = np.abs(fused - reference) / np.asarray(package.normalization.std)[:, None, None]
    assert np.sqrt(np.mean(error**2)) < 2e-5
    assert error.max() < 3e-4


def test_members_are_the_same_under_any_chunking(package, case):
    assimilate = Assimilator(package, GUIDANCES["gauss_newton"], steps=2, block=2, backend="fused")
    everyone, some = (assimilate(*case, members=m, recenter=False).analysis for m in (4, [3]))
    xr_all, xr_some = package.layout.to_array(everyone), package.layout.to_array(some)
    assert np.array_equal(xr_all[3], xr_some[0])


def test_the_reference_runs_no_native_kernel_and_fused_no_noise_outside_of_one(package, case):
    taken = {}
    for backend in ("reference", "fused"):
        with kernels.trace() as choices:
            Assimilator(package, ObsFree(), steps=2, block=1, backend=backend)(*case)
        taken[backend] = {(c.operation, c.implementation) for c in choices}
    assert taken["reference"] == {(name, "reference") for name in ("geo_pad", "noise", "sampler_step")}
    assert {("noise", "cpu"), ("sampler_step", "cpu")} < taken["fused"]
    assert {operation for operation, code in taken["fused"] if code != "cpu"} == {"window_attention"}


@pytest.mark.parametrize("name", ["preconditioned", "mmps", "dps"])
def test_bfloat16_networks_change_little_of_the_spread(package, case, name):
    std = np.asarray(package.normalization.std)[:, None, None]
    analyses = []
    for precision in ("float32", "bfloat16"):
        assimilate = Assimilator(package, GUIDANCES[name], steps=2, block=2, backend="fused", precision=precision)
        analyses.append(package.layout.to_array(assimilate(*case, members=2).analysis) / std)
    exact, low = analyses
    error, between = np.sqrt(np.mean((low - exact) ** 2)), np.sqrt(np.mean((exact[0] - exact[1]) ** 2))
    assert 0 < error < 0.02 * between


def test_a_precision_needs_the_fused_backend(package):
    with pytest.raises(InputError, match="precision 'bfloat16' with backend 'reference' "):
        Assimilator(package, backend="reference", precision="bfloat16")
    with pytest.raises(InputError, match="precision 'int8' is unknown; accepted: float32, bfloat16"):
        Assimilator(package, precision="int8")


def test_the_choice_and_its_reason(package, monkeypatch):
    assert choose_backend("auto", package).name == "fused"
    assert choose_backend("reference", package) == ("reference", "asked for")
    monkeypatch.setattr(native, "load", lambda name="cpu": native.Module(None, "not built"))
    assert choose_backend("auto", package) == ("reference", "no C++ kernels: not built")
    with pytest.raises(InputError, match="backend 'fastest' is unknown; accepted: auto, reference, fused"):
        choose_backend("fastest", package)


def test_on_a_gpu_fused_needs_triton(package, monkeypatch):
    monkeypatch.setattr(Package, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(triton, "missing", lambda: "")
    assert choose_backend("auto", package).name == "fused"
    assert choose_backend("auto", package).reason.endswith("; not yet measured")
    monkeypatch.setattr(triton, "missing", lambda: "no GPU")
    assert choose_backend("auto", package) == ("reference", "no kernels for cuda: no GPU")


def test_a_decoder_of_the_user_is_not_fused(package):
    class Own(torch.nn.Module):
        pass

    other = Package.__new__(Package)
    other.__dict__.update(package.__dict__)
    other.__dict__["modules"] = {**package.modules, "autoencoder": Own()}
    assert choose_backend("auto", other) == ("reference", "the derivatives of Own are not written out")
    with pytest.raises(InputError, match="backend 'fused': the derivatives of Own are not written out"):
        choose_backend("fused", other)
