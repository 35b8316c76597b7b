"""Which folders become packages, and which compiled modules are built; everything else is in pyproject.toml.

``LSDA_BUILD_CPU`` and ``LSDA_BUILD_CUDA`` are ``auto`` (a module that fails to build is left out, and a note in the
package says why), ``on`` (that is an error) or ``off``. ``LSDA_WERROR=1`` makes the compilers' warnings errors.
``LSDA_CUDA_ARCHS`` is ``80;90;100`` when not given: the GPUs that the CUDA module is compiled for, the last as PTX too.
nvcc is that of ``CUDA_HOME`` where that is given, else of the path or of /usr/local/cuda.
"""

import logging
import os
import re
import shlex
import shutil
import subprocess
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

# No contraction and no reassociation: every instruction set gives the same bits.
COMPILE = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"] if os.environ.get("LSDA_WERROR") == "1" else []
NVCC = ["-std=c++17", "-O3", "-fmad=false", "-Icsrc", "--threads=2", "-Xfatbin=-compress-all", "-Xptxas=-warn-spills"]
NVCC += [f"-Xcompiler={flag}" for flag in ("-fPIC", "-fvisibility=hidden", "-fopenmp-simd", *WARNINGS)]


def switch(name: str) -> str:
    """``auto``, ``on`` or ``off`` from the environment."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "on", "off"):
        raise SystemExit(f"{name}={value}; accepted: auto, on, off")
    return value


def modules() -> list[Extension]:
    """``lsda_fast._cpu`` and ``lsda_fast._cuda``, as far as they are wanted."""
    wanted = [name for name in ("cpu", "cuda") if switch(f"LSDA_BUILD_{name.upper()}") != "off"]
    if not wanted:
        return []
    from pybind11.setup_helpers import Pybind11Extension

    built = []
    for name in wanted:
        module = Pybind11Extension(
            f"lsda_fast._{name}",
            [f"csrc/bind/{name}_module.cpp", *sorted(glob(f"csrc/{name}/*.cpp"))],
            depends=sorted(["setup.py", *glob("csrc/*/*.h"), *glob(f"csrc/{name}/*.cu")]),
            include_dirs=["csrc"],
            # Without cxx_std pybind11 looks for a compiler itself, and its error is not one that `optional` forgives.
            cxx_std=17,
            optional=switch(f"LSDA_BUILD_{name.upper()}") == "auto",
        )
        module.extra_compile_args += [*COMPILE, "-fopenmp" if name == "cpu" else "-fopenmp-simd", *WARNINGS]
        module.extra_link_args += ["-fopenmp"] if name == "cpu" else []
        built.append(module)
    return built


def nvcc() -> str:
    """The CUDA compiler; CompileError where there is none."""
    home = os.environ.get("CUDA_HOME")
    folders = f"{home}/bin" if home else os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found = shutil.which("nvcc", path=folders)
    if found is None:
        raise CompileError(f"no nvcc in {home or 'the path or /usr/local/cuda'}")
    return found


def library_folders(compiler: str) -> list[str]:
    """Where CUDA's libraries are, as ``-L`` flags: said by nvcc, which may be a wrapper of the real one."""
    plan = subprocess.run([compiler, "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ LIBRARIES=(.*)$", plan, re.MULTILINE)
    if not found:
        raise CompileError(f"{compiler} --dryrun does not say where CUDA's libraries are: {plan.strip()}")
    return [flag for flag in shlex.split(found[1]) if not flag.endswith("/stubs")]


def architectures(compiler: str) -> list[str]:
    """Those that ``LSDA_CUDA_ARCHS`` asks for; of three that this nvcc knows, when it is not set."""
    if "LSDA_CUDA_ARCHS" in os.environ:
        return os.environ["LSDA_CUDA_ARCHS"].split(";")
    known = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    wanted = ["80", "90", "100"]
    return [arch for arch in wanted if f"compute_{arch}" in known] or wanted


def compile_cuda(folder: Path, depends: list[str]) -> list[str]:
    """The objects of csrc/cuda, from one run of nvcc over all files, if one of them is not up to date."""
    compiler, sources = nvcc(), sorted(glob("csrc/cuda/*.cu"))
    archs = architectures(compiler)
    folder = folder / "-".join(archs)
    objects = [str(folder / f"{Path(source).stem}.o") for source in sources]
    if not any(newer_group(depends, made, missing="newer") for made in objects):
        return objects
    *older, newest = archs
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in older]
    targets.append(f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]")
    host = ["-ccbin", os.environ["CXX"]] if "CXX" in os.environ else []
    strict = ["-Werror=all-warnings", "-Xptxas=-Werror"] if WARNINGS else []
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler, *NVCC, *strict, *host, *targets, "-odir", str(folder), "-c", *sources]
    logging.info(" ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise CompileError(f"nvcc failed: {done.stdout.strip()}")
    return objects


class BuildModules(build_ext):
    """Leaves a note where a module that may be missing was not built, and no older module in its place."""

    def run(self) -> None:
        """Editable builds compile elsewhere and copy: know both places."""
        self.places = [Path(self.build_lib) / "lsda_fast", *([Path("lsda_fast")] if self.inplace else [])]
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build, and on failure say why in ``_cpu.missing.txt`` or ``_cuda.missing.txt``."""
        name = ext.name.rpartition(".")[2]
        notes = [place / f"{name}.missing.txt" for place in self.places]
        for note in notes:
            note.unlink(missing_ok=True)
        try:
            if name == "_cuda":
                ext.extra_objects = compile_cuda(Path(self.build_temp) / "cuda", ext.depends)
                ext.extra_link_args += [*library_folders(nvcc()), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
            super().build_extension(ext)
        except Exception as error:
            for note in notes if ext.optional else []:
                for stale in note.parent.glob(f"{name}.*.so"):
                    stale.unlink()
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{error}\n", encoding="utf-8")
            raise


setup(
    packages=[*find_packages(include=["lsda_fast", "lsda_fast.*"]), "lsda_fast.kernels", "lsda_fast.kernels.triton"],
    package_dir={"lsda_fast": "lsda_fast", "lsda_fast.kernels": "kernels"},
    ext_modules=modules(),
    cmdclass={"build_ext": BuildModules},
)
