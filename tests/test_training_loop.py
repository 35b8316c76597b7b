"""The training loop: averaged weights, validation, patience, parts of a batch, precision."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsda_fast.training.config import Optimization
from lsda_fast.training.loop import Log, _rate, fit

PLAIN: dict[str, Any] = {"lr": 0.1, "warmup": 0, "weight_decay": 0.0, "ema": 0.0, "batch": 1}


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def distance(self) -> float:
        return float((self.w.detach() - 1.0).square().sum())


def quadratic(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
    return (module.w - 1.0).square().sum()


def test_the_best_averaged_weights_are_kept_whatever_comes_after() -> None:
    held: list[float] = []

    def validate(module: Any) -> float:
        held.append(module.distance())
        return [4.0, 3.0, 1.0, float("nan"), 2.0][len(held) - 1]

    module: Any = Point()
    optimization = Optimization(steps=40, lr=0.1, warmup=0, weight_decay=0.0, ema=0.5, validate_every=10, batch=1)
    fit(module, quadratic, 4, optimization, stage="x", seed=0, log=Log(None), validate=validate)
    assert module.distance() == pytest.approx(held[2])
    assert len(set(held)) == 5
    last = Point()
    fit(last, quadratic, 4, optimization, stage="x", seed=0, log=Log(None))
    assert last.distance() == pytest.approx(held[4])


def test_a_training_that_only_does_harm_leaves_the_network_as_it_began() -> None:
    calls: list[float] = []

    def validate(module: Any) -> float:
        calls.append(module.distance())
        return float(len(calls))

    module: Any = Point()
    begun = module.distance()
    optimization = Optimization(steps=20, lr=0.1, warmup=0, batch=1, validate_every=10)
    fit(module, quadratic, 4, optimization, stage="x", seed=0, log=Log(None), validate=validate)
    assert module.distance() == begun
    assert calls[-1] != begun


def test_the_average_forgets_its_beginning_sooner_than_a_decay_of_0_999() -> None:
    module = Point()
    fit(module, quadratic, 4, Optimization(**PLAIN | {"steps": 1, "ema": 0.999}), stage="x", seed=0, log=Log(None))
    torch.testing.assert_close(module.w, torch.full((2,), 0.09), rtol=1e-3, atol=0)  # Adam's first step is lr


def test_the_norm_of_gradients_is_clipped() -> None:
    """After one a thousand times as large, Adam's next step is as long as if the two were alike."""
    scales, module = iter([1e3, 1.0]), Point()

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        return next(scales) * module.w.sum()

    fit(module, loss, 4, Optimization(**PLAIN | {"steps": 2, "warmup": 2}), stage="x", seed=0, log=Log(None))
    torch.testing.assert_close(module.w, torch.full((2,), -0.15), rtol=1e-3, atol=0)


def test_the_rate_rises_through_the_warm_up_and_falls_to_0_as_a_cosine() -> None:
    optimization = Optimization(steps=110, warmup=10)
    rates = [_rate(step, optimization) for step in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_weights_decay_by_the_rate_times_their_decay() -> None:
    module: Any = nn.Linear(1, 1, bias=False)
    before = module.weight.item()

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        return 0 * module.weight.sum()

    settings = Optimization(**PLAIN | {"steps": 1, "weight_decay": 0.5})
    fit(module, loss, 4, settings, stage="x", seed=0, log=Log(None))
    assert module.weight.item() == pytest.approx(0.95 * before)


def test_a_batch_in_parts_takes_the_same_steps() -> None:
    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        return (indices[:, None] * (module.w - 1.0).square()).sum(1).mean()

    whole, parts = Point(), Point()
    for module, accumulate in ((whole, 1), (parts, 3)):
        settings = Optimization(steps=7, batch=8, lr=0.05, warmup=0, accumulate=accumulate)
        fit(module, loss, 24, settings, stage="x", seed=0, log=Log(None))
    assert whole.distance() > 0
    torch.testing.assert_close(parts.w, whole.w)


def test_patience_ends_a_training_and_a_resume_does_not_go_on(tmp_path: Path) -> None:
    calls: list[float] = []

    def validate(module: Any) -> float:
        calls.append(module.distance())
        return abs(len(calls) - 3.0)  # the third is the best

    steps: list[int] = []
    log = Log(None, lambda stage, done, total, values: steps.append(done))
    settings = Optimization(steps=100, batch=1, lr=0.1, warmup=0, validate_every=2, patience=2)
    for _ in range(2):
        module = Point()
        fit(module, quadratic, 4, settings, stage="x", seed=0, log=log, validate=validate,
            checkpoint=tmp_path / "x.checkpoint", checkpoint_minutes=0.0)  # fmt: skip
        assert steps == list(range(1, 9))
        assert module.distance() == calls[2]
    assert len(calls) == 5


def test_every_sample_is_seen_once_an_epoch() -> None:
    seen: list[list[int]] = []

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(indices.tolist())
        return module.w.sum()

    fit(Point(), loss, 12, Optimization(steps=6, batch=4), stage="x", seed=0, log=Log(None))
    first, second = (list(chain(*epoch)) for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_have_the_precision_that_is_asked_for_and_weights_stay_float32(
    precision: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    module: Any = nn.Linear(8, 8)
    seen: set[torch.dtype] = set()

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        y = module(torch.ones(4, 8))
        seen.add(y.dtype)
        return (y - 1).square().mean()

    optimization = Optimization(steps=60, batch=1, lr=0.05, warmup=0, ema=0.0, precision=precision)
    fit(module, loss, 4, optimization, stage="x", seed=0, log=Log(None))
    assert seen == {dtype}
    assert module.weight.dtype is torch.float32
    assert float((module(torch.ones(4, 8)) - 1).square().mean()) < 1e-3
