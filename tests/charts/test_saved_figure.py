"""Figures as pictures: by kaleido and an installed browser, and what is said without them."""

import os
import shutil
import sys

import pytest
from random_models import random_vit, shape

import circuitvit as cv
from circuitvit.charts.chart import Series, chart
from circuitvit.charts.saved_figure import Figure

STARTS = {"svg": b"<svg ", "png": b"\x89PNG\r\n", "pdf": b"%PDF-"}


def drawn() -> Figure:
    item = Series("one", [1, 2], [3.0, 4.0], low=[2.0, 3.0], high=[5.0, 6.0])
    return chart([item], title="Title", subtitle="sub", x_title="x axis", y_title="y axis")


def need_kaleido_and_a_browser() -> None:
    absent = pytest.fail if os.environ.get("CIRCUITVIT_REQUIRE_ALL") == "1" else pytest.skip
    try:
        import kaleido  # noqa: F401
    except ImportError:
        absent("kaleido is not installed, so no figure can be drawn by a chromium")
    if not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))):
        absent("there is no chromium or Chrome on this machine to draw figures with")


@pytest.mark.browser
@pytest.mark.parametrize("form", STARTS)
def test_a_figure_is_saved_as_a_picture(tmp_path, form):
    need_kaleido_and_a_browser()
    path = tmp_path / "new" / f"chart.{form.upper()}"
    assert drawn().save(path, width=300, height=200) == path
    assert path.read_bytes().startswith(STARTS[form])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if form == "png":
        from PIL import Image

        with Image.open(path) as picture:
            assert picture.size == (600, 400), "scale 2"
    if form == "svg":
        text = path.read_text()
        assert 'width="300" height="200"' in text
        assert all(word in text for word in ("Title", "x axis", "y axis"))


@pytest.mark.browser
def test_a_large_circuit_is_saved_without_webgl(tmp_path):
    need_kaleido_and_a_browser()
    figure = cv.Circuit.full(cv.ViTConfig(depth=6, heads=6, width=24, head_width=4)).figure()
    assert figure.data[0].type == "scattergl"
    text = figure.save(tmp_path / "circuit.svg").read_text()
    assert figure.data[0].type == "scattergl", "the figure itself stays as it was"
    assert "<image" not in text, "lines, not pixels"
    assert len(text) > 100_000


def test_every_figure_can_be_saved():
    circuit = cv.Circuit.full(random_vit(shape()).config)
    assert isinstance(circuit.figure(), Figure)
    assert isinstance(drawn(), Figure)


@pytest.mark.parametrize("name", ["chart.html", "chart", "chart.jpeg"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(cv.CircuitError, match=r"expected a name that ends in .svg, .png or .pdf"):
        drawn().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"width": -5, "height": 0}, r"width is -5, expected whole .*; height is 0, expected"),
        ({"width": "x", "scale": 0}, r"width is 'x', expected whole pixels, 1 to 16,384; scale is"),
        ({"width": True}, "width is True, expected"),
        ({"height": 100.5}, "height is 100.5, expected"),
        ({"width": 16_385}, "width is 16385, expected"),
        ({"height": float("inf")}, "height is inf, expected"),
        ({"scale": float("nan")}, "scale is nan, expected a number above 0, at most 16"),
        ({"scale": 17}, "scale is 17, expected"),
        ({"scale": True}, "scale is True, expected"),
    ],
)
def test_sizes_out_of_range_are_refused(tmp_path, asked, told, as_users_call):
    with pytest.raises(cv.CircuitError, match=told):
        drawn().save(tmp_path / "chart.png", **asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", STARTS)
def test_what_is_no_picture_is_not_written(tmp_path, form, monkeypatch):
    kaleido = pytest.importorskip("kaleido")
    given = {}

    def empty(figure, *, opts, kopts):
        given.update(opts)
        return b"abc"

    monkeypatch.setattr(kaleido, "calc_fig_sync", empty)
    path = tmp_path / f"chart.{form}"
    path.write_bytes(b"before")
    with pytest.raises(cv.CircuitError, match=rf"gave no {form.upper()} for this figure of 9000 ×"):
        drawn().save(path, width=9000, height=8000)
    assert path.read_bytes() == b"before"
    assert given == {"format": form, "scale": 2.0, "width": 9000, "height": 8000}


def test_without_kaleido_or_a_browser_it_is_said_what_to_install(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "kaleido", None)
        with pytest.raises(cv.CircuitError, match=r"pip install 'circuitvit\[figures\]'"):
            drawn().save(tmp_path / "chart.svg")
    kaleido = pytest.importorskip("kaleido")

    def missing(*args, **kwargs):
        assert kwargs["kopts"] == {"mathjax": False}, "nothing from the network"
        raise kaleido.errors.ChromeNotFoundError("none")

    monkeypatch.setattr(kaleido, "calc_fig_sync", missing)
    with pytest.raises(cv.CircuitError, match="needs Chrome or Chromium, and none is found"):
        drawn().save(tmp_path / "chart.svg")

    def failing(*args, **kwargs):
        raise RuntimeError("it crashed")

    monkeypatch.setattr(kaleido, "calc_fig_sync", failing)
    with pytest.raises(cv.CircuitError, match="can't draw this figure: it crashed. Check that"):
        drawn().save(tmp_path / "chart.svg")
    assert list(tmp_path.iterdir()) == []
