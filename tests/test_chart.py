import pytest

from circuitvit.html.chart import Series, chart, chart_page

WORDS = {"title": "a <b>", "subtitle": "of &", "x_title": "x <i>", "y_title": "y"}


def test_a_line_with_an_interval_has_a_band_of_its_colour_below_it():
    item = Series("one", [1, 2], [3.0, 4.0], low=[2.0, 3.0], high=[5.0, 6.0], color="#123456")
    band, line = chart([item], **WORDS).data
    assert list(band.x) == [1, 2, 2, 1]
    assert list(band.y) == [5, 6, 3, 2]
    assert band.fillcolor == line.line.color == "#123456"
    assert band.legendgroup == line.legendgroup
    assert (band.showlegend, line.mode) == (False, "lines+markers")


def test_dots_with_an_interval_have_bars():
    item = Series("one", ["a", "b"], [3.0, 4.0], low=[2.0, 3.5], high=[5.0, 6.0], mark="dots")
    (dots,) = chart([item], **WORDS, x_kind="category").data
    assert list(dots.error_y.array) == [2, 2]
    assert list(dots.error_y.arrayminus) == [1, 0.5]
    assert dots.mode == "markers"


def test_marks_have_the_symbol_of_their_series():
    items = [Series(s, [1], [2.0], mark="dots", symbol=s) for s in ("square", "circle-open")]
    assert [dots.marker.symbol for dots in chart(items, **WORDS).data] == ["square", "circle-open"]


def test_without_intervals_there_are_neither_bands_nor_bars():
    for mark in ("line", "dots"):
        (trace,) = chart([Series("one", [1], [2.0], mark=mark)], **WORDS).data
        assert trace.error_y.array is None


def test_a_diagonal_gives_both_axes_the_range_of_all_that_is_drawn():
    item = Series("one", [0.0], [1.0], low=[-1.0], high=[3.0], mark="dots")
    layout = chart([item], **WORDS, diagonal=True).layout
    assert list(layout.xaxis.range) == list(layout.yaxis.range) == pytest.approx([-1.2, 3.2])
    (line,) = layout.shapes
    assert (line.x0, line.x1) == (line.y0, line.y1) == pytest.approx((-1.2, 3.2))


def test_texts_are_shown_literally():
    item = Series("<s>", [1], [2.0], hover=["<u>"])
    figure = chart([item], **WORDS, level=1.0, level_name="<q>")
    assert "a &lt;b&gt;" in figure.layout.title.text
    assert "of &amp;" in figure.layout.title.text
    assert figure.layout.xaxis.title.text == "x &lt;i&gt;"
    assert figure.layout.annotations[0].text == "&lt;q&gt;"
    assert figure.data[0].name == "&lt;s&gt;"
    assert figure.data[0].customdata[0] == "&lt;u&gt;"


def test_a_page_holds_all_that_it_needs(tmp_path):
    text = chart_page(tmp_path / "a.html", chart([Series("one", [1], [2.0])], **WORDS)).read_text()
    assert len(text) > 1_000_000
    assert "<script src=" not in text
