"""The one training loop: AdamW, averaged weights, best-of-validation, checkpoints, and a resume to the same result.

Everything random in step ``i`` is seeded by (seed, i), so that a run goes on after an interruption as if there had
been none.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.training.config import Optimization

__all__ = ["Log", "Loss", "Progress", "fit"]

Loss = Callable[[Any, Tensor, torch.Generator], Tensor]
Progress = Callable[[str, int, int, dict[str, Any]], None]


class Log:
    """JSON lines in a file, and a callback for progress bars."""

    def __init__(self, path: Path | None, progress: Progress | None = None) -> None:
        self._path, self._progress = path, progress

    def write(self, stage: str, **values: Any) -> None:
        """Append one line."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"stage": stage, **values}) + "\n")

    def step(self, stage: str, done: int, total: int, **values: Any) -> None:
        """Tell how far a stage is."""
        if self._progress is not None:
            self._progress(stage, done, total, values)


def fit(
    module: nn.Module,
    loss: Loss,
    samples: int,
    optimization: Optimization,
    *,
    stage: str,
    seed: int,
    log: Log,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    checkpoint_minutes: float = 3.0,
) -> nn.Module:
    """Train ``module`` in place and leave its best averaged weights in it.

    Parameters
    ----------
    module : nn.Module
    loss : callable (module, indices (B,), generator) -> scalar
    samples : int
        Size of the training set that ``indices`` point into.
    validate : callable (module) -> float, optional
        Lower is better; the averaged weights of the best validation are kept, the last ones when there is none.
    checkpoint : Path, optional
        File to resume from and to write to.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if optimization.steps == 0 or not parameters:
        return module.eval()
    device = parameters[0].device
    mixed = optimization.precision == "bfloat16" or (optimization.precision == "auto" and device.type == "cuda")
    optimizer = torch.optim.AdamW(parameters, lr=optimization.lr, weight_decay=optimization.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, optimization))
    # Statistics of batches belong to the weights that they were made with, and are averaged like them.
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [*parameters, *(t for m in norms for t in (m.running_mean, m.running_var) if t is not None)]
    average = [p.detach().clone() for p in kept]
    best, best_loss, start, stale = [p.clone() for p in average], math.inf, 0, 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average, best, best_loss, start, stale = (state[k] for k in ("average", "best", "best_loss", "step", "stale"))
    elif validate is not None:
        # What training has to beat: a network whose head starts at zero is the linear optimum already.
        with torch.no_grad():
            best_loss = validate(module.eval())
    saved, running, begin = time.monotonic(), 0.0, time.monotonic()
    for step in range(start, optimization.steps):
        if optimization.patience is not None and stale >= optimization.patience:
            break
        optimizer.zero_grad(set_to_none=True)
        indices = _batch(samples, optimization.batch, seed, step)
        value = _accumulate(module, loss, indices.chunk(optimization.accumulate), seed, step, mixed)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(optimization.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in kept], 1 - decay)
        running = value if step == start else 0.98 * running + 0.02 * value
        done = step + 1
        log.step(stage, done, optimization.steps, loss=running)
        if done % optimization.validate_every == 0 or done == optimization.steps:
            held = _validated(module, kept, average, validate) if validate else math.nan
            stale += 1
            if validate is None or held < best_loss:  # a diverged run's NaN is not better
                best, best_loss, stale = [p.clone() for p in average], held, 0
            log.write(stage, step=done, loss=round(running, 6), validation=None if math.isnan(held) else round(held, 6),
                      seconds=round(time.monotonic() - begin, 1))  # fmt: skip
        if checkpoint is not None and (
            time.monotonic() - saved > 60 * checkpoint_minutes or done == optimization.steps
        ):
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                **{"average": average, "best": best, "best_loss": best_loss, "step": done, "stale": stale},
            }
            _save(checkpoint, state)
            saved = time.monotonic()
    with torch.no_grad():
        torch._foreach_copy_([p.data for p in kept], best)
    return module.eval()


def _accumulate(module: nn.Module, loss: Loss, parts: Sequence[Tensor], seed: int, step: int, mixed: bool) -> float:
    """Gradients of the batch's mean loss, added up over its parts; the loss."""
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(_mix(seed, step))
    total, size = 0.0, sum(len(part) for part in parts)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_mix(seed + 1, step))
        module.train()
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                value = loss(module, part, generator) * (len(part) / size)
            value.backward()
            total += value.item()
    return total


def _rate(step: int, optimization: Optimization) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < optimization.warmup:
        return (step + 1) / optimization.warmup
    progress = (step - optimization.warmup) / max(1, optimization.steps - optimization.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _mix(seed: int, step: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) & 0x7FFFFFFFFFFFFFFF


def _batch(samples: int, batch: int, seed: int, step: int) -> Tensor:
    """The step's indices: every epoch its own permutation, found from the step alone."""
    per_epoch = max(1, samples // batch)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(_mix(seed + 2, epoch)))
    return order[position * batch : (position + 1) * batch]


def _validated(
    module: nn.Module, parameters: list[Tensor], average: list[Tensor], validate: Callable[[nn.Module], float]
) -> float:
    """Validation of the averaged weights; the trained ones are put back."""
    trained = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_copy_([p.data for p in parameters], average)
        held = validate(module.eval())
        torch._foreach_copy_([p.data for p in parameters], trained)
    return held


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)
