"""Which folders become packages, and which compiled modules are built; everything else is in pyproject.toml.

``LSDA_BUILD_CPU`` and ``LSDA_BUILD_CUDA`` are ``auto`` (a module that fails to build is left out), ``on``
(that is an error) or ``off``. There is no native source yet: the compiled modules come with the kernel layer
(csrc/README.md), the CUDA one with its nvcc rules.
"""

import os
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup


def switch(name: str) -> str:
    """``auto``, ``on`` or ``off`` from the environment."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{name}={value}; accepted: auto, on, off")
    return value


def cpu_modules() -> list[Extension]:
    """``lsda_fast._cpu``, once it has a source."""
    build, source = switch("LSDA_BUILD_CPU"), "csrc/bind/cpu_module.cpp"
    if build == "off":
        return []
    if not Path(source).exists():
        if build == "on":
            raise SystemExit(f"LSDA_BUILD_CPU=on, but there is no {source} to build")
        return []
    from pybind11.setup_helpers import Pybind11Extension

    sources = [source, *sorted(glob("csrc/cpu/*.cpp"))]
    # Without cxx_std pybind11 looks for a compiler itself, and its error is not one that `optional` forgives.
    return [Pybind11Extension("lsda_fast._cpu", sources, include_dirs=["csrc"], cxx_std=17, optional=build == "auto")]


if switch("LSDA_BUILD_CUDA") == "on":
    raise SystemExit("LSDA_BUILD_CUDA=on, but this version has no CUDA module to build")

setup(
    packages=[*find_packages(include=["lsda_fast", "lsda_fast.*"]), "lsda_fast.kernels"],
    package_dir={"lsda_fast": "lsda_fast", "lsda_fast.kernels": "kernels"},
    ext_modules=cpu_modules(),
)
