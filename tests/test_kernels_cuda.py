"""The CUDA C++ module without a GPU: it loads, says why it cannot run, and keeps to its budget of registers.

What its kernels compute is checked on the host, by tests/test_kernels_sanitizer.py.
"""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import cuda, implementations, native, obs_residual
from lsda_fast.kernels.cg_step import CG

ROOT = Path(__file__).resolve().parents[1]


class OnGpu(torch.Tensor):
    """That is where it says it is."""

    device = torch.device("cuda", 1)


@pytest.fixture
def module():
    """Skipped where it is not built, unless LSDA_REQUIRE names it."""
    found = native.load("cuda")
    if found.missing:
        pytest.skip(found.missing)
    return found.code


@pytest.fixture
def again():
    """Looked for again, before and after."""
    for cached in (native.load, cuda.missing):
        cached.cache_clear()
    yield
    for cached in (native.load, cuda.missing):
        cached.cache_clear()


def architectures(*numbers):
    """A module built for these, on a machine with a driver."""
    built = {"architectures": [10 * n for n in numbers], "block": 256}
    return native.Module(SimpleNamespace(build_info=lambda: built, obstacle=lambda: ""), "")


def test_it_loads_without_a_driver_and_says_what_it_is(module):
    built = module.build_info()
    assert built["abi"] == native.ABI
    assert built["architectures"] == [800, 900, 1000]
    assert f"nvcc {built['nvcc']}, compiler {built['compiler']}, for sm_80, sm_90, sm_100 and later" in cuda.about()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("precision", [32, 64])
def test_a_launch_that_fails_says_why_and_an_empty_one_is_none(module, precision):
    assert module.obstacle().startswith("CUDA driver version is insufficient")
    head, numbers = getattr(module, f"head_{precision}"), [0.1] * 6
    with pytest.raises(RuntimeError, match="head_project was not launched: CUDA driver version is insufficient"):
        head(False, *[0] * 9, 1, 1, 1, 1, 1, 1, True, 0, 0)
    with pytest.raises(RuntimeError, match="head_adjoint was not launched: CUDA"):
        head(True, *[0] * 9, 1, 1, 1, 1, 1, 1, True, 0, 0)
    for name, addresses, sizes, work in (
        ("obs_project", 4, (0, 1, 1, 1), (1, 1, 1, 1)),
        ("obs_residual", 10, (0, 0.0, 0, 1, 1, 1), (0, 0.0, 1, 1, 1, 1)),
        ("obs_adjoint", 5, (0, 1, 1), (1, 1, 1)),
        ("adam_step", 7, (*numbers, 0), (*numbers, 1)),
    ):
        function = getattr(module, f"{name}_{precision}")
        function(*[0] * addresses, *sizes, 0, 0)
        with pytest.raises(RuntimeError, match=f"{name} was not launched: CUDA"):
            function(*[0] * addresses, *work, 0, 0)
    with pytest.raises(RuntimeError, match="cg_step was not launched: CUDA"):
        getattr(module, f"cg_step_{precision}")(*[0] * 10, 1, 1, 0, 0)


def test_registers_spills_and_shared_memory_are_within_their_budgets(module):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "bench/budgets.py", "cuda"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "cuda kernels within their budgets" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)])
def test_gpus_that_the_module_has_code_for(monkeypatch, capability):
    monkeypatch.setattr(native, "load", lambda name: architectures(80, 90, 100))
    assert cuda.uncovered(capability) == ""


def test_gpus_that_it_has_no_code_for(monkeypatch):
    monkeypatch.setattr(native, "load", lambda name: architectures(86, 90))
    said = "the GPU has compute capability {}; the CUDA C++ kernels are for sm_86, sm_90 and later GPUs by PTX"
    assert cuda.uncovered((7, 5)) == said.format("7.5")
    assert cuda.uncovered((8, 0)) == said.format("8.0")
    assert cuda.uncovered((8, 9)) == ""


def test_why_it_cannot_run(again, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(native, "load", lambda name: architectures(90))
    assert cuda.missing() == f"torch {torch.__version__} is built without CUDA"
    cuda.missing.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert cuda.missing().startswith("the GPU has compute capability 8.0;")
    with pytest.raises(InputError, match=r"the CUDA C\+\+ kernels are not there: the GPU has"), kernels.use("cuda"):
        pass
    cuda.missing.cache_clear()
    old = SimpleNamespace(obstacle=lambda: "CUDA driver version is insufficient for CUDA runtime version")
    monkeypatch.setattr(native, "load", lambda name: native.Module(old, ""))
    assert cuda.missing() == "CUDA driver version is insufficient for CUDA runtime version"


def test_that_it_is_required(again, monkeypatch, tmp_path):
    monkeypatch.setattr(native.lsda_fast, "__path__", [str(tmp_path)])
    monkeypatch.setattr(native.lsda_fast, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setenv("LSDA_REQUIRE", "cpu")
    assert cuda.missing() == "not built: a checkout without installation, or LSDA_BUILD_CUDA=off"
    assert cuda.about() == ""
    native.load.cache_clear()
    monkeypatch.setenv("LSDA_REQUIRE", "cpu,cuda")
    with pytest.raises(ImportError, match=r"LSDA_REQUIRE asks for the CUDA C\+\+ kernels: not built"):
        native.load("cuda")


def test_it_is_called_on_the_tensors_device_and_the_stream_of_the_moment(monkeypatch):
    calls = []
    code = SimpleNamespace(f_64=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(native, "load", lambda name: native.Module(code, ""))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=99))
    there = torch.empty(2).as_subclass(OnGpu)
    native.run("f", torch.float64, True, there, None, [3, there], 5)
    address = there.data_ptr()
    assert calls == [(True, address, 0, [3, address], 5, 1, 99)]


def test_the_partial_sums_of_a_cost_go_with_the_call(monkeypatch):
    calls = []
    monkeypatch.setattr(native, "load", lambda name: architectures(90))
    monkeypatch.setattr(native, "run", lambda name, dtype, *arguments: calls.append((name, dtype, arguments)))
    obs_residual._block.cache_clear()
    index, weight, out = torch.zeros(4, 600, dtype=torch.int32), torch.zeros(4, 600), tuple(torch.zeros(3, 3))
    obs_residual.RESIDUAL.natives["cuda"].fill(
        out, torch.zeros(3, 50), index, weight, [], 50, out[0], None, None, 1, 2.5
    )
    obs_residual._block.cache_clear()
    ((name, dtype, arguments),) = calls
    assert (name, dtype, arguments[3].shape, arguments[3].dtype) == (
        "obs_residual",
        torch.float32,
        (3, 3),
        torch.float64,
    )
    assert arguments[8:] == (None, None, 1, 2.5, 3, 50, 600, 4)


def test_it_goes_before_triton_and_leaves_long_members_without_clusters_to_it(monkeypatch):
    assert list(implementations.KINDS) == ["cpu", "cuda", "triton"]
    assert list(obs_residual.RESIDUAL.natives) == ["cpu", "cuda", "triton"]
    for capability, size, reason in (
        ((9, 0), 40000, ""),
        ((8, 6), 32768, ""),
        ((8, 6), 32769, "a member of 32769 numbers on compute capability 8.6; CUDA C++ takes 32768 below 9.0"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        for members in (1, 7):
            assert CG.natives["cuda"].limits(torch.empty(members, size, device="meta")) == reason
