"""Where units and edges are drawn, and which of them are told of."""

import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from drawn_circuits import config, dangling_circuit

from circuitvit.escaping import escape
from circuitvit.explore import figure
from circuitvit.explore.drawing import IDLE
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import edge_graph


@pytest.mark.parametrize("pair", ["m0->m2 m1", "a0.h0->a2.h0.k a1.h0", "a0.h0->a2.h2.k a1.h1"])
def test_an_edge_does_not_hide_behind_the_unit_between_its_ends(pair):
    edge, between = pair.split()
    line, dots = figure(Circuit(config(), [edge]).graph(), title="t").data
    place = [row[0] for row in dots.customdata].index(between)
    distance = np.hypot(line.x - dots.x[place], line.y - dots.y[place])
    assert np.nanmin(distance) > 0.2


def test_units_outside_the_graph_are_ghosts_where_the_graph_knows_of_them():
    assert len(figure(edge_graph(config(2, 3)), title="t").data[-1].x) == 2 * 4 + 2
    dots = figure(Circuit(config(), ["embed->m0", "m0->logits"]).graph(), title="t").data[-1]
    fills = {row[0]: fill for row, fill in zip(dots.customdata, dots.marker.color, strict=True)}
    assert len(fills) == 4 * 5 + 2
    assert {n for n in fills if fills[n] != fills["m1"]} == {"embed", "m0", "logits"}


def test_what_dangles_is_not_among_the_strongest_edges_of_a_figure_or_a_notebook():
    kept = dangling_circuit()
    hovers = {row[0]: row[4] for row in figure(kept.graph(), title="t").data[-1].customdata}
    assert hovers["embed"] == f"<br>+0.5  {escape('embed->m0')}"
    assert hovers["m1"] == ""
    shown = kept._repr_html_()
    drawn = ET.fromstring(base64.b64decode(re.search(r"base64,([^\"]*)", shown)[1]))
    words = ["".join(text.itertext()) for text in drawn.findall("{*}text")]
    assert words[0] == "Circuit(4 of 479 edges, 2 dangling, acdc)"
    assert words[1].startswith("4 edges, 2 of them dangling (grey)")
    assert drawn.find("{*}path[@stroke-opacity]").get("stroke") == IDLE
