"""Which implementation an operation takes: forced, missing, stale, and told by trace, report and doctor."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lsda_fast import doctor, kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import cuda, native, registry, triton
from lsda_fast.kernels.adam_step import adam_step
from lsda_fast.kernels.implementations import Kind, Native
from lsda_fast.kernels.noise import NOISE

ROOT = Path(__file__).resolve().parents[1]

OPERATIONS = [
    "adam_step",
    "cg_step",
    "gated_residual_norm",
    "gated_residual_norm_jvp",
    "gated_residual_norm_vjp",
    "geo_conv",
    "geo_conv_adjoint",
    "geo_fold",
    "geo_pad",
    "head_adjoint",
    "head_project",
    "noise",
    "norm_conv",
    "norm_conv_jvp",
    "norm_conv_vjp",
    "norm_silu",
    "norm_silu_jvp",
    "norm_silu_vjp",
    "obs_adjoint",
    "obs_project",
    "obs_residual",
    "restricted_solve",
    "restricted_step",
    "sampler_step",
    "shuffle_adjoint",
    "shuffle_product",
    "window_attention",
    "window_attention_jvp",
    "window_attention_vjp",
    "zonal_adjoint",
    "zonal_product",
]
WITHOUT_CPP = [name for name in OPERATIONS if name.startswith("window_attention")]


def noise():
    return NOISE(torch.tensor([1]), 10, torch.tensor([0]), 0, 0, torch.float32)


@pytest.fixture
def fresh():
    """The module is looked for again, and held to nothing afterwards."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()
    if native.load("cpu").code:
        native.load("cpu").code.set_isa(native.load("cpu").code.build_info()["isas"][-1])


def test_forced_and_traced(checks):
    best = checks.isas()[-1]
    with kernels.trace() as taken:
        noise()
        with kernels.use("reference"):
            noise()
            with kernels.use("cpu", isa="baseline"):
                noise()
            noise()
        noise()
    reasons = [f"C++, {best}", "forced by use", "C++, baseline", "forced by use", f"C++, {best}"]
    assert [(c.operation, c.reason) for c in taken] == [("noise", reason) for reason in reasons]
    assert [c.implementation for c in taken] == ["cpu", "reference", "cpu", "reference", "cpu"]


def test_the_environment_s_instruction_set_is_that_of_the_beginning(checks, fresh, monkeypatch):
    monkeypatch.setenv("LSDA_CPU_ISA", checks.isas()[-1])
    with kernels.use("cpu", isa="baseline"):
        noise()
        assert native.load("cpu").code.isa() == "baseline"


def test_forcing_what_cannot_be_is_an_error(checks):
    checks.isas()
    with (
        pytest.raises(InputError, match="implementation 'gpu'; accepted: reference, cpu, cuda, triton"),
        kernels.use("gpu"),
    ):
        pass
    with pytest.raises(InputError, match="instruction set 'sse9'; this processor has: baseline"):
        kernels.use("cpu", isa="sse9").__enter__()
    half = torch.zeros(3, dtype=torch.bfloat16)
    with (
        kernels.use("cpu"),
        pytest.raises(InputError, match=r"adam_step cannot run in C\+\+: torch.bfloat16; C\+\+ takes"),
    ):
        adam_step(half, half, half, half, 1, lr=0.1)


def test_a_derivative_that_is_not_there_is_an_error():
    v, zero = torch.ones(3, requires_grad=True), torch.zeros(3)
    with pytest.raises(InputError, match="adam_step of a tensor that requires a gradient; accepted: none"):
        adam_step(v, zero, zero, zero, 1, lr=0.1)
    with torch.no_grad():
        assert not adam_step(v, zero, zero, zero, 1, lr=0.1)[0].requires_grad


def test_tensors_of_two_kinds_go_to_the_reference(checks):
    checks.isas()
    single, double = torch.ones(3), torch.ones(3, dtype=torch.float64)
    with kernels.trace() as taken:
        adam_step(single, single, single, double, 1, lr=0.1)
    assert taken[0].implementation == "reference"
    assert taken[0].reason.startswith("torch.float32, torch.float64;")


@pytest.fixture
def unasked():
    """What was found out about CUDA is forgotten, before and after."""
    cuda.missing.cache_clear()
    yield
    cuda.missing.cache_clear()


def test_without_the_module_everything_runs_in_torch(monkeypatch, unasked):
    monkeypatch.setattr(native, "load", lambda name="cpu": native.Module(None, f"not built: a test of {name}"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = kernels.report()
    assert [(row.operation, row.implementation) for row in rows] == [(name, "reference") for name in OPERATIONS]
    assert all(
        row.reason.startswith("cpu: not built: a test of cpu") for row in rows if row.operation not in WITHOUT_CPP
    )
    assert doctor.operations()[:2] == [
        ("C++ kernels", "missing", "not built: a test of cpu"),
        ("CUDA C++ kernels", "missing", "not built: a test of cuda"),
    ]
    with kernels.trace() as taken:
        assert noise().shape == (1, 10)
    assert taken == [("noise", "reference", "not built: a test of cpu")]
    with pytest.raises(InputError, match="the C\\+\\+ kernels are not there: not built"), kernels.use("cpu"):
        pass


def test_doctor_tells_what_each_operation_takes(checks):
    best = checks.isas()[-1]
    rows = doctor.operations()
    modules, operations = rows[: -len(OPERATIONS)], rows[-len(OPERATIONS) :]
    assert [(row.item, row.value) for row in modules[:1]] == [("C++ kernels", "available")]
    assert [row.item for row in modules] == ["C++ kernels", "CUDA C++ kernels", "Triton kernels"]
    assert [row.item for row in operations] == [f"operation {name}" for name in OPERATIONS]
    in_cpp = [row for row in operations if row.item.removeprefix("operation ") not in WITHOUT_CPP]
    assert all("cpu" in row.value and f"cpu: C++, {best}" in row.note for row in in_cpp)


def test_a_module_of_another_version_is_left_alone(checks, fresh, monkeypatch):
    checks.isas()
    native.load.cache_clear()
    monkeypatch.delenv("LSDA_REQUIRE", raising=False)
    monkeypatch.setitem(sys.modules, "lsda_fast._cpu", SimpleNamespace(build_info=lambda: {"abi": 99}))
    assert native.load("cpu") == (
        None,
        f"lsda_fast._cpu is of version 99, the package of {native.ABI}: install it again",
    )
    native.load.cache_clear()
    monkeypatch.setenv("LSDA_REQUIRE", "cpu")
    with pytest.raises(ImportError, match=r"LSDA_REQUIRE asks for the C\+\+ kernels: lsda_fast._cpu is of version 99"):
        native.load("cpu")


def test_why_there_is_no_module(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native.lsda_fast, "__path__", [str(tmp_path)])
    monkeypatch.setattr(native.lsda_fast, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.delenv("LSDA_REQUIRE", raising=False)
    assert native.load("cpu").missing == "not built: a checkout without installation, or LSDA_BUILD_CPU=off"
    (tmp_path / "_cpu.missing.txt").write_text("command 'g++' failed:\nNo such file\n")
    native.load.cache_clear()
    assert native.load("cpu").missing.startswith(
        "the build failed: command 'g++' failed: No such file; LSDA_BUILD_CPU=on"
    )


def test_an_instruction_set_by_the_environment(checks, fresh, monkeypatch):
    monkeypatch.setenv("LSDA_CPU_ISA", "baseline")
    checks.isas()
    assert native.load("cpu").code.isa() == "baseline"
    native.load.cache_clear()
    monkeypatch.setenv("LSDA_CPU_ISA", "avx9")
    with pytest.raises(InputError, match="instruction set 'avx9'"):
        native.load("cpu")


def test_the_process_keeps_its_denormals_and_its_one_openmp(checks):
    checks.isas()
    noise()
    assert torch.tensor([5e-324], dtype=torch.float64).mul(1.0) > 0
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
        assert len(loaded) == 1


@pytest.fixture
def triton_is_looked_for_again():
    triton.missing.cache_clear()
    yield
    triton.missing.cache_clear()


def test_why_there_is_no_triton(triton_is_looked_for_again, monkeypatch):
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    monkeypatch.delenv("LSDA_REQUIRE", raising=False)
    assert triton.missing() == "triton is not installed: pip install 'lsda_fast[triton]'"
    with pytest.raises(InputError, match="the Triton kernels are not there: triton is not"), kernels.use("triton"):
        pass
    triton.missing.cache_clear()
    monkeypatch.setenv("LSDA_REQUIRE", "cpu,triton")
    with pytest.raises(ImportError, match="LSDA_REQUIRE asks for triton, which is not installed"):
        triton.missing()
    monkeypatch.setattr(triton, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert triton.missing() == f"torch {torch.__version__} is built without CUDA"


def test_nothing_is_asked_of_the_device_until_a_tensor_lies_there(monkeypatch):
    """Nor is Triton imported for tensors of the CPU, or for the report where there is no GPU."""
    code = "import sys; from lsda_fast import kernels; kernels.report(); print('triton' in sys.modules)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"


def test_the_first_kind_that_takes_the_tensors_runs(monkeypatch):
    """A second kind of code for one device is an entry of its own."""
    fill, sent = (lambda out, v: out.fill_(7.0)), []
    kinds = {
        "first": Kind("First", ("cpu",), lambda: "", lambda: "one", lambda: ""),
        "second": Kind("Second", ("cpu",), lambda: "", lambda: "two", lambda: ""),
        "third": Kind("Third", ("cpu",), lambda: "not built", lambda: "", lambda: ""),
        "elsewhere": Kind("Elsewhere", ("cuda",), lambda: sent.append("asked") or "", lambda: "", lambda: ""),
    }
    monkeypatch.setattr(registry, "KINDS", kinds)
    monkeypatch.setattr(registry, "OPERATIONS", {})
    operation = registry.Operation(
        "of_a_test(Tensor v) -> Tensor",
        reference=torch.neg,
        empty=torch.empty_like,
        natives={
            "second": Native(fill, dtypes=(torch.float64,)),
            "third": Native(fill),
            "first": Native(fill, lambda v: "" if len(v) > 1 else "one number"),
            "elsewhere": Native(fill),
        },
    )
    single, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert operation.choose(single) == ("of_a_test", "first", "one")
    assert operation.choose(double[:1]) == ("of_a_test", "second", "two")
    reasons = "one number; torch.float32; Second takes float64, all alike; not built"
    assert operation.choose(single[:1]) == ("of_a_test", "reference", reasons)
    assert operation.choose(single.to("meta")).reason == "no native code for meta"
    assert sent == []
    assert torch.equal(operation(single), torch.full((2,), 7.0))
    assert torch.equal(operation(single[:1]), -single[:1])
    with kernels.use("second"), pytest.raises(InputError, match="run in Second: tor"):
        operation(single)
