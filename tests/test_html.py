import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest

from circuitvit.circuit import Circuit, Provenance
from circuitvit.config import ViTConfig
from circuitvit.edge_graph import edge_graph
from circuitvit.errors import CircuitError
from circuitvit.html import figure, notebook_html, page
from circuitvit.html.escaping import escape
from circuitvit.html.strokes import NEGATIVE, NEUTRAL, POSITIVE

HOSTILE = "</script><img src=x onerror=\"window.owned=1\"> & 'Ünïcode' <b>$x$ %{y}</b> \u2028 -->"
CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
CLICK_TARGET = """name => {
  const plot = document.getElementById("plot"), dots = plot.data.at(-1);
  const at = dots.customdata.findIndex((row) => row[0] === name);
  const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
  return [box.left + xaxis._offset + xaxis.l2p(dots.x[at]),
          box.top + yaxis._offset + yaxis.l2p(dots.y[at])];
}"""
DRAWN = """async () => {
  await circuitvit.drawn();
  const edges = (trace) => trace.x.filter(Number.isNaN).length;
  const [rest, ...strokes] = document.getElementById("plot").data.slice(0, -1);
  return { rest: edges(rest), bright: strokes.map(edges).reduce((a, b) => a + b, 0) };
}"""
SLIDE = """async (place) => {
  const slider = document.getElementById("threshold");
  slider.value = place;
  slider.dispatchEvent(new Event("input"));
  await circuitvit.drawn();
}"""


def config(depth=4, heads=4):
    return ViTConfig(depth=depth, heads=heads, width=16 * heads, classes=10)


def circuit(depth=4, heads=4, edges=60, seed=0, qkv="split"):
    """The strongest of random signed scores, the same for the same seed."""
    shape = config(depth, heads)
    names = [edge.name for _, _, edge in edge_graph(shape, qkv).edges(data="edge")]
    drawn = np.random.default_rng(seed).normal(size=len(names))
    scores = dict(zip(names, drawn.tolist(), strict=True))
    kept = sorted(names, key=lambda name: -abs(scores[name]))[:edges]
    origin = Provenance(method="acdc", tau=0.01, seed=seed)
    return Circuit(shape, kept, qkv=qkv, scores=scores, provenance=origin)


def paths(graph, *, to, away_from):
    """Independent of the page: networkx walks, where a head's readers lead to the head."""
    flow = nx.DiGraph(graph.edges)
    flow.add_nodes_from([*to, *away_from])
    flow.add_edges_from([(n, unit_of(n)) for n in list(flow) if unit_of(n) != n])
    above = set(to).union(*(nx.ancestors(flow, name) for name in to))
    below = set(away_from).union(*(nx.descendants(flow, name) for name in away_from))
    return {e.name for w, r, e in graph.edges(data="edge") if r in above or w in below}


def paths_through(graph, *names):
    return paths(graph, to=names, away_from=names)


def unit_of(name):
    return re.sub(r"\.[qkv]$", "", name)


def edges_in(trace):
    return int(np.isnan(trace.x).sum())


def test_every_edge_is_drawn_once_in_at_most_20_traces():
    for kept in (circuit(edges=60), circuit(edges=10**6), circuit(qkv="joint")):
        traces = figure(kept.graph(), title="t").data
        assert len(traces) <= 20 + 1
        assert sum(edges_in(trace) for trace in traces[:-1]) == len(kept)
        assert {trace.type for trace in traces} == {"scatter"}
        assert all(trace.hoverinfo == "skip" for trace in traces[:-1])


def test_a_graph_of_the_size_of_vit_b_is_small_and_drawn_by_webgl(tmp_path):
    graph = circuit(depth=12, heads=12, edges=10**6).graph()
    traces = figure(graph, title="t").data
    assert len(traces) <= 20 + 1
    assert {trace.type for trace in traces} == {"scattergl"}
    assert sum(edges_in(trace) for trace in traces[:-1]) == 32_491
    path = page(tmp_path / "b.html", graph, title="t", details={}, plotlyjs=False)
    assert path.stat().st_size < 3e6


def test_warm_hurts_cool_helps_and_no_score_is_grey():
    names = {"embed->m0": 0.5, "embed->m1": -0.5}
    kept = Circuit(config(), [*names, "embed->m2"], scores=names)
    lines = figure(kept.graph(), title="t").data[:-1]
    ends = {trace.line.color: trace.x[~np.isnan(trace.x)][-1] for trace in lines}
    assert ends == {POSITIVE: 2.0, NEGATIVE: 4.0, NEUTRAL: 6.0}  # where m0, m1 and m2 stand


def test_stronger_edges_are_wider_and_plainer():
    names = [edge.name for _, _, edge in edge_graph(config()).edges(data="edge")][:40]
    kept = Circuit(config(), names, scores={name: 1.0 + i for i, name in enumerate(names)})
    strokes = figure(kept.graph(), title="t").data[:-1]
    for measure in ([s.line.width for s in strokes], [s.opacity for s in strokes]):
        assert len(measure) == 8
        assert measure == sorted(set(measure))


@pytest.mark.parametrize(("edge", "between"), [("m0->m2", "m1"), ("a0.h0->a2.h0.k", "a1.h0"),
                                               ("a0.h0->a2.h2.k", "a1.h1")])  # fmt: skip
def test_an_edge_does_not_hide_behind_the_unit_between_its_ends(edge, between):
    line, dots = figure(Circuit(config(), [edge]).graph(), title="t").data
    place = [row[0] for row in dots.customdata].index(between)
    distance = np.hypot(line.x - dots.x[place], line.y - dots.y[place])
    assert np.nanmin(distance) > 0.2


def test_units_outside_the_graph_are_ghosts():
    dots = figure(Circuit(config(), ["embed->m0", "m0->logits"]).graph(), title="t").data[-1]
    fills = {row[0]: fill for row, fill in zip(dots.customdata, dots.marker.color, strict=True)}
    assert len(fills) == 4 * 5 + 2
    assert {name for name, fill in fills.items() if fill != fills["m1"]} == {
        "embed", "m0", "logits"}  # fmt: skip


def test_units_come_from_the_nodes_when_the_graph_lists_none():
    names = [row[0] for row in figure(edge_graph(config(2, 3)), title="t").data[-1].customdata]
    assert sorted(names) == sorted(
        ["embed", "a0.h0", "a0.h1", "a0.h2", "m0", "a1.h0", "a1.h1", "a1.h2", "m1", "logits"]
    )


def test_a_node_that_does_not_say_what_it_is_is_refused():
    with pytest.raises(CircuitError, match="has no attribute 'node'"):
        figure(nx.DiGraph([("a", "b")]), title="t")


def test_importing_the_room_loads_neither_plotly_nor_torch():
    code = "import sys, circuitvit.html; print({'plotly', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("edges", [0, 60, 32_491])
def test_the_notebook_shows_one_small_still_picture(edges):
    size = 12 if edges > 1000 else 4
    html = notebook_html(circuit(size, size, edges=edges).graph(), title=HOSTILE * 3)
    source = re.fullmatch(r'<img [^<>]*src="data:image/svg\+xml;base64,([^"]*)">', html)
    assert source is not None
    assert len(html) < 250_000
    svg = ET.fromstring(base64.b64decode(source[1]))
    texts = ["".join(text.itertext()) for text in svg.findall(".//{*}text")]
    assert texts[0].startswith(HOSTILE[:40])
    assert {element.tag.split("}")[1] for element in svg.iter()} <= {
        "svg", "rect", "text", "tspan", "path", "circle"}  # fmt: skip
    curves = "".join(
        path.get("d") for path in svg.findall(".//{*}path") if path.get("stroke-opacity")
    )
    assert curves.count("C") == min(edges, 1500)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "p.html", tmp_path / "folder"):
        with pytest.raises(CircuitError, match="cannot write"):
            page(path, circuit().graph(), title="t", details={}, plotlyjs=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_plotly_can_stand_beside_the_page(tmp_path):
    circuit().to_html(tmp_path / "p.html", plotlyjs="directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "plotly.min.js"]
    assert (
        (tmp_path / "p.html").stat().st_size
        < 100_000
        < 4e6
        < (tmp_path / "plotly.min.js").stat().st_size
    )


def test_the_page_holds_every_edge_with_its_exact_score(tmp_path):
    kept = circuit()
    text = kept.to_html(tmp_path / "p.html").read_text("utf-8")
    data = json.loads(re.search(r'id="graph-data">(.*?)</script>', text)[1])
    writer, reader, score = (
        np.frombuffer(base64.b64decode(data[key]["bdata"]), data[key]["dtype"])
        for key in ("writer", "reader", "score")
    )
    names = {
        f"{data['units'][w]['name']}->{data['readers'][r]['name']}": s
        for w, r, s in zip(writer, reader, score, strict=True)
    }
    assert names == dict(kept.scores)


# ---- in the browser ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        absent = pytest.fail if os.environ.get("CIRCUITVIT_REQUIRE_ALL") == "1" else pytest.skip
        absent("there is no chromium on this machine to open pages with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; afterwards no error may have been logged and nothing else asked for."""
    troubles, tabs = [], []

    def open_page(graph, *, plotlyjs=True, title="A circuit", details=None):
        path = tmp_path / "page.html"
        page(path, graph, title=title, details=details or {"tau": 0.01}, plotlyjs=plotlyjs)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.set_default_timeout(60_000)
        allowed = {path.as_uri(), (tmp_path / "plotly.min.js").as_uri()}
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        tab.on("request", lambda r: None if r.url in allowed or r.url.startswith(("data:", "blob:"))
               else troubles.append(r.url))  # fmt: skip
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert troubles == []


def state(tab):
    return tab.evaluate("circuitvit.state()")


def click(tab, name, **options):
    x, y = tab.evaluate(CLICK_TARGET, name)
    for key in options.get("holding", ()):
        tab.keyboard.down(key)
    tab.mouse.move(x, y)
    tab.wait_for_timeout(350)  # two clicks within 300 ms are plotly's double click
    tab.mouse.click(x, y)
    for key in options.get("holding", ()):
        tab.keyboard.up(key)
    tab.evaluate("circuitvit.drawn()")


@pytest.mark.browser
@pytest.mark.parametrize("plotlyjs", [True, "directory"])
def test_a_page_opens_quietly_and_offline(opened, plotlyjs):
    kept = circuit()
    tab = opened(kept.graph(), plotlyjs=plotlyjs)
    assert set(state(tab)["visibleEdges"]) == set(kept)
    assert tab.evaluate(DRAWN) == {"rest": 0, "bright": len(kept)}
    assert tab.inner_text("#counts") == "60 of 60 edges · 20 of 20 units"
    assert "0.01" in tab.inner_text("#details")


@pytest.mark.browser
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_a_click_lights_every_path_through_a_unit(opened, qkv):
    graph = circuit(qkv=qkv).graph()
    tab = opened(graph)
    for name in ("embed", "a0.h3", "a2.h1", "m1", "a3.h0", "logits"):
        click(tab, name)
        now, expected = state(tab), paths_through(graph, name)
        assert now["selected"] == [name]
        assert set(now["highlightedEdges"]) == expected
        assert tab.evaluate(DRAWN) == {"rest": 60 - len(expected), "bright": len(expected)}
        assert tab.inner_text("#selection h3") == name


@pytest.mark.browser
def test_shift_click_pins_several_and_escape_clears(opened):
    graph = circuit(edges=30).graph()
    tab = opened(graph)
    click(tab, "a2.h1")
    click(tab, "m2", holding=["Shift"])
    both = paths_through(graph, "a2.h1") | paths_through(graph, "m2")
    assert state(tab)["selected"] == ["a2.h1", "m2"]
    assert set(state(tab)["highlightedEdges"]) == both != paths_through(graph, "m2")
    click(tab, "a2.h1", holding=["Shift"])
    assert set(state(tab)["highlightedEdges"]) == paths_through(graph, "m2")
    tab.keyboard.press("Escape")
    assert state(tab)["selected"] == state(tab)["highlightedEdges"] == []
    assert tab.evaluate(DRAWN) == {"rest": 0, "bright": 30}


@pytest.mark.browser
def test_the_slider_leaves_exactly_the_edges_of_that_size(opened):
    kept = circuit(edges=400)
    tab = opened(kept.graph())
    for place in (1, 100, 399, 0):
        tab.evaluate(SLIDE, place)
        now = state(tab)
        expected = {name for name, s in kept.scores.items() if abs(s) >= now["threshold"]}
        assert set(now["visibleEdges"]) == expected
        assert len(expected) == 400 - place
        assert tab.evaluate(DRAWN)["bright"] == len(expected)
        ends = {unit_of(end) for name in expected for end in name.split("->")}
        units = ends - {"embed", "logits"}
        assert set(now["visibleUnits"]) == units
        counts = f"{len(expected)} of 400 edges · {len(units)} of 20 units"
        assert tab.inner_text("#counts") == counts


@pytest.mark.browser
def test_a_typed_threshold_is_exact_and_paths_follow_visible_edges_only(opened):
    kept = circuit(edges=200)
    tab = opened(kept.graph())
    tab.fill("#threshold-value", "1.25")
    tab.press("#threshold-value", "Enter")
    strong = kept.keeping(name for name, s in kept.scores.items() if abs(s) >= 1.25)
    assert set(state(tab)["visibleEdges"]) == set(strong)
    click(tab, "a1.h0")
    expected = paths_through(strong.graph(), "a1.h0")
    assert set(state(tab)["highlightedEdges"]) == expected
    assert expected < paths_through(kept.graph(), "a1.h0")


@pytest.mark.browser
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_toggles_hide_the_edges_into_a_kind_of_reader_and_of_a_sign(opened, qkv):
    kept = circuit(edges=10**6, qkv=qkv)
    tab = opened(kept.graph())
    ends = {"mlp": r"->m\d", "logits": "->logits"}
    heads = {part: rf"\.{part}" for part in "qkv"} if qkv == "split" else {"joint": r"->a\d.h\d"}
    for part, end in (ends | heads).items():
        box = tab.locator(f"[data-part={part}]")
        box.uncheck()
        gone = set(kept) - set(state(tab)["visibleEdges"])
        assert gone == {name for name in kept if re.search(f"{end}$", name)} != set()
        box.check()
    tab.locator("[data-sign=negative]").uncheck()
    assert set(state(tab)["visibleEdges"]) == {name for name, s in kept.scores.items() if s > 0}


@pytest.mark.browser
def test_search_finds_units_readers_and_edges(opened):
    kept = circuit(edges=10**6)
    graph = kept.graph()
    strongest = max((name for name in kept if name.startswith("m0->a3")),
                    key=lambda name: abs(kept.scores[name]))  # fmt: skip
    tab = opened(graph)
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    for query, found in (("m1", "m1"), ("A2.H3", "a2.h3"), ("a3.h0.q", "a3.h0.q"),
                         ("m0->a3", strongest)):  # fmt: skip
        tab.fill("#search", query)
        tab.press("#search", "Enter")
        assert state(tab)["selected"] == [found]
        assert tab.locator("#matches").is_hidden()
    lit = paths(graph, to=["m0"], away_from=[strongest[4:]]) | {strongest}
    assert set(state(tab)["highlightedEdges"]) == lit
    tab.fill("#search", "nothing like it")
    tab.press("#search", "Enter")
    assert state(tab)["selected"] == [strongest]
    tab.fill("#search", "a1.h")
    tab.press("#search", "ArrowDown")
    tab.press("#search", "Enter")
    assert state(tab)["selected"] == ["a1.h1"]
    tab.keyboard.press("Escape")
    assert (state(tab)["selected"], tab.input_value("#search")) == ([], "")


@pytest.mark.browser
def test_the_panel_lists_the_strongest_edges_and_they_can_be_clicked(opened):
    kept = circuit(edges=10**6)
    tab = opened(kept.graph())
    click(tab, "m2")
    for place, ends in (("in", "->m2"), ("out", "m2->")):
        names = [name for name in kept if ends in name]
        strongest = sorted(names, key=lambda name: -abs(kept.scores[name]))[:6]
        rows = tab.locator(f"#strongest-{place} button")
        assert rows.evaluate_all("rows => rows.map((row) => row.dataset.edge)") == strongest
    rows.first.click()
    assert state(tab)["selected"] == [strongest[0]]


@pytest.mark.browser
def test_hovering_tells_name_counts_and_strongest_edges(opened):
    graph = circuit().graph()
    tab = opened(graph)
    tab.mouse.move(*tab.evaluate(CLICK_TARGET, "m2"))
    told = tab.text_content(".hoverlayer .hovertext")
    into, out = graph.in_degree("m2"), graph.out_degree("m2")
    assert told.startswith("m2  MLP of block 2")
    assert f"{into} in · {out} out" in told
    assert told.count("->") == min(3, into + out)


@pytest.mark.browser
def test_nothing_in_a_title_a_detail_or_a_name_becomes_markup(opened):
    graph = nx.DiGraph()
    for name, kind, block, head in (("embed", "embed", None, None), (HOSTILE, "head", 0, 0),
                                    ("logits", "logits", None, None)):  # fmt: skip
        node = SimpleNamespace(name=name, kind=kind, block=block, head=head, part=None, unit=name)
        graph.add_node(name, node=node)
    graph.add_edge("embed", HOSTILE, score=1.0)
    tab = opened(graph, title=HOSTILE, details={HOSTILE: HOSTILE})
    assert tab.text_content("h1") == tab.text_content("title") == HOSTILE
    assert tab.text_content("dt") == tab.text_content("dd") == HOSTILE
    tab.fill("#search", "onerror")
    tab.press("#search", "Enter")
    assert tab.text_content("#selection h3") == HOSTILE
    tab.mouse.move(*tab.evaluate(CLICK_TARGET, escape(HOSTILE)))
    assert HOSTILE[:70] in tab.text_content(".hoverlayer .hovertext")
    assert tab.locator("img, b:not(.keys b)").count() == 0
    assert tab.evaluate("window.owned") is None


@pytest.mark.browser
def test_a_graph_of_the_size_of_vit_b_opens_and_filters_quickly(opened):
    kept = circuit(depth=12, heads=12, edges=10**6)
    began = time.monotonic()
    tab = opened(kept.graph())
    opening_s = time.monotonic() - began
    began = time.monotonic()
    tab.evaluate(SLIDE, 500)
    filtering_s = time.monotonic() - began
    now = state(tab)
    assert set(now["visibleEdges"]) == {
        n for n, s in kept.scores.items() if abs(s) >= now["threshold"]
    }
    assert 15_000 < len(now["visibleEdges"]) < 17_500
    assert opening_s < 30
    assert filtering_s < 10


@pytest.mark.browser
def test_the_picture_and_the_visible_edges_can_be_downloaded(opened):
    kept = circuit()
    tab = opened(kept.graph(), title="One / circuit")
    tab.evaluate(SLIDE, 30)
    with tab.expect_download() as download:
        tab.click("#download-json")
    body = json.loads(download.value.path().read_text("utf-8"))
    assert download.value.suggested_filename == "One-circuit.json"
    assert {e["name"]: e["score"] for e in body["edges"]} == {
        name: kept.scores[name] for name in state(tab)["visibleEdges"]
    }
    assert len(body["edges"]) == 30
    with tab.expect_download() as download:
        tab.click("#download-png")
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


@pytest.mark.browser
def test_a_circuit_without_edges_or_scores_still_opens(opened):
    tab = opened(Circuit(config(), []).graph())
    assert tab.inner_text("#counts") == "0 of 0 edges · 0 of 20 units"
    tab = opened(Circuit(config(), ["embed->m0", "m0->logits"]).graph())
    assert state(tab)["visibleEdges"] == ["m0->logits", "embed->m0"][::-1]
    assert tab.is_disabled("#threshold")
