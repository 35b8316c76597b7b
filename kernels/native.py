"""The compiled modules ``lsda_fast._cpu`` and ``lsda_fast._cuda``, or the reason why one is not there.

``LSDA_REQUIRE=cpu,cuda`` makes the absence of one of them an ImportError. ``LSDA_CPU_ISA`` (baseline, x86-64-v3,
x86-64-v4) holds the first to an instruction set below the processor's best. Whether a GPU is there is not asked here.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

# torch before the modules: they then share one OpenMP runtime.
import torch
from torch import Tensor

import lsda_fast
from lsda_fast.errors import InputError

__all__ = ["ABI", "TITLES", "Module", "about", "bound", "load", "noted", "run", "set_isa"]

# kAbi of csrc/core/base.h.
ABI = 12

# What a module's code is called.
TITLES = {"cpu": "C++", "cuda": "CUDA C++"}

Note = Callable[[str, Callable[..., None], tuple[Any, ...]], None]
_note: ContextVar[Note | None] = ContextVar("note", default=None)


class Module(NamedTuple):
    """The module and nothing, or nothing and why."""

    code: Any
    missing: str


@cache
def load(name: str) -> Module:
    """Load ``lsda_fast._cpu`` or ``lsda_fast._cuda``, once.

    Raises
    ------
    ImportError
        It is missing, and ``LSDA_REQUIRE`` asks for it.
    """
    found = _find(name)
    if found.code is not None and name == "cpu" and "LSDA_CPU_ISA" in os.environ:
        set_isa(found.code, os.environ["LSDA_CPU_ISA"])
    if found.code is None and name in os.environ.get("LSDA_REQUIRE", "").split(","):
        raise ImportError(f"LSDA_REQUIRE asks for the {TITLES[name]} kernels: {found.missing}")
    return found


def about() -> str:
    """The version, compiler, instruction sets and place of the CPU's module; "" where it is not built."""
    cpu = load("cpu").code
    if cpu is None:
        return ""
    built = cpu.build_info()
    isas = ", ".join(built["isas"])
    return f"version {built['abi']}, compiler {built['compiler']}, this processor has {isas}, {cpu.__file__}"


def run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a function for numbers of this size, in the module for the first tensor's device: tensors go by address.

    On the CPU torch's number of threads comes last, on a GPU its number and torch's stream of the moment.
    """
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    function = getattr(load(device.type).code, f"{name}_{8 * dtype.itemsize}")
    if device.type == "cpu":
        note = _note.get()
        if note:
            note(name, function, arguments)
        function(*map(_address, arguments), torch.get_num_threads())
    else:
        with torch.cuda.device(device):
            function(*map(_address, arguments), device.index, torch.cuda.current_stream().cuda_stream)


def bound(function: Callable[..., None], arguments: Sequence[Any]) -> Callable[[], None]:
    """A call on the CPU, to be made later: with the addresses, and the number of threads, of now."""
    return partial(function, *map(_address, arguments), torch.get_num_threads())


@contextmanager
def noted(note: Note) -> Iterator[None]:
    """Tell ``note`` of every call on the CPU in this block: its name, the function, and the arguments, with tensors."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def set_isa(cpu: Any, name: str) -> None:
    """Hold the module to an instruction set; InputError when the processor does not have it."""
    known = cpu.build_info()["isas"]
    if name not in known:
        raise InputError(f"instruction set {name!r}; this processor has: {', '.join(known)}")
    cpu.set_isa(name)


def _address(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, (list, tuple)):
        return [_address(a) for a in argument]
    return 0 if argument is None else argument


def _find(name: str) -> Module:
    # Only beside this package: a finder of another installation would come up with its own.
    if PathFinder.find_spec(f"lsda_fast._{name}", lsda_fast.__path__) is None:
        return Module(None, _why_not_built(name))
    try:
        code = import_module(f"lsda_fast._{name}")
    except ImportError as error:
        return Module(None, f"lsda_fast._{name} does not load: {error}")
    built = code.build_info()["abi"]
    if built != ABI:
        return Module(None, f"lsda_fast._{name} is of version {built}, the package of {ABI}: install it again")
    return Module(code, "")


def _why_not_built(name: str) -> str:
    switch = f"LSDA_BUILD_{name.upper()}"
    note = Path(str(lsda_fast.__file__)).parent / f"_{name}.missing.txt"
    if not note.is_file():
        return f"not built: a checkout without installation, or {switch}=off"
    reason = " ".join(note.read_text(encoding="utf-8").split())
    return f"the build failed: {reason}; {switch}=on pip install -v shows the compiler's own words"
