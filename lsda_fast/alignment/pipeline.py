"""``lsda align``: backgrounds, candidates, rewards, pairs, the aligned denoiser, the package.

Each stage leaves its result in the working folder, date by date where it goes by dates, and is taken from there on
resume. Inference is unchanged: the aligned package is the parent's with another denoiser, and says where it comes from.
"""

import time as clock
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

from lsda_fast.alignment.candidates import Candidates, draw_candidates
from lsda_fast.alignment.config import AlignmentConfig
from lsda_fast.alignment.data import AlignmentStates, load_states
from lsda_fast.alignment.losses import PairLatents
from lsda_fast.alignment.pairing import CASE, select_pairs, summary
from lsda_fast.alignment.rewards import Reward, rewards_of
from lsda_fast.alignment.sharing import check_source, take_candidates
from lsda_fast.alignment.table import judge, read_table
from lsda_fast.alignment.train import align_denoiser, require_peft
from lsda_fast.diffusion.solvers import get_solver
from lsda_fast.errors import InputError
from lsda_fast.forecast_models import forecast_model, forecast_of
from lsda_fast.package import Package
from lsda_fast.package.files import check_place, package_hash
from lsda_fast.package.prior import from_latent
from lsda_fast.training.loop import Log, Progress
from lsda_fast.training.work import Work, check_claim, claimed

__all__ = ["align"]


def align(
    package: str | Path,
    dataset: xr.Dataset,
    config: AlignmentConfig,
    output: str | Path,
    *,
    resume: bool = False,
    candidates_from: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Package:
    """Align a package's prior with rewards and save it as a new package.

    Parameters
    ----------
    package : path
        Folder of the parent, which stays as it is.
    dataset : xr.Dataset
        Reference states (time, [level,] latitude, longitude).
    config : AlignmentConfig
    output : path
        Folder of the new package; the working folder stands beside it as ``<output>.work``.
    resume : bool
        Go on in the working folder of an interrupted run of the same configuration, package and states, to the same
        result.
    candidates_from : path, optional
        Working folder of another alignment, of the same package, states and candidates but other rewards, whose
        backgrounds and candidates are taken.
    device : torch.device or str
    progress : callable (stage, done, total, values), optional

    Raises
    ------
    InputError
        An unusable package, data or configuration, a working folder that is another run's, or candidates that are.
    """
    package, output = Path(package), Path(output)
    folder = Path(f"{output}.work")
    if find_spec("pyarrow") is None:
        raise InputError("reward tables need pyarrow: pip install 'lsda_fast[align]'")
    if package.resolve() == output.resolve():
        raise InputError(f"{output} is the package itself; accepted is another output")
    check_place(output)
    check_claim(folder, config, resume)
    parent = Package.load(package).to(device)
    if "forecaster" not in parent.modules:
        raise InputError("the package has no forecast model, which backgrounds are made with")
    if config.objective.lora is not None:
        require_peft()
    model = None if config.forecast_model is None else forecast_model(config.forecast_model, parent)
    rewards = rewards_of(config.rewards, parent, model=model, lead=config.lead_hours)
    states = load_states(dataset, parent, config)
    if model is not None:  # one that will not do is found out before candidates are drawn
        forecast_of(model, states.x[states.dates[:1]].to(device, parent.dtype), states.time(0), config.lead_hours)
    digest = package_hash(package)
    fingerprint = {**states.fingerprint, "package": digest}
    if candidates_from is not None:
        check_source(Path(candidates_from), config, fingerprint)
    if config.candidates.solver != "auto":
        get_solver(config.candidates.solver)  # an unknown one is refused before backgrounds are made
    with claimed(folder, config, fingerprint):
        if candidates_from is not None:
            take_candidates(Path(candidates_from), folder)
        log = Log(folder / "log.jsonl", progress)
        work = Work(folder, config, torch.device(device), log)
        return _Run(parent, digest, states, rewards, work, config).package(output)


class _Run:
    """The stages of one alignment."""

    def __init__(
        self,
        parent: Package,
        digest: str,
        states: AlignmentStates,
        rewards: Sequence[Reward],
        work: Work,
        config: AlignmentConfig,
    ) -> None:
        self.parent, self.digest, self.states, self.rewards = parent, digest, states, rewards
        self.work, self.config = work, config
        self.names = [states.name(i) for i in range(len(states.dates))]

    def package(self, output: str | Path) -> Package:
        """Run what is not done yet, and save the package."""
        config = self.config
        backgrounds = self._stage("backgrounds", "safetensors", self._background)
        candidates = self._candidates(backgrounds)
        parts = self._stage("rewards", "parquet", lambda i, path: self._rewards(i, backgrounds, candidates, path))
        table = read_table(parts)
        columns = [reward.name for reward in self.rewards]
        pairs = pd.read_parquet(self._pairs(table, columns))
        train, held_out = (self._latents(pairs[pairs["held_out"] == held], candidates) for held in (False, True))
        denoiser, scores = align_denoiser(self.work, self.parent, train, held_out, config)
        times = self.states.times[self.states.dates]
        record = {
            "parent": self.digest,
            "rewards": columns,
            "pairs": summary(pairs, table, config.pairs, len(columns) > 1),
            "period": [str(times[0]), str(times[-1])],
            # Backgrounds begin before it, and forecasts are verified after it.
            "states": [str(self.states.times[0]), str(self.states.times[-1])],
            "scores": {key: round(value, 6) for key, value in scores.items()},
            "configuration": config.model_dump(),
            "torch": torch.__version__.split("+")[0],
        }
        provenance = {**self.parent.provenance, "alignments": [*self.parent.provenance.get("alignments", []), record]}
        aligned = replace(self.parent, modules={**self.parent.modules, "denoiser": denoiser}, provenance=provenance)
        aligned.save(output, dtype=getattr(torch, config.storage))
        return Package.load(output)

    def _stage(self, stage: str, suffix: str, write: Any) -> list[Path]:
        return self.work.parts(stage, [f"{name}.{suffix}" for name in self.names], write)

    def _background(self, i: int, path: Path) -> None:
        scale = self.config.perturbation
        if scale is None:
            training = self.parent.provenance.get("configuration", {})
            scale = float(training.get("background", {}).get("perturbation", 0.0))
        x_b = self.states.background(i, self.parent, scale, self.config.seed)
        save_file({"x": x_b.contiguous()}, path)

    def _candidates(self, backgrounds: Sequence[Path]) -> list[Path]:
        """Shards of candidates; how many a second goes to the log."""
        c, seconds, drawn = self.config.candidates, 0.0, 0

        def write(i: int, path: Path) -> None:
            nonlocal seconds, drawn
            begin = clock.perf_counter()
            x_b, time = load_file(backgrounds[i])["x"], self.states.time(i)
            drawn_now = draw_candidates(
                self.parent, x_b, self.states.season(i), c, self.states.seed(i, self.config.seed)
            )
            seconds, drawn = seconds + clock.perf_counter() - begin, drawn + len(drawn_now.z)
            drawn_now.save(path, time)

        paths = self._stage("candidates", "safetensors", write)
        if drawn:
            self.work.log.write(
                "candidates", candidates=drawn, seconds=round(seconds, 2), per_second=round(drawn / seconds, 2)
            )
        return paths

    def _rewards(self, i: int, backgrounds: Sequence[Path], candidates: Sequence[Path], path: Path) -> None:
        case = self.states.case(i, self.parent, load_file(backgrounds[i])["x"])
        judge(Candidates.load(candidates[i]), case, self.rewards, self.states.draws[i]).to_parquet(path, index=False)

    def _pairs(self, table: pd.DataFrame, columns: Sequence[str]) -> Path:
        """The table of pairs."""

        def write(_: int, path: Path) -> None:
            select_pairs(table, columns, self.config.pairs, self.config.seed).to_parquet(path, index=False)

        return self.work.parts("pairs", ["pairs.parquet"], write)[0]

    def _latents(self, pairs: pd.DataFrame, candidates: Sequence[Path]) -> PairLatents:
        """The pairs' latents, in the denoiser's variable."""
        states, device = self.states, self.parent.device
        cases = {key: i for i, key in enumerate(zip(states.times[states.dates], states.draws))}
        parts = []
        for key, rows in pairs.groupby(CASE):
            i = cases[key]  # type: ignore[index]
            shard = Candidates.load(candidates[i])
            z_b = shard.background[None].to(device)
            with torch.no_grad():
                z = self.parent.autoencoder.encode(states.x[states.dates[[i]]].to(device, self.parent.dtype))
                u = from_latent(self.parent, torch.cat([z, shard.z.to(device)]), z_b).cpu()
            winner, loser = (u[1:][rows[name].tolist()] for name in ("winner", "loser"))
            once = (u[:1], z_b.cpu(), shard.calendar[None])
            parts.append((winner, loser, *(part.expand(len(rows), *part.shape[1:]) for part in once)))
        return PairLatents(*(torch.cat(column) for column in zip(*parts)))
