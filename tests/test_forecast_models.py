"""Forecast models: functions in physical units, and the published ONNX forms with graphs small enough to know."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.forecast_models import CallableForecast, FengWu, Form, OnnxForecast, Pangu, forecast_model
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.package import Package

TIME = np.datetime64("2018-01-01T06", "ns")
H, W = 5, 8
GRID = Grid(np.linspace(90, -90, H), np.arange(W) * 45.0)


def package(names: tuple[str, ...], grid: Grid = GRID) -> Package:
    """States of these channels; msl in hPa, everything else in SI units."""
    split = [(name, None) if name in ("msl", "u10", "v10", "t2m") else (name[0], float(name[1:])) for name in names]
    channels = tuple(Channel(v, level, {"msl": "hPa", "t2m": "K"}.get(v, "")) for v, level in split)
    size = np.arange(1.0, len(names) + 1)
    return Package(
        StateLayout(grid, channels),
        Normalization(10 * size, size),
        Schedule.edm(),
        "wiener",
        {},
        {},
        np.zeros(len(names)),
    )


def draw(of: Package, count: int, seed: int = 0) -> Tensor:
    """Normalised states."""
    return torch.randn(count, *of.layout.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def onnx() -> ModuleType:
    """The library that writes graphs; what needs it is skipped, and says so, without it or the runtime."""
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def write(onnx: ModuleType, path: Path, shapes: dict[str, Any], nodes: list[Any]) -> Path:
    """A graph of nodes whose inputs have these shapes; 'two' is a constant."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    made = [name for node in nodes for name in node.output if name.startswith("output")]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, number, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, number, None) for name in made],
        [helper.make_tensor("two", number, [], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def pangu(onnx: ModuleType, folder: Path, H: int = H) -> Path:
    """Doubles what is aloft, and adds two to what is at the surface."""
    shapes = {"input": (5, 13, H, W), "input_surface": (4, H, W)}
    node = onnx.helper.make_node
    nodes = [node("Mul", ["input", "two"], ["output"]), node("Add", ["input_surface", "two"], ["output_surface"])]
    return write(onnx, folder / "pangu.onnx", shapes, nodes)


def test_a_function_in_physical_units_is_called_step_by_step() -> None:
    of = package(("msl", "t2m"))
    seen: list[np.datetime64] = []

    def warming(states: np.ndarray, time: np.datetime64) -> np.ndarray:
        seen.append(time)
        return states + np.array([0.0, 4.0])[:, None, None]

    x = draw(of, 3)
    out = CallableForecast(warming, of, 6.0)(x, TIME, 18.0)
    torch.testing.assert_close(out, x + torch.tensor([0.0, 6.0])[:, None, None])
    assert seen == [TIME + np.timedelta64(hours, "h") for hours in (0, 6, 12)]
    with pytest.raises(InputError, match="lead 10 h; accepted are multiples of the function's 6 h"):
        CallableForecast(warming, of, 6.0)(x, TIME, 10.0)
    with pytest.raises(InputError, match=r"gave \(1, 2, 5, 8\); accepted is \(3, 2, 5, 8\)"):
        CallableForecast(lambda states, time: states[:1], of, 6.0)(x, TIME, 6.0)


def test_a_function_of_the_current_folder_makes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["def same(package):", "    return lambda x, time, hours: x", "def none(package):", "    pass", "thing = 3"]
    lines += ["def itself(x, time, hours):", "    return x"]
    (tmp_path / "broken_models.py").write_text("def same(:")
    (tmp_path / "named_models.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    of = package(("msl", "t2m"))
    x = draw(of, 2)
    assert torch.equal(forecast_model("named_models:same", of)(x, TIME, 6.0), x)
    refused = {
        "named_models": "accepted is MODULE:FUNCTION",
        "absent_models:same": "is not to be had: ModuleNotFoundError: No module named 'absent_models'",
        "named_models:other": "is not to be had: AttributeError: module 'named_models' has no attribute 'other'",
        "named_models:none": "makes no forecast model; accepted is a function of the package that returns one",
        "named_models:thing": "makes no forecast model",
        "named_models:itself": "makes no forecast model",
        ".named_models:same": "is not to be had: TypeError",
        "broken_models:same": "is not to be had: SyntaxError",
    }
    for name, message in refused.items():
        with pytest.raises(InputError, match=message):
            forecast_model(name, of)


def test_the_orders_of_channels_are_the_published_ones() -> None:
    assert (Pangu.names[0], Pangu.names[12], Pangu.names[13], Pangu.names[65:]) == (
        "z1000",
        "z50",
        "q1000",
        ("msl", "u10", "v10", "t2m"),
    )
    assert (FengWu.names[:5], FengWu.names[16], FengWu.names[-1]) == (
        ("u10", "v10", "t2m", "msl", "z50"),
        "z1000",
        "t1000",
    )
    assert sorted(Pangu.names) == sorted(FengWu.names)


def test_pangu_takes_two_inputs_and_gives_the_next_step(onnx: ModuleType, tmp_path: Path) -> None:
    of = package(tuple(sorted(Pangu.names)))
    x = draw(of, 2)
    out = OnnxForecast(pangu(onnx, tmp_path), of, Pangu())(x, TIME, 48.0)
    states = of.denormalize(x)
    for i, name in enumerate(of.layout.names):
        # Two Pa are 0.02 hPa.
        states[:, i] = states[:, i] + {"msl": 0.04}.get(name, 4.0) if name in Pangu.names[65:] else 4 * states[:, i]
    torch.testing.assert_close(out, of.normalize(states), rtol=1e-4, atol=1e-4)


def test_fengwu_takes_the_state_six_hours_ago_too(onnx: ModuleType, tmp_path: Path) -> None:
    of = package(tuple(sorted(FengWu.names)))
    node = onnx.helper.make_node
    nodes = [
        node("Split", ["input"], ["ago", "now"], axis=1, num_outputs=2),
        node("Mul", ["now", "two"], ["twice"]),
        node("Sub", ["twice", "ago"], ["ahead"]),
        node("Concat", ["ahead", "now"], ["output"], axis=1),
    ]
    graph = write(onnx, tmp_path / "fengwu.onnx", {"input": (1, 138, "H", "W")}, nodes)
    mean, std = np.linspace(-1, 1, 69), np.linspace(1, 2, 69)
    np.save(tmp_path / "mean.npy", mean)
    x, before = draw(of, 2), draw(of, 1, seed=1)[0]
    asked: list[np.datetime64] = []
    form = FengWu(tmp_path / "mean.npy", std, lambda time: (asked.append(time), before)[1])
    out = OnnxForecast(graph, of, form)(x, TIME, 12.0)
    # Straight on from the two states, whatever the normalisation.
    torch.testing.assert_close(out, x + 2 * (x - before), rtol=1e-3, atol=1e-3)
    assert asked == [TIME - np.timedelta64(6, "h")]


def test_graphs_and_packages_that_do_not_fit_are_refused(onnx: ModuleType, tmp_path: Path) -> None:
    names = Pangu.names
    graph, of = pangu(onnx, tmp_path), package(names)
    shifted = Grid(GRID.latitude, GRID.longitude - 180)
    (tmp_path / "words.onnx").write_text("no graph")

    def opened(path: Path = graph, of: Package = of, form: Form = Pangu(), **options: Any) -> OnnxForecast:  # noqa: B008
        return OnnxForecast(path, of, form, **options)

    for refused, sentence in (
        (lambda: opened(of=package((*names[1:], "w500"))), "lacks z1000 of Pangu's channels and has w500 beyond them"),
        (lambda: opened(of=package(names, shifted)), "5 x 8 points are not the graph's"),
        (lambda: opened(tmp_path / "none.onnx"), "none.onnx is not a file; accepted is an ONNX graph"),
        (lambda: opened(tmp_path / "words.onnx"), "words.onnx is not a graph that ONNX Runtime opens"),
        (lambda: opened(device="tpu"), "device 'tpu' came; accepted are cpu, cuda"),
        (lambda: opened()(draw(of, 1), TIME, 36.0), "lead 36 h; accepted are multiples of the graph's 24 h"),
        (
            lambda: opened(form=FengWu(np.zeros(69), np.ones(69), lambda time: draw(of, 1)[0])),
            "the graph's inputs are .* accepted for FengWu are .*138, 5, 8",
        ),
        (lambda: opened(pangu(onnx, tmp_path, H=9)), r"inputs are .*9, 8.* accepted for Pangu are .*\(5, 13, 5, 8\)"),
    ):
        with pytest.raises(InputError, match=sentence):
            refused()


def test_without_the_runtime_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"need onnxruntime: pip install 'lsda_fast\[onnx\]'"):
        OnnxForecast("graph.onnx", package(Pangu.names), Pangu())


def test_fengwus_moments_are_one_per_channel() -> None:
    with pytest.raises(InputError, match=r"FengWu's mean came with shape \(3,\); accepted is \(69,\)"):
        FengWu(np.zeros(3), np.ones(69), lambda time: torch.zeros(()))
