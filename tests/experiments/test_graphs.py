"""Every committed circuit loads and can be drawn again."""

from pathlib import Path

import pytest

import circuitvit as cv

GRAPHS = Path(__file__).parents[2] / "graphs"
CIRCUITS = sorted(GRAPHS.rglob("*circuit*.json"))


def test_there_are_circuits_to_look_at():
    assert GRAPHS / "digits" / "circuit.json" in CIRCUITS
    assert (GRAPHS / "README.md").exists()


@pytest.mark.parametrize("path", CIRCUITS, ids=lambda path: path.parent.name)
def test_a_committed_circuit_loads_and_is_drawn_again(path, tmp_path):
    circuit = cv.Circuit.load(path)
    assert len(circuit) > 0
    assert circuit.units()
    assert circuit.save(tmp_path / "again.json").read_text() == path.read_text()
    page = circuit.to_html(tmp_path / "page.html").read_text()
    assert all(unit in page for unit in circuit.units())


@pytest.mark.parametrize(
    "path", sorted(GRAPHS.rglob("graph.html")), ids=lambda path: path.parent.name
)
def test_a_committed_page_is_what_the_code_draws_today(path, tmp_path):
    circuit = cv.Circuit.load(path.with_name("circuit.json"))
    title = path.read_text().split("<title>")[1].split("</title>")[0]
    again = circuit.to_html(tmp_path / "page.html", title=title).read_text()
    assert again == path.read_text()
