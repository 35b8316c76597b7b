"""Which folders become packages, and which compiled modules are built; everything else is in pyproject.toml.

``LSDA_BUILD_CPU`` and ``LSDA_BUILD_CUDA`` are ``auto`` (a module that fails to build is left out, and a note in the
package says why), ``on`` (that is an error) or ``off``. ``LSDA_WERROR=1`` makes the compiler's warnings errors.
There is no CUDA module yet.
"""

import os
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# No contraction and no reassociation: every instruction set gives the same bits.
COMPILE = ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


def switch(name: str) -> str:
    """``auto``, ``on`` or ``off`` from the environment."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{name}={value}; accepted: auto, on, off")
    return value


def cpu_modules() -> list[Extension]:
    """``lsda_fast._cpu``."""
    build = switch("LSDA_BUILD_CPU")
    if build == "off":
        return []
    from pybind11.setup_helpers import Pybind11Extension

    module = Pybind11Extension(
        "lsda_fast._cpu",
        ["csrc/bind/cpu_module.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        depends=sorted(glob("csrc/*/*.h")),
        include_dirs=["csrc"],
        # Without cxx_std pybind11 looks for a compiler itself, and its error is not one that `optional` forgives.
        cxx_std=17,
        optional=build == "auto",
    )
    module.extra_compile_args += COMPILE + (WARNINGS if os.environ.get("LSDA_WERROR") == "1" else [])
    module.extra_link_args += ["-fopenmp"]
    return [module]


class BuildModules(build_ext):
    """Leaves a note where a module that may be missing was not built, and no older module in its place."""

    def run(self) -> None:
        """Editable builds compile elsewhere and copy: know both places."""
        self.places = [Path(self.build_lib) / "lsda_fast", *([Path("lsda_fast")] if self.inplace else [])]
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build, and on failure say why in ``_cpu.missing.txt``."""
        name = ext.name.rpartition(".")[2]
        notes = [place / f"{name}.missing.txt" for place in self.places]
        for note in notes:
            note.unlink(missing_ok=True)
        try:
            super().build_extension(ext)
        except Exception as error:
            for note in notes if ext.optional else []:
                for stale in note.parent.glob(f"{name}.*.so"):
                    stale.unlink()
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{error}\n", encoding="utf-8")
            raise


if switch("LSDA_BUILD_CUDA") == "on":
    raise SystemExit("LSDA_BUILD_CUDA=on, but this version has no CUDA module to build")

setup(
    packages=[*find_packages(include=["lsda_fast", "lsda_fast.*"]), "lsda_fast.kernels", "lsda_fast.kernels.triton"],
    package_dir={"lsda_fast": "lsda_fast", "lsda_fast.kernels": "kernels"},
    ext_modules=cpu_modules(),
    cmdclass={"build_ext": BuildModules},
)
