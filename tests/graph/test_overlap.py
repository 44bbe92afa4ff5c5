"""What circuits have in common, against plain sets and exact fractions."""

import json
import random
import subprocess
import sys
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from random_models import shape
from scipy.stats import hypergeom

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.graph.edge_graph import edge_names_of, units_of
from circuitvit.graph.overlap import expected_jaccard, shared_circuit

CONFIG = shape("ragged")
ALL = edge_names_of(CONFIG)


def random_circuits(count=5, seed=0, **scored) -> dict[str, cv.Circuit]:
    draw = random.Random(seed)
    return {
        f"class {i}": cv.Circuit(CONFIG, draw.sample(ALL, draw.randrange(1, len(ALL) // 2)))
        for i in range(count)
    }


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_that_of_plain_sets(seed):
    circuits = random_circuits(seed=seed)
    overlap = cv.Overlap.of(circuits)
    edges = {name: set(circuit.edges) for name, circuit in circuits.items()}
    units = {name: set(circuit.units()) for name, circuit in circuits.items()}
    assert len(overlap.pairs) == 10
    for one, other in combinations(circuits, 2):
        pair = overlap.between(other, one)
        assert (pair.one, pair.other) == (one, other)
        both, either = edges[one] & edges[other], edges[one] | edges[other]
        assert pair.edges_shared == len(both)
        assert pair.jaccard == pytest.approx(len(both) / len(either), abs=1e-12)
        assert pair.units_shared == len(units[one] & units[other])
        any_unit = units[one] | units[other]
        expected = len(units[one] & units[other]) / len(any_unit) if any_unit else 1.0
        assert pair.unit_jaccard == pytest.approx(expected, abs=1e-12)
        assert pair.edges_expected == pytest.approx(
            len(edges[one]) * len(edges[other]) / len(ALL), abs=1e-12
        )
    assert overlap.edges == tuple(map(len, edges.values()))
    assert overlap.units == tuple(map(len, units.values()))
    assert overlap.in_every == len(set.intersection(*edges.values()))
    assert overlap.in_any == len(set.union(*edges.values()))
    assert (overlap.all_edges, overlap.all_units) == (len(ALL), len(units_of(CONFIG)))


def exact_expectation(one: int, other: int, total: int) -> Fraction:
    if one + other == 0:
        return Fraction(1)
    chances = (
        (Fraction(comb(one, k) * comb(total - one, other - k), comb(total, other)), k)
        for k in range(max(0, one + other - total), min(one, other) + 1)
    )
    return sum((chance * k / (one + other - k) for chance, k in chances), Fraction(0))


@pytest.mark.parametrize(
    "sizes",
    [(0, 0, 9), (0, 3, 9), (9, 9, 9), (5, 7, 9), (1, 1, 2), (40, 12, 97), (200, 200, 3628)],
)
def test_chance_overlap_is_the_exact_mean(sizes):
    assert expected_jaccard(*sizes) == pytest.approx(float(exact_expectation(*sizes)), rel=1e-9)


def test_chance_overlap_is_what_random_circuits_have():
    draw, found = random.Random(0), []
    for _ in range(4000):
        one, other = set(draw.sample(range(30), 12)), set(draw.sample(range(30), 7))
        found.append(len(one & other) / len(one | other))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - expected_jaccard(7, 12, 30)) < 4 * error


def test_chance_overlap_of_a_large_model_stays_exact():
    shared = np.arange(5_001)
    chances = hypergeom(231_877, 5_000, 40_000).pmf(shared)
    expected = float(chances @ (shared / (45_000 - shared)))
    assert expected_jaccard(5_000, 40_000, 231_877) == pytest.approx(expected, rel=1e-7)


def test_circuits_without_edges_are_alike():
    circuits = {"a": cv.Circuit(CONFIG, ()), "b": cv.Circuit(CONFIG, ()),
                "c": cv.Circuit(CONFIG, ALL[:4])}  # fmt: skip
    overlap = cv.Overlap.of(circuits)
    assert overlap.between("a", "b").jaccard == overlap.between("a", "b").jaccard_expected == 1
    assert overlap.between("a", "c").jaccard == overlap.between("a", "c").jaccard_expected == 0


def test_the_matrix_is_symmetric_with_each_circuit_itself_on_the_diagonal():
    circuits = random_circuits()
    overlap = cv.Overlap.of(circuits)
    for what, diagonal in (("jaccard", [1.0] * 5), ("edges_shared", overlap.edges)):
        matrix = overlap.matrix(what)
        assert np.array_equal(matrix, matrix.T)
        assert np.diag(matrix).tolist() == list(diagonal)
        assert matrix[1, 3] == getattr(overlap.between("class 1", "class 3"), what)
    with pytest.raises(CircuitError, match="what is 'edges', expected one of"):
        overlap.matrix("edges")


def test_the_table_has_sizes_and_each_pair_beside_chance():
    overlap = cv.Overlap.of(random_circuits(3))
    header, *rows = overlap.table()
    assert header == ["circuit", "edges", "units", "class 0", "class 1", "class 2"]
    assert [row[0] for row in rows] == list(overlap.names)
    pair = overlap.between("class 0", "class 2")
    assert rows[0][5] == rows[2][3] == f"{pair.jaccard:.2f} ({pair.jaccard_expected:.2f})"
    assert rows[1][4] == "–"
    assert len(overlap.rows()) == 3
    assert overlap.rows()[0]["jaccard"] == overlap.pairs[0].jaccard
    assert "<table>" in overlap._repr_html_()
    assert f"{overlap.in_every:,} of {len(ALL):,} edges are in every circuit" in overlap.markdown()


def test_names_stay_in_their_cells():
    circuit = cv.Circuit(CONFIG, ALL[:3])
    overlap = cv.Overlap.of({"a|b\n<b>": circuit, "c": circuit})
    assert "| a\\|b &lt;b&gt; | 3 |" in overlap.markdown()
    assert "<b>" not in overlap._repr_html_()
    figure = overlap.figure()
    assert "<b>" not in figure.to_json().replace("\\u003c", "<")
    assert "&lt;b&gt;" in figure.layout.xaxis.ticktext[0]


def test_the_figure_shows_jaccard_and_tells_the_counts():
    overlap = cv.Overlap.of(random_circuits(4))
    figure = overlap.figure()
    (trace,) = figure.data
    for i in range(4):
        for j in range(4):
            told = trace.customdata[i][j]
            if i == j:
                assert trace.z[i][j] is None
                assert f"{overlap.edges[i]} edges, {overlap.units[i]} units" in told
            else:
                pair = overlap.between(f"class {i}", f"class {j}")
                assert trace.z[i][j] == pair.jaccard
                assert f"{pair.edges_shared} edges shared of" in told
                assert f"by chance {pair.jaccard_expected:.3f}" in told
    assert len(figure.layout.annotations) == 16
    assert "by chance" in figure.layout.title.text


@pytest.mark.parametrize("count", [1, 25])
def test_one_circuit_and_many_can_be_drawn(count):
    figure = cv.Overlap.of(random_circuits(count)).figure()
    assert len(figure.layout.annotations) == (1 if count == 1 else 0)


def test_an_overlap_is_saved_as_json_markdown_and_page(tmp_path):
    overlap = cv.Overlap.of(random_circuits(3))
    overlap.save(tmp_path / "deep")
    body = json.loads((tmp_path / "deep" / "overlap.json").read_text())
    assert body == json.loads(json.dumps(overlap.as_dict()))
    assert body["pairs"] == overlap.rows()
    assert (tmp_path / "deep" / "overlap.md").read_text() == overlap.markdown()
    page = (tmp_path / "deep" / "overlap.html").read_text()
    assert "Edges that circuits share" in page
    assert "<script src=" not in page


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("circuits", "message"),
    [
        ({}, "expected one or more circuits by name.*got none"),
        ([cv.Circuit(CONFIG, ())], "got list"),
        ({"a": cv.Circuit(CONFIG, ()), "b": 3}, "'b' is a int"),
        (
            {"a": cv.Circuit(CONFIG, ()), "b": cv.Circuit(shape(), ())},
            "'b' and 'a' belong to ViTs with different edges",
        ),
        (
            {"a": cv.Circuit(CONFIG, ()), "b": cv.Circuit(CONFIG, (), qkv="joint")},
            "different edges.*same qkv",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(circuits, message):
    with pytest.raises(CircuitError, match=message):
        cv.Overlap.of(circuits)
    with pytest.raises(CircuitError, match=message):
        shared_circuit(circuits)


def test_an_unknown_name_is_told():
    with pytest.raises(CircuitError, match="'class 0' and 'cat', expected two of these names"):
        cv.Overlap.of(random_circuits(2)).between("class 0", "cat")


# Edges that many share


@pytest.mark.parametrize(
    ("share", "needed"), [(1.0, 10), (0.3, 3), (0.31, 4), (0.7, 7), (0.1, 1), (1e-6, 1)]
)
def test_shared_edges_are_in_at_least_that_share_of_the_circuits(share, needed):
    circuits = random_circuits(10, seed=3)
    expected = {
        edge for edge in ALL if sum(edge in circuit for circuit in circuits.values()) >= needed
    }
    shared = shared_circuit(circuits, share)
    assert set(shared.edges) == expected
    assert shared.provenance.selection == f"in at least {needed} of 10 circuits"


def test_shared_edges_have_the_mean_of_their_scores():
    names = ALL[:3]
    one = cv.Circuit(CONFIG, names[:2], scores={names[0]: 1.0, names[1]: 4.0})
    other = cv.Circuit(CONFIG, names[1:], scores={names[1]: -1.0, names[2]: 3.0})
    shared = shared_circuit({"one": one, "other": other}, 0.5)
    assert dict(shared.scores) == {names[0]: 1.0, names[1]: 1.5, names[2]: 3.0}


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(CircuitError, match="share is .*above 0 and at most 1"):
        shared_circuit(random_circuits(2), share)


def test_saved_circuits_are_compared_without_torch(tmp_path):
    path = random_circuits(1)["class 0"].save(tmp_path / "circuit.json")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import circuitvit as cv\n"
        f"circuit = cv.Circuit.load({str(path)!r})\n"
        "print(cv.Overlap.of({'a': circuit, 'b': circuit}).between('a', 'b').jaccard)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1.0", done.stderr
