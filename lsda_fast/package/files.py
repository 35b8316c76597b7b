"""The folder of a package: a manifest and one weight file per module, written whole or not at all, read with checks.

The manifest lists size and SHA-256 of every weight file. Nothing outside the folder is read.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsda_fast.errors import InputError

__all__ = ["FORMAT", "check_place", "checked_file", "load_weights", "package_hash", "read_manifest", "write_package"]

FORMAT = 1


def check_place(path: Path) -> None:
    """InputError where something lies that is not a package."""
    # The folder is replaced whole: what is not a package must not go with it.
    replaceable = (path / "manifest.json").is_file() or (path.is_dir() and not any(path.iterdir()))
    if path.exists() and not replaceable:
        raise InputError(f"{path} is not a package; accepted is a package, an empty folder or a new name")


def write_package(
    path: Path, manifest: Mapping[str, Any], modules: Mapping[str, nn.Module], dtype: torch.dtype
) -> Path:
    """Write a folder and put it in the place of an older package; InputError where something else is there."""
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _write_files(folder, manifest, modules, dtype)
        os.chmod(folder, 0o755)
        _put_in_place(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return path


def _write_files(
    folder: Path, manifest: Mapping[str, Any], modules: Mapping[str, nn.Module], dtype: torch.dtype
) -> None:
    files = {}
    for name, module in modules.items():
        file = folder / f"{name}.safetensors"
        exact = {f"{at}.{key}".lstrip(".") for at, part in module.named_modules() for key in getattr(part, "exact", ())}
        save_file({key: _stored(value, dtype, key in exact) for key, value in module.state_dict().items()}, file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    record = folder / "manifest.json"
    record.write_text(json.dumps({**manifest, "files": files}, indent=1) + "\n")
    for name in files:  # safetensors keeps its files to the one who wrote them
        os.chmod(folder / name, record.stat().st_mode)


def _put_in_place(folder: Path, path: Path) -> None:
    """Rename ``folder`` to ``path``; a package that was there comes back when that fails."""
    if not path.exists():
        os.replace(folder, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / "old"
    os.replace(path, old)
    try:
        os.replace(folder, path)
    except BaseException:
        os.replace(old, path)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a package folder, its keys checked."""
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path}: no manifest.json there; accepted is the folder of a package")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        came = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{file}: format {came!r}; accepted is {FORMAT}")
    missing = {
        "layout", "normalization", "schedule", "prediction", "whitened", "lead_hours", "architectures",
        "reconstruction_error", "observation_std", "provenance", "files",
    } - manifest.keys()  # fmt: skip
    if missing:
        raise InputError(f"{file}: without {', '.join(sorted(missing))}")
    return manifest


def package_hash(path: Path) -> str:
    """SHA-256 of the manifest, which lists those of all weights."""
    return _sha256(path / "manifest.json")


def checked_file(folder: Path, name: str, files: Mapping[str, Any]) -> Path:
    """The file's path, once it is inside the folder and has the size and hash that the manifest says."""
    for other in files:
        inside = (folder / other).resolve()
        if inside.parent != folder.resolve() or (folder / other).is_symlink():
            raise InputError(f"{folder}: file {other!r} lies outside the package")
    if name not in files:
        raise InputError(f"{folder}: the manifest lists no {name}")
    file = folder / name
    if not file.is_file():
        raise InputError(f"{file}: missing")
    listed = files[name] if isinstance(files[name], dict) else {}
    size, digest = listed.get("bytes"), listed.get("sha256")
    if file.stat().st_size != size:
        raise InputError(f"{file}: {file.stat().st_size} bytes; the manifest says {size}")
    if _sha256(file) != digest:
        raise InputError(f"{file}: its SHA-256 is not the manifest's; the file was changed")
    return file


def load_weights(module: nn.Module, file: Path) -> None:
    """Give a module the weights of a file, in single precision; InputError when they do not fit."""
    try:
        weights = {key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()}
        module.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        why = " ".join(" ".join(str(error).splitlines()[:2]).split())
        raise InputError(f"{file}: the weights do not fit the manifest: {why}") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _stored(value: Tensor, dtype: torch.dtype, exact: bool) -> Tensor:
    # A copy, because safetensors refuses weights that share memory.
    narrow = value.is_floating_point() and value.ndim > 1 and not exact
    return value.detach().cpu().to(dtype if narrow else value.dtype, copy=True).contiguous()
