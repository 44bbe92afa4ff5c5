import plotly.graph_objects as go
import pytest

import circuitvit as cv
from circuitvit.charts.chart import Series, chart, chart_page
from circuitvit.escaping import escape

READING = "Dots further up are better. Bars that overlap say little."
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


def test_pages_of_a_folder_share_one_copy_of_plotly(tmp_path):
    drawn = chart([Series("one", [1], [2.0])], **WORDS)
    (tmp_path / "notes.txt").write_text("stay")
    for name in ("a.html", "b.html"):
        text = chart_page(tmp_path / name, drawn, plotlyjs="directory").read_text()
        assert len(text) < 20_000
        assert text.count('src="plotly.min.js"') == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.html", "b.html", "notes.txt", "plotly.min.js"]


def test_a_chart_says_how_it_is_read_and_a_page_says_it_in_words_that_wrap(tmp_path):
    reading = "Dots further up are <better>. " * 6
    drawn = chart([Series("one", [1], [2.0])], **WORDS, reading=reading)
    lines = drawn.layout.title.text.split("<br>")
    assert lines[0] == "a &lt;b&gt;"
    assert [len(line) > 30 for line in lines[1:3]] == [True, True], "in lines of some 110 letters"
    assert "are &lt;better&gt;." in drawn.layout.title.text
    assert drawn.layout.margin.t > chart([Series("one", [1], [2.0])], **WORDS).layout.margin.t
    text = chart_page(tmp_path / "a.html", drawn, plotlyjs="directory").read_text()
    assert "<h1>a &lt;b&gt;</h1>" in text
    assert f"<p>{escape(reading)}</p>\n<p>of &amp;</p>" in text
    assert "a <b>" not in text
    assert '"text":"a ' not in text, "not twice"
    assert drawn.layout.title.text.startswith("a &lt;b&gt;"), "the figure itself stays as it was"


def test_texts_with_what_no_file_can_hold_are_written(tmp_path):
    words = WORDS | {"title": "</script> \ud800\x00", "subtitle": "\udfff"}
    drawn = chart([Series("one", [1], [2.0])], **words, reading="\ud8ff")
    text = chart_page(tmp_path / "a.html", drawn, plotlyjs="directory").read_text()
    assert "<h1>&lt;/script&gt; ??</h1>\n<p>?</p>\n<p>?</p>" in text
    assert "</script> ?" not in text


def test_a_plain_figure_of_plotly_becomes_a_page_too(tmp_path):
    plain = go.Figure(go.Scatter(x=[1], y=[2]))
    text = chart_page(tmp_path / "a<b.html", plain, plotlyjs="directory").read_text()
    assert "<title>a&lt;b</title>" in text
    assert "<h1>" not in text


@pytest.mark.parametrize("given", [False, "cdn", None, 1])
def test_pages_that_would_show_nothing_offline_are_refused(tmp_path, given, as_users_call):
    drawn = chart([Series("one", [1], [2.0])], **WORDS)
    circuit = cv.Circuit.full(cv.ViTConfig(depth=1, heads=1, width=4))
    for write in (lambda p, **k: chart_page(p, drawn, **k), circuit.to_html):
        with pytest.raises(cv.CircuitError, match=r"plotlyjs is .*, expected True \(plotly.js in"):
            write(tmp_path / "a.html", plotlyjs=given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (400, 700)])
def test_a_page_fills_the_window_and_loads_nothing(tmp_path, browser, width, height):
    words = WORDS | {"subtitle": "much is said here " * 8}
    items = [Series(f"series {place}", [1, 2], [2.0, 3.0]) for place in range(3)]
    path = chart_page(
        tmp_path / "a.html", chart(items, **words, reading=READING), plotlyjs="directory"
    )
    tab = browser.new_page(viewport={"width": width, "height": height})
    asked, troubles = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.goto(path.as_uri())
    box = tab.locator("#chart .main-svg").first.bounding_box()
    assert box["width"] == pytest.approx(width, abs=2)
    assert box["y"] + box["height"] == pytest.approx(max(height, box["y"] + 380), abs=2)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    titles = tab.locator(".xtitle, .ytitle").all_text_contents()
    assert titles == ["x <i>", "y"]
    assert tab.locator("header p").first.inner_text() == READING
    assert {url.rsplit("/", 1)[1] for url in asked} == {"a.html", "plotly.min.js"}
    assert troubles == []
    tab.close()
