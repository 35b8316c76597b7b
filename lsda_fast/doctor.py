"""What is installed and what runs where on this machine: the rows of ``lsda doctor``, and of a bug report."""

import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

__all__ = ["Row", "report"]

# distribution, the extra of lsda_fast that brings it, what it is for
OPTIONAL = (
    ("triton", "triton", "GPU kernels"),
    ("onnxruntime", "onnx", "ONNX Runtime on the CPU"),
    ("onnxruntime-gpu", "onnx-gpu", "ONNX Runtime on NVIDIA"),
    ("pyarrow", "observations", "observations from Parquet"),
    ("cfgrib", "grib", "states from GRIB"),
    ("matplotlib", "plots", "maps and reports"),
    ("dask", "dask", "states larger than memory"),
)


class Row(NamedTuple):
    """One line of the report."""

    item: str
    value: str
    note: str = ""


def report() -> list[Row]:
    """Everything that decides how this installation behaves.

    Returns
    -------
    list of Row
        (item, value, note), all strings.
    """
    return [*installation(), *devices(), *optional_packages(), *backends(), *operations(), *contents()]


def installation() -> list[Row]:
    """Versions and the place of the package."""
    import lsda_fast

    return [
        Row("lsda_fast", lsda_fast.__version__, str(Path(lsda_fast.__file__).parent)),
        Row("python", platform.python_version(), platform.platform()),
    ]


def devices() -> list[Row]:
    """torch, its threads, and the devices it can use; why not CUDA, where it cannot."""
    import torch

    rows = [
        Row("torch", torch.__version__, f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        Row("device cpu", "available", torch.backends.cpu.get_cpu_capability()),
    ]
    reason = cuda_missing()
    if reason:
        return [*rows, Row("device cuda", "not available", reason)]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        note = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        rows.append(Row(f"device cuda:{i}", "available", note))
    return rows


def cuda_missing() -> str:
    """Why CUDA cannot be used, in one sentence; empty when it can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if torch.cuda.is_available():
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"torch finds no GPU or driver with CUDA_VISIBLE_DEVICES={visible!r}"
    return f"torch finds no NVIDIA GPU, or its driver is too old for CUDA {torch.version.cuda}"


def optional_packages() -> list[Row]:
    """Versions of the optional packages, or how to get them."""
    found = {name: _installed(name) for name, _, _ in OPTIONAL}
    rows = [
        Row(name, found[name] or f"missing: pip install 'lsda_fast[{extra}]'", purpose)
        for name, extra, purpose in OPTIONAL
    ]
    if found["onnxruntime"] and found["onnxruntime-gpu"]:
        note = "both fill the same folder: uninstall both, then install one"
        rows.append(Row("onnxruntime", "two installations", note))
    return rows


def backends() -> list[Row]:
    """Which backends there are."""
    return [
        Row("backend reference", "available", "plain torch, the default"),
        Row("backend fused", "not built in this version"),
        Row("backend onnx", "not built in this version"),
    ]


def operations() -> list[Row]:
    """The native module, and which implementation each operation takes on the CPU, and why."""
    from lsda_fast.kernels import native
    from lsda_fast.kernels.registry import report as choices

    cpu, missing = native.load()
    if missing:
        module = Row("C++ kernels", "missing", missing)
    else:
        built = cpu.build_info()
        module = Row(
            "C++ kernels", "available", f"version {built['abi']}, compiler {built['compiler']}, {cpu.__file__}"
        )
    return [module, *(Row(f"operation {c.operation}", c.implementation, c.reason) for c in choices())]


def contents() -> list[Row]:
    """Where the kernels come from, and whether the built-in model is there."""
    kernels = import_module("lsda_fast.kernels")
    demo = Path(__file__).parent / "data" / "demo" / "package"
    return [
        Row("lsda_fast.kernels", "importable", str(Path(str(kernels.__file__)).parent)),
        Row("built-in package", "present" if (demo / "manifest.json").is_file() else "missing", str(demo)),
    ]


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
