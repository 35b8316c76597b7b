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

    from lsda_fast.kernels.gpu import cuda_missing

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
    from lsda_fast.kernels import native

    missing = native.load("cpu").missing
    taken = f"in plain torch, without C++ kernels ({missing}); not taken by itself" if missing else "the CPU's default"
    return [
        Row("backend reference", "available", "plain torch and autograd"),
        Row("backend fused", "available", taken),
        Row("backend onnx", "not built in this version"),
    ]


def operations() -> list[Row]:
    """The kinds of native code, and for each operation which of them are taken, and the state of each."""
    from lsda_fast.kernels.implementations import KINDS
    from lsda_fast.kernels.registry import report as choices

    rows = []
    for kind in KINDS.values():
        missing = kind.missing()
        note = "; ".join(filter(None, (missing, kind.about())))
        rows.append(Row(f"{kind.title} kernels", "missing" if missing else "available", note))
    return [*rows, *(Row(f"operation {c.operation}", c.implementation, c.reason) for c in choices())]


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
