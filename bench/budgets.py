"""What do the kernels in Triton and CUDA C++ take of a GPU? Registers, spills and shared memory, without one.

Every signature of every Triton kernel is compiled ahead of time for A100, H100/H200 and B200; the CUDA C++ kernels are
those of the module ``lsda_fast._cuda``. The cubins are read by the cuobjdump that Triton brings. A kernel may neither
spill nor keep anything else in local memory; and with the compiler that ``budgets/triton.json`` or ``cuda.json`` was
written with, it may take no more than that allows, but for a tenth more registers, in steps of 8.

    python bench/budgets.py                 # hold all kernels to the files
    python bench/budgets.py cuda --write    # write one of the files anew
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lsda_fast.kernels import native, registry
from lsda_fast.kernels.triton.base import Signature

ARCHITECTURES = (80, 90, 100)
FOLDER = Path(__file__).parent / "budgets"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Sizes that contiguous elements start at a multiple of: of a member, of channels, features or places.
ALIGNED = ("n", "C", "F", "S")
Usage = dict[str, int]


def signatures() -> dict[str, Signature]:
    """All of them, by operation and variant."""
    registry.report()
    return {
        f"{name} {variant}": signature
        for name, operation in sorted(registry.OPERATIONS.items())
        if "triton" in operation.natives
        for variant, signature in import_module(f"lsda_fast.kernels.triton.{name}").SIGNATURES.items()
    }


def usage(signature: Signature, architecture: int) -> Usage:
    """Compile, for memory aligned as torch's is and sizes of a multiple of 16, and read the cubin."""
    kernel, types, constants, options = signature
    names = kernel.arg_names
    aligned = [name for name, t in types.items() if t[0] == "*" or name in ALIGNED]
    compiled = triton.compile(
        ASTSource(
            kernel,
            {name: types.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
        ),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return {**numbers(resources(file.name)), "shared": compiled.metadata.shared}


def triton_usage() -> dict[str, Usage]:
    """Of all signatures, by name and architecture."""
    return {
        f"{name} sm_{architecture}": usage(signature, architecture)
        for name, signature in signatures().items()
        for architecture in ARCHITECTURES
    }


def cuda_usage() -> dict[str, Usage]:
    """Of all kernels of the CUDA module, by name, type, constants of the template and architecture."""
    module = native.load("cuda")
    if module.missing:
        raise SystemExit(f"no CUDA module: {module.missing}")
    found = {}
    for part in resources(module.code.__file__).split("arch = ")[1:]:
        architecture = part.split()[0]
        for mangled, line in re.findall(r"Function (\S+):\n(.*)", part):
            parts = re.search(r"\d([a-z_]+)_kernelI([fd])((?:Li\d+E)*)E", mangled)
            if parts is None:
                raise SystemExit(f"{mangled} is no name of a kernel that is understood")
            name, real, constants = parts.groups()
            words = (name, {"f": "f32", "d": "f64"}[real], *re.findall(r"\d+", constants), architecture)
            found[" ".join(words)] = numbers(line)
    return dict(sorted(found.items()))


def resources(file: str) -> str:
    """What cuobjdump says."""
    return subprocess.run([str(CUOBJDUMP), "-res-usage", file], capture_output=True, text=True, check=True).stdout


def numbers(text: str) -> Usage:
    """Of one kernel."""
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    return {"registers": used["REG"], "stack": used["STACK"], "local": used["LOCAL"], "shared": used["SHARED"]}


def excess(name: str, found: Usage, budget: Usage | None, same_compiler: bool = True) -> list[str]:
    """What a kernel takes beyond its budget, a sentence each."""
    if budget is None:
        return [f"{name}: no budget; --write makes one"]
    allowed = {"stack": 0, "local": 0}
    if same_compiler:
        allowed |= {"registers": -(-round(1.1 * budget["registers"]) // 8) * 8, "shared": budget["shared"]}
    return [f"{name}: {key} {found[key]}; allowed: {allowed[key]}" for key in allowed if found[key] > allowed[key]]


def hold(kind: str, write: bool) -> list[str]:
    """Compile all of a kind; write its file, or say what is beyond it."""
    found = {"triton": triton_usage, "cuda": cuda_usage}[kind]()
    compiler = triton.__version__ if kind == "triton" else native.load("cuda").code.build_info()["nvcc"]
    file = FOLDER / f"{kind}.json"
    if write:
        rows = "".join(f",\n  {json.dumps(name)}: {json.dumps(used)}" for name, used in found.items())
        file.write_text(f'{{\n  "compiler": "{compiler}"{rows}\n}}\n')
    budgets = json.loads(file.read_text())
    same = budgets.pop("compiler") == compiler
    wrong = [line for name, used in found.items() for line in excess(name, used, budgets.get(name), same)]
    wrong += [f"{name}: a budget without a kernel; --write drops it" for name in budgets if name not in found]
    print(*wrong or [f"{len(found)} {kind} kernels within their budgets"], sep="\n")
    return wrong


def main() -> None:
    """Exit with 1 on any excess."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="*", choices=["triton", "cuda"], help="all when none is given")
    parser.add_argument("--write", action="store_true", help="write the file anew")
    options = parser.parse_args()
    sys.exit(any([hold(kind, options.write) for kind in options.kind or ["triton", "cuda"]]))


if __name__ == "__main__":
    main()
