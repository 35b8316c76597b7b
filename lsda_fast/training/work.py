"""The working folder of a run of training or alignment: whose it is, and the stages that it has finished.

``config.json`` and ``states.json`` say which configuration and which inputs the folder belongs to; ``<stage>.pt``
holds the weights of a finished stage, ``<stage>.checkpoint`` where an unfinished one is, and a folder ``<stage>`` the
files of one that is made in parts.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from lsda_fast.errors import InputError
from lsda_fast.models import build
from lsda_fast.package import Architecture
from lsda_fast.training.config import Optimization
from lsda_fast.training.loop import Log, Loss, fit

__all__ = ["Made", "Settings", "Work", "check_claim", "claimed"]


class Settings(Protocol):
    """What a run's configuration must say."""

    @property
    def seed(self) -> int:
        """Seed of everything random."""

    @property
    def checkpoint_minutes(self) -> float:
        """Time between checkpoints."""


class Made(NamedTuple):
    """What some stages leave: modules of the package, how to rebuild them, and how good they are."""

    modules: dict[str, nn.Module]
    architectures: dict[str, Architecture]
    scores: dict[str, float]


def check_claim(folder: Path, config: BaseModel, resume: bool) -> None:
    """Make sure that the folder is free, or belongs to this configuration."""
    record = folder / "config.json"
    if not record.exists():
        return
    if not resume:
        raise InputError(f"{folder} holds an earlier run; go on with --resume, or remove it")
    try:
        # A setting that the record does not know had its default.
        earlier = type(config).model_validate_json(record.read_text())
    except ValidationError:
        earlier = None
    if earlier != config:
        raise InputError(f"{folder} holds a run of another configuration; accepted is the same one, or another output")


@contextmanager
def claimed(folder: Path, config: BaseModel, fingerprint: Mapping[str, str]) -> Iterator[None]:
    """The folder of a run, which is recorded as whose it is; InputError where it belongs to other inputs.

    An InputError in a new folder, before anything was finished there, leaves none in the way of the next attempt.
    """
    own = {"config.json", "states.json", "log.jsonl"}
    new = not (folder / "config.json").exists()
    _claim(folder, config, fingerprint)
    try:
        yield
    except InputError:
        left = [path for path in folder.rglob("*") if path.is_file()]
        if new and all(path.name in own for path in left):
            shutil.rmtree(folder)
        raise


def _claim(folder: Path, config: BaseModel, fingerprint: Mapping[str, str]) -> None:
    record = folder / "states.json"
    # Absent in a new folder, and in one that was made before states were recorded.
    if record.exists():
        try:
            before = json.loads(record.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{record} cannot be read ({error}); accepted is another output, or none there") from error
        other = [part for part, value in fingerprint.items() if before.get(part) != value]
        if other:
            raise InputError(
                f"{folder} holds a run of inputs with other {', '.join(other)}; "
                "accepted are the same inputs, or another output"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in (
        (record, json.dumps(fingerprint, indent=1)),
        (folder / "config.json", config.model_dump_json(by_alias=True, indent=1)),
    ):
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(text)
            partial.replace(path)


class Work:
    """Builds the networks of a run, trains them, and keeps what is finished.

    Parameters
    ----------
    folder : Path
    config : Settings
    device : torch.device
    log : Log
    """

    def __init__(self, folder: Path, config: Settings, device: torch.device, log: Log) -> None:
        self.folder, self.config, self.device, self.log = folder, config, device, log

    def build(self, registry: Mapping[str, Any], architecture: Architecture, seed: int) -> nn.Module:
        """A network as it begins, from its own seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed + seed)
            return build(dict(registry), architecture.name, architecture.settings).to(self.device)

    def stage(self, module: nn.Module, name: str, run: Callable[[], Any]) -> None:
        """Load a finished stage, or run it and keep it."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            module.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        else:
            run()
            torch.save(module.state_dict(), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        module.eval().requires_grad_(False)

    def parts(self, stage: str, names: Sequence[str], write: Callable[[int, Path], Any]) -> list[Path]:
        """The files of a stage that is made in parts, each written whole or not at all by ``write(i, path)``.

        Those that are there stay; the paths, with the names' own suffixes, lie in the folder ``stage``.
        """
        folder = self.folder / stage
        folder.mkdir(exist_ok=True)
        paths = [folder / name for name in names]
        for i, path in enumerate(paths):
            if not path.exists():
                partial = path.with_suffix(".partial")
                write(i, partial)
                partial.replace(path)
            self.log.step(stage, i + 1, len(paths))
        return paths

    def fit(
        self,
        module: nn.Module,
        loss: Loss,
        samples: int,
        optimization: Optimization,
        stage: str,
        seed: int,
        validate: Callable[[Any], float],
    ) -> None:
        """Train in place, with the stage's log and checkpoint."""
        fit(
            module,
            loss,
            samples,
            optimization,
            stage=stage,
            seed=self.config.seed + seed,
            log=self.log,
            validate=validate,
            checkpoint=self.folder / f"{stage}.checkpoint",
            checkpoint_minutes=self.config.checkpoint_minutes,
        )
