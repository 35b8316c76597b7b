"""Maps, departures and the page: what is drawn, what is embedded, what is escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lsda_fast import departure_plots, report
from lsda_fast import maps as drawing
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, StateLayout
from lsda_fast.plotting import colormap, save_figure

pytest.importorskip("matplotlib")


REGION = Grid(np.arange(55.0, 29, -2.5), np.arange(-15.0, 16, 2.5))
GLOBE = Grid(np.linspace(80, -80, 9), np.arange(0.0, 360, 20))


def wave(grid: Grid) -> np.ndarray:
    return np.sin(np.deg2rad(3 * grid.longitude)) * np.cos(np.deg2rad(grid.latitude))[:, None]


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, kept for a look at what they hold."""
    kept = []

    def keep(figure, path):
        kept.append(figure)
        return save_figure(figure, path)

    for module in (drawing, departure_plots):
        monkeypatch.setattr(module, "save_figure", keep)
    return kept


def meshes(figure):
    from matplotlib.collections import QuadMesh

    return {a.get_title("left"): next(c for c in a.collections if isinstance(c, QuadMesh)) for a in maps(figure)}


def maps(figure):
    return [axes for axes in figure.axes if axes.get_title("left")]


def test_fields_of_one_kind_share_their_limits_and_errors_are_symmetric(tmp_path, figures):
    field = wave(REGION)
    fields = {
        "Truth": field + 280,
        "Analysis": 2 * field + 280,
        "Increment": 0.5 * field + 0.3,
        "Error of the analysis": -field,
        "Spread": np.abs(field),
    }
    path = drawing.map_panel(fields, REGION, title="t", units="K", path=tmp_path / "deep" / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    limits = {name: mesh.get_clim() for name, mesh in meshes(figures[0]).items()}
    assert limits["Truth"] == limits["Analysis"] == pytest.approx((280 + 2 * field.min(), 280 + 2 * field.max()))
    low, high = limits["Increment"]
    assert limits["Error of the analysis"] == (low, high)
    assert low == -high
    assert limits["Spread"] == pytest.approx((0, np.abs(field).max()))
    bars = [axes for axes in figures[0].axes if "K" in [text.get_text() for text in axes.texts]]
    assert len(bars) == 3  # one for each kind


def test_powers_of_a_thousand_go_to_the_units(tmp_path, figures):
    field = np.linspace(0, 2e-3, REGION.shape[0] * REGION.shape[1]).reshape(REGION.shape)
    drawing.map_panel({"q": field}, REGION, title="t", units="kg kg⁻¹", path=tmp_path / "m.png")
    bar = figures[0].axes[-1]
    assert bar.texts[0].get_text() == "10⁻³ kg kg⁻¹"
    assert [label.get_text() for label in bar.get_xticklabels()][-1] == "2.0"


def test_a_global_map_begins_at_180_west_and_observations_lie_at_their_places(tmp_path, figures):
    field = np.zeros(GLOBE.shape)
    field[4, 10] = 1.0  # equator, 200 E = 160 W
    places = ([0.0, 40.0], [200.0, -10.0])
    drawing.map_panel({"a": field}, GLOBE, title="t", units="1", path=tmp_path / "m.png", observations=places)
    axes = maps(figures[0])[0]
    assert meshes(figures[0])["a"].get_array().reshape(GLOBE.shape)[4, 1] == 1.0
    dots = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(dots, [[-160, 0], [-10, 40]])
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["180°", "120°W", "60°W", "0°", "60°E", "120°E"]
    assert "30°S" in [label.get_text() for label in axes.get_yticklabels()]


def test_the_diverging_map_is_white_in_the_middle_and_its_lightness_is_linear_and_symmetric():
    colours = colormap("difference")(np.linspace(0, 1, 255))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_lms += [[0.0883024619, 0.2817188376, 0.6299787005]]
    L = np.cbrt(linear @ np.array(to_lms).T) @ [0.2104542553, 0.7936177850, -0.0040720468]
    assert np.ptp(colours[127]) < 0.01
    np.testing.assert_allclose(L, 0.98 - 0.62 * np.abs(np.linspace(-1, 1, 255)), atol=0.02)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Background", "state"),
        ("z500 analysis", "state"),
        ("Analysis increment", "difference"),
        ("errors", "difference"),
        ("analysis - truth", "difference"),
        ("O-B", "difference"),
        ("Spread", "spread"),
        ("Standard deviation", "spread"),
    ],
)
def test_the_name_says_the_kind(name, kind):
    assert drawing._kind(name) == kind


def test_maps_refuse_what_they_cannot_draw(tmp_path):
    for fields, message in (
        ({}, "no field came"),
        ({"a": np.zeros((2, 2))}, r"field 'a' has shape \(2, 2\)"),
        ({"a": np.full(REGION.shape, np.nan)}, "finite values"),
    ):
        with pytest.raises(InputError, match=message):
            drawing.map_panel(fields, REGION, title="t", units="K", path=tmp_path / "m.png")
    with pytest.raises(InputError, match="accepted are state, difference, spread"):
        drawing.map_panel({"a": wave(REGION)}, REGION, title="t", units="K", path=tmp_path / "m.png", kinds={"a": "b"})
    assert not list(tmp_path.iterdir())


def test_departures_count_the_used_observations(tmp_path, figures):
    frame = pd.DataFrame(
        {
            "variable": list("ttttz"),
            "O-B": [1.0, -1, 2, 50, 3],
            "O-A": [0.5, -0.5, 1, 50, 1],
            "used": [1, 1, 1, 0, 1],
        }
    )
    path = departure_plots.departures_plot(frame, tmp_path / "d.png", units={"t": "K"})
    assert path.is_file()
    first, second = figures[0].axes
    assert first.get_title("right") == "3 of 4 used"
    assert second.get_title("left") == "z"
    assert first.get_xlabel() == "departure (K)"
    heights = [patch.get_xy()[:, 1].max() for patch in first.patches]
    assert len(heights) == 2
    with pytest.raises(InputError, match="lack O-A, used"):
        departure_plots.departures_plot(frame[["variable", "O-B"]], tmp_path / "e.png")


def test_departures_in_time_are_root_mean_squares_and_need_no_background(tmp_path, figures):
    hours = pd.to_datetime(["2002-01-01T00", "2002-01-01T06", "2002-01-01T00", "2002-01-01T00"])
    frame = pd.DataFrame(
        {
            "variable": list("tttz"),
            "time": hours,
            "O-B": [4.0, np.nan, 2, np.nan],
            "O-A": [3.0, 5, 1, 1],
            "used": True,
        }
    )
    departure_plots.departure_series_plot(frame, tmp_path / "d.png")
    departure_plots.departures_plot(frame, tmp_path / "e.png")
    t, z = figures[0].axes
    drawn = {line.get_label(): line.get_ydata() for line in t.lines}
    np.testing.assert_allclose(drawn["O-A"], [np.sqrt(5), 5])
    np.testing.assert_allclose(drawn["O-B"], [np.sqrt(10)])
    assert [line.get_label() for line in z.lines] == ["O-A"]
    assert [len(axes.patches) for axes in figures[1].axes] == [2, 1]
    with pytest.raises(InputError, match="nothing to draw"):
        departure_plots.departure_series_plot(frame.assign(used=False), tmp_path / "f.png")
    with pytest.raises(InputError, match="nothing to draw"):
        departure_plots.departure_series_plot(frame.assign(time=pd.NaT), tmp_path / "f.png")


class Page(HTMLParser):
    """Tags with a way out, and images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[key] for key in ("src", "href") if key in values]
        if tag == "img":
            self.images.append(values)


def test_the_page_holds_every_table_and_figure_escaped_and_without_links(tmp_path):
    figure = drawing.map_panel({"a": wave(REGION)}, REGION, title="t", units="K", path=tmp_path / "m.png")
    tables = {
        "Scores <b>": pd.DataFrame({"rmse": [52437.123, 0.00012345, np.nan]}, index=["z500", "q<script>", "msl"]),
        "Other": pd.DataFrame({"https & co": [1]}),
    }
    bad = "<script>alert(1)</script> & more $body"
    path = report.write_report(
        tmp_path / "r", title=bad, tables=tables, figures={bad: figure, "two": figure}, text=[bad]
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "r" / "index.html"
    assert len(page.images) == 2
    assert page.images[0]["alt"] == bad
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.tags.count("table") == 2
    assert "script" not in page.tags
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", text)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; more $body") == 5
    assert "52,437" in text
    assert "0.0001234" in text
    assert "Scores &lt;b&gt;" in text
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]


def test_a_page_with_a_missing_figure_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png came"):
        report.write_report(tmp_path, title="t", tables={}, figures={"c": Path("nowhere.png")}, text=[])
    assert not list(tmp_path.iterdir())


def test_reasons_that_differ_in_numbers_are_one_row():
    from lsda_fast.analysis_report import by_reason

    reasons = pd.Series(["t at 848 hPa", "t at 847.5 hPa", "no time", *(f"kind {chr(97 + i)}" for i in range(30))])
    table = by_reason(reasons)["observations"]
    assert table["t at # hPa"] == 2
    assert table["no time"] == 1
    assert (len(table), table.sum(), table["others"]) == (21, 33, 12)


def test_dots_are_of_their_panel_and_panels_in_order(tmp_path, figures):
    from matplotlib.collections import PathCollection

    fields = {f"{kind}, {day}": np.abs(wave(REGION)) for day in (1, 2, 3) for kind in ("analysis", "spread")}
    dots = {"analysis, 1": ([0.0, 10.0], [20.0, 30.0])}
    drawing.map_panel(fields, REGION, title="x", units="K", path=tmp_path / "x.png", observations=dots)
    by_name = {axes.get_title("left"): axes.get_position() for axes in maps(figures[0])}
    found = {a.get_title("left"): [c for c in a.collections if isinstance(c, PathCollection)] for a in maps(figures[0])}
    assert {name: len(c[0].get_offsets()) for name, c in found.items() if c} == {"analysis, 1": 2}
    for kind in ("analysis", "spread"):
        places = [(-by_name[f"{kind}, {day}"].y0, by_name[f"{kind}, {day}"].x0) for day in (1, 2, 3)]
        assert places == sorted(places)


def test_an_observation_between_levels_is_of_the_nearest_channel():
    from lsda_fast.analysis_report import _channels

    channels = [Channel("t", 850.0, "K"), Channel("t", 500.0, "K"), Channel("msl", None, "Pa")]
    table = pd.DataFrame({"variable": ["t", "t", "msl", "t", "q"], "level": [848.0, 610.0, np.nan, np.nan, 700.0]})
    found = _channels(table, StateLayout(REGION, tuple(channels)))
    assert found.tolist() == ["t850", "t500", "msl", "t", "q"]
