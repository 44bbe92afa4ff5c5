import base64
import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
from drawn_circuits import circuit, config, dangling_circuit

from circuitvit.errors import CircuitError
from circuitvit.escaping import escape
from circuitvit.explore import figure, notebook_html, page
from circuitvit.explore.drawing import IDLE, NEGATIVE, NEUTRAL, POSITIVE
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import edge_graph

HOSTILE = "</script ><img src=x onerror=\"window.owned=1\"> & 'Ünïcode' <b>$x$ %{y}</b> \u2028 -->"
EVERY = 10**6
PLACE_OF = """name => {
  const plot = document.getElementById("plot"), dots = plot.data.at(-1), { x, y } = plot.getBoundingClientRect();
  const at = dots.customdata.findIndex((row) => row[0] === name), { xaxis, yaxis } = plot._fullLayout;
  return [x + xaxis._offset + xaxis.l2p(dots.x[at]), y + yaxis._offset + yaxis.l2p(dots.y[at])];
}"""
DRAWN = """async () => {
  await circuitvit.drawn();
  const edges = (trace) => trace.x.filter(Number.isNaN).length;
  const [rest, ...strokes] = document.getElementById("plot").data.slice(0, -1);
  return { rest: edges(rest), bright: strokes.map(edges).reduce((a, b) => a + b, 0) };
}"""
PRETEND_GPU = """WebGLRenderingContext.prototype.getParameter = new Proxy(
  WebGLRenderingContext.prototype.getParameter,
  { apply: (get, gl, [key]) => key === 37446 || key === gl.RENDERER ? "GPU" : get.call(gl, key) });
"""


def at_least(kept, threshold):
    return {name for name, score in kept.scores.items() if abs(score) >= threshold}


def unit_of(name):
    return re.sub(r"\.[qkv]$", "", name)


def paths(graph, to, away_from=None):
    """Independent of the page: networkx walks, where a head's readers lead to the head."""
    away_from = away_from or to
    flow = nx.DiGraph(graph.edges)
    flow.add_nodes_from([to, away_from])
    flow.add_edges_from([(n, unit_of(n)) for n in list(flow) if unit_of(n) != n])
    above, below = nx.ancestors(flow, to) | {to}, nx.descendants(flow, away_from) | {away_from}
    return {e.name for w, r, e in graph.edges(data="edge") if r in above or w in below}


@pytest.mark.parametrize(("size", "edges"), [(4, 60), (4, EVERY), (12, EVERY)])
def test_every_edge_is_drawn_once_in_at_most_20_traces(size, edges):
    kept = circuit(size, size, edges)
    traces = figure(kept.graph(), title="t").data
    assert len(traces) <= 20 + 1
    assert sum(np.isnan(trace.x).sum() for trace in traces[:-1]) == len(kept)
    assert {trace.type for trace in traces} == {"scatter" if size == 4 else "scattergl"}
    assert all(trace.hoverinfo == "skip" for trace in traces[:-1])


def test_warm_hurts_cool_helps_and_no_score_is_grey_and_what_dangles_is_pale():
    names = {"m0->logits": 0.5, "m1->logits": -0.5, "embed->m3": 9.0}
    kept = Circuit(config(), [*names, "m2->logits"], scores=names)
    lines = figure(kept.graph(), title="t").data[:-1]
    starts = {trace.line.color: trace.x[0] for trace in lines}  # where the writers stand
    assert starts == {IDLE: 0.0, NEUTRAL: 6.0, NEGATIVE: 4.0, POSITIVE: 2.0}
    assert lines[0].name == "dangling: carries nothing"


def test_stronger_edges_are_wider_and_plainer():
    names = [edge.name for _, _, edge in edge_graph(config()).edges(data="edge")][-40:]
    kept = Circuit(config(), names, scores={name: 1.0 + i for i, name in enumerate(names)})
    strokes = figure(kept.graph(), title="t").data[:-1]
    for measure in ([s.line.width for s in strokes], [s.opacity for s in strokes]):
        assert len(measure) == 8
        assert measure == sorted(set(measure))


def test_a_node_that_does_not_say_what_it_is_is_refused():
    with pytest.raises(CircuitError, match="has no attribute 'node'"):
        figure(nx.DiGraph([("a", "b")]), title="t")


def test_importing_the_room_loads_neither_plotly_nor_torch():
    code = "import sys, circuitvit.explore; print({'plotly', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("edges", [0, 60, 32_491])
def test_the_notebook_shows_one_small_still_picture(edges):
    size = 12 if edges > 1000 else 4
    html = notebook_html(circuit(size, size, edges).graph(), title=HOSTILE * 3)
    source = re.fullmatch(r'<img [^<>]*src="data:image/svg\+xml;base64,([^"]*)">', html)
    assert len(html) < 250_000
    svg = ET.fromstring(base64.b64decode(source[1]))
    assert "".join(svg.find("{*}text").itertext()).startswith(HOSTILE[:40])
    tags = {element.tag.split("}")[1] for element in svg.iter()}
    assert tags <= {"svg", "rect", "text", "tspan", "path", "circle"}
    curves = "".join(path.get("d") for path in svg.findall(".//{*}path[@stroke-opacity]"))
    assert curves.count("C") == min(edges, 1500)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "p.html", tmp_path / "folder"):
        with pytest.raises(CircuitError, match="cannot write"):
            page(path, circuit().graph(), title="t", details={}, plotlyjs=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("size", [4, 12])
def test_the_page_is_small_and_holds_every_edge_with_its_exact_score(tmp_path, size):
    kept = circuit(size, size, EVERY)
    text = kept.to_html(tmp_path / "p.html", plotlyjs="directory").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "plotly.min.js"]
    assert len(text) < 3e6
    data = json.loads(re.search(r'id="graph-data">(.*?)</script>', text)[1])
    writer, reader, score = (
        np.frombuffer(base64.b64decode(data[key]["bdata"]), data[key]["dtype"])
        for key in ("writer", "reader", "score")
    )
    units, readers = ([item["name"] for item in data[key]] for key in ("units", "readers"))
    rows = zip(writer, reader, score, strict=True)
    assert {f"{units[w]}->{readers[r]}": s for w, r, s in rows} == dict(kept.scores)


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; afterwards no error may have been logged and nothing else asked for."""
    troubles, tabs = [], []

    def open_page(graph, *, plotlyjs=True, title="A circuit", details=None, before=""):
        path = tmp_path / "page.html"
        page(path, graph, title=title, details=details or {"tau": 0.01}, plotlyjs=plotlyjs)
        own = (path.as_uri(), (tmp_path / "plotly.min.js").as_uri(), "data:", "blob:")
        tabs.append(tab := browser.new_page(viewport={"width": 1280, "height": 800}))
        tab.add_init_script(before)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        tab.on("request", lambda it: it.url.startswith(own) or troubles.append(it.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=60_000)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert troubles == []


def state(tab):
    return tab.evaluate("circuitvit.state()")


def click(tab, name):
    tab.mouse.move(*tab.evaluate(PLACE_OF, name))
    tab.wait_for_timeout(350)  # two clicks within 300 ms are plotly's double click
    tab.mouse.down()
    tab.mouse.up()
    tab.evaluate("circuitvit.drawn()")


def slide(tab, place):
    tab.fill("#threshold", str(place))
    tab.evaluate("circuitvit.drawn()")


def search(tab, query, *keys):
    tab.fill("#search", query)
    for key in (*keys, "Enter"):
        tab.press("#search", key)
    return state(tab)["selected"]


@pytest.mark.browser
class TestThePageInABrowser:
    @pytest.mark.parametrize("plotlyjs", [True, "directory"])
    def test_opens_quietly_and_offline(self, opened, plotlyjs):
        tab = opened(circuit().graph(), plotlyjs=plotlyjs)
        assert set(state(tab)["visibleEdges"]) == set(circuit())
        assert tab.evaluate(DRAWN) == {"rest": 0, "bright": 60}
        assert tab.inner_text("#counts") == "60 of 60 edges · 19 of 20 units"
        assert "0.01" in tab.inner_text("#details")

    @pytest.mark.parametrize("qkv", ["split", "joint"])
    def test_a_click_lights_every_visible_path_through_a_unit(self, opened, qkv):
        graph = circuit(qkv=qkv).graph()
        tab = opened(graph)
        for name in ("embed", "a0.h3", "a2.h1", "m1", "a3.h0", "logits"):
            click(tab, name)
            lit = paths(graph, name)
            assert state(tab)["selected"] == [name] == [tab.inner_text("#selection h3")]
            assert set(state(tab)["highlightedEdges"]) == lit
            assert tab.evaluate(DRAWN) == {"rest": 60 - len(lit), "bright": len(lit)}
        slide(tab, 30)
        left = circuit(qkv=qkv).keeping(state(tab)["visibleEdges"]).graph()
        assert set(state(tab)["highlightedEdges"]) == paths(left, "logits") < lit

    def test_what_dangles_is_counted_apart_and_comes_last(self, opened):
        kept = dangling_circuit()
        tab = opened(kept.graph(), title=repr(kept))
        assert tab.inner_text("h1") == "Circuit(4 of 479 edges, 2 dangling, acdc)"
        assert tab.inner_text("#counts") == "4 of 4 edges (2 dangling) · 1 of 20 units"
        assert state(tab)["visibleUnits"] == list(kept.units()) == ["m0"]
        rows = "rows => rows.map((row) => row.dataset.edge)"
        strongest = tab.locator("#strongest button").evaluate_all(rows)
        assert strongest == ["embed->m0", "m0->logits"]
        assert "dangling: on no path" in tab.inner_text("#legend")
        click(tab, "embed")
        out = tab.locator("#strongest-out button")
        assert out.evaluate_all(rows) == ["embed->m0", "embed->m1"]
        assert out.last.locator("data").inner_text() == "dangling"
        tab.keyboard.press("Escape")
        tab.uncheck("[data-sign=dangling]")
        assert set(state(tab)["visibleEdges"]) == {"embed->m0", "m0->logits"}

    def test_shift_click_pins_several_and_escape_clears(self, opened):
        graph = circuit(edges=30).graph()
        head, mlp = paths(graph, "a2.h1"), paths(graph, "m2")
        tab = opened(graph)
        click(tab, "a2.h1")
        tab.keyboard.down("Shift")
        click(tab, "m2")
        assert state(tab)["selected"] == ["a2.h1", "m2"]
        assert set(state(tab)["highlightedEdges"]) == head | mlp != mlp
        click(tab, "a2.h1")
        tab.keyboard.up("Shift")
        assert set(state(tab)["highlightedEdges"]) == mlp
        tab.keyboard.press("Escape")
        assert state(tab)["selected"] == state(tab)["highlightedEdges"] == []
        assert tab.evaluate(DRAWN) == {"rest": 0, "bright": 30}

    def test_the_slider_leaves_exactly_the_edges_of_that_size(self, opened):
        kept = circuit(edges=400)
        tab = opened(kept.graph())
        for place in (1, 100, 399, 0):
            slide(tab, place)
            now = state(tab)
            edges = at_least(kept, now["threshold"])
            assert set(now["visibleEdges"]) == edges
            assert len(edges) == tab.evaluate(DRAWN)["bright"] == 400 - place
            units = kept.keeping(edges).units()
            assert tuple(now["visibleUnits"]) == units
            assert f"{len(edges)} of 400 edges · {len(units)} of" in tab.inner_text("#counts")
        tab.fill("#threshold-value", "1.25")
        tab.press("#threshold-value", "Enter")
        assert set(state(tab)["visibleEdges"]) == at_least(kept, 1.25)

    @pytest.mark.parametrize("qkv", ["split", "joint"])
    def test_toggles_hide_a_kind_of_reader_and_a_sign(self, opened, qkv):
        kept = circuit(edges=EVERY, qkv=qkv)
        tab = opened(kept.graph())
        split = {part: rf"\.{part}" for part in "qkv"}
        ends = {"mlp": r"->m\d", "logits": "->logits"}
        for part, end in (ends | (split if qkv == "split" else {"joint": r"->a\d.h\d"})).items():
            tab.uncheck(f"[data-part={part}]")
            gone = set(kept) - set(state(tab)["visibleEdges"])
            assert gone == {name for name in kept if re.search(f"{end}$", name)} != set()
            tab.check(f"[data-part={part}]")
        tab.uncheck("[data-sign=negative]")
        assert set(state(tab)["visibleEdges"]) == {n for n in kept if kept.scores[n] > 0}

    def test_search_finds_units_readers_and_edges(self, opened):
        kept = circuit(edges=EVERY)
        graph, size = kept.graph(), {name: abs(score) for name, score in kept.scores.items()}
        strongest = max((name for name in kept if name.startswith("m0->a3")), key=size.get)
        tab = opened(graph)
        tab.keyboard.press("/")
        assert tab.evaluate("document.activeElement.id") == "search"
        assert search(tab, "m1") == ["m1"]
        assert search(tab, "A2.H3") == ["a2.h3"]
        assert search(tab, "a3.h0.q") == ["a3.h0.q"]
        lit = paths(graph, "a3.h0.q", "a3.h0")
        assert set(state(tab)["highlightedEdges"]) == lit
        assert search(tab, "m0->a3") == [strongest]
        lit = paths(graph, "m0", strongest[4:]) | {strongest}
        assert set(state(tab)["highlightedEdges"]) == lit
        assert search(tab, "nothing like it") == [strongest]
        assert search(tab, "a1.h", "ArrowDown") == ["a1.h1"]
        assert tab.locator("#matches").is_hidden()
        tab.keyboard.press("Escape")
        assert (state(tab)["selected"], tab.input_value("#search")) == ([], "")

    def test_hover_and_panel_tell_the_strongest_edges_and_they_can_be_clicked(self, opened):
        kept = circuit(edges=EVERY)
        tab = opened(kept.graph())
        click(tab, "m2")
        told = tab.text_content(".hoverlayer .hovertext")
        assert told.startswith("m2  MLP of block 2")
        assert "15 in · 14 out" in told  # embed, 3·4 heads, m0, m1; 4·3 readers, m3, logits
        for place, ends in (("in", "->m2"), ("out", "m2->")):
            names = [name for name in kept if ends in name]
            strongest = sorted(names, key=lambda name: -abs(kept.scores[name]))[:6]
            rows = tab.locator(f"#strongest-{place} button")
            assert rows.evaluate_all("rows => rows.map((row) => row.dataset.edge)") == strongest
        assert told.count("->") == 3
        rows.first.click()
        assert state(tab)["selected"] == [strongest[0]]

    def test_nothing_in_a_title_a_detail_or_a_name_becomes_markup(self, opened):
        graph = nx.DiGraph()
        for name, kind in {"embed": "embed", HOSTILE: "head", "logits": "logits"}.items():
            place = {"block": 0, "head": 0} if kind == "head" else {"block": None, "head": None}
            node = SimpleNamespace(name=name, kind=kind, part=None, unit=name, **place)
            graph.add_node(name, node=node)
        graph.add_edge("embed", HOSTILE, score=1.0)
        tab = opened(graph, title=HOSTILE, details={HOSTILE: HOSTILE})
        assert search(tab, "onerror") == [HOSTILE]
        tab.mouse.move(*tab.evaluate(PLACE_OF, escape(HOSTILE)))
        assert HOSTILE[:70] in tab.text_content(".hoverlayer .hovertext")
        for element in ("title", "h1", "#selection h3", "dt", "dd"):
            assert tab.text_content(element) == HOSTILE
        assert tab.locator("img, b:not(.keys b)").count() == 0
        assert tab.evaluate("window.owned") is None

    def test_a_graph_of_the_size_of_vit_b_opens_and_filters_quickly(self, opened):
        kept = circuit(12, 12, EVERY)
        began = time.monotonic()
        tab = opened(kept.graph())
        loaded = time.monotonic()
        slide(tab, 500)
        filtered = time.monotonic()
        assert set(state(tab)["visibleEdges"]) == at_least(kept, state(tab)["threshold"])
        assert 15_000 < len(state(tab)["visibleEdges"]) < 17_500
        assert loaded - began < 30
        assert filtered - loaded < 10

    def test_with_a_gpu_a_large_graph_is_drawn_by_webgl_and_hears_clicks(self, opened):
        kept = circuit(6, 6, EVERY)
        tab = opened(kept.graph(), before=PRETEND_GPU)
        if tab.evaluate("document.createElement('canvas').getContext('webgl')") is None:
            pytest.skip("this chromium has no WebGL, not even in software")
        click(tab, "a3.h3")
        assert tab.evaluate("document.getElementById('plot').data[1].type") == "scattergl"
        assert set(state(tab)["highlightedEdges"]) == paths(kept.graph(), "a3.h3")

    def test_the_picture_and_the_visible_edges_can_be_downloaded(self, opened):
        kept = circuit()
        tab = opened(kept.graph(), title="One / circuit")
        slide(tab, 30)
        with tab.expect_download() as download:
            tab.click("#download-json")
        body = json.loads(download.value.path().read_text("utf-8"))
        assert download.value.suggested_filename == "One-circuit.json"
        scores = {edge["name"]: edge["score"] for edge in body["edges"]}
        assert scores == {name: kept.scores[name] for name in state(tab)["visibleEdges"]}
        assert len(scores) == 30
        with tab.expect_download() as download:
            tab.click("#download-png")
        assert download.value.path().read_bytes().startswith(b"\x89PNG")

    def test_a_circuit_without_edges_or_scores_still_opens(self, opened):
        tab = opened(Circuit(config(), []).graph())
        assert tab.inner_text("#counts") == "0 of 0 edges · 0 of 20 units"
        tab = opened(Circuit(config(), ["embed->m0", "m0->logits"]).graph())
        assert state(tab)["visibleEdges"] == ["embed->m0", "m0->logits"]
        assert tab.is_disabled("#threshold")
