"""The three experiments' tables in docs/results.md are those of the committed results."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from circuitvit.files import read_json

HOUSE = Path(__file__).parents[2]
RESULTS = HOUSE / "experiments" / "results"
REPORTS = {
    "animals_blueprint": "animals_blueprint_report",
    "acdc_against_eap": "acdc_against_eap_report",
    "edge_recovery": "edge_recovery_report",
}


@pytest.fixture(autouse=True)
def experiments_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(HOUSE / "experiments"))
    yield
    for name in {*REPORTS.values(), "study"}:
        sys.modules.pop(name, None)


def table_rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def section(name):
    """The page's part about an experiment: from its command to the end of its table."""
    page = (HOUSE / "docs" / "results.md").read_text() + "\n"
    found = re.search(rf"`python\s+experiments/{name}\.py.*?\n\n(\|.*?)\n\n", page, flags=re.S)
    assert found, f"docs/results.md has no table of {name}"
    return found[0]


@pytest.mark.parametrize("name", REPORTS)
def test_the_committed_report_is_made_of_the_committed_results(name):
    report = importlib.import_module(REPORTS[name]).report
    results = read_json(RESULTS / f"{name}.json", what="a study")
    assert (RESULTS / f"{name}.md").read_text() == report(results)


@pytest.mark.parametrize("name", REPORTS)
def test_every_row_of_the_page_is_a_row_of_the_report(name):
    rows = table_rows(section(name))
    assert len(rows) > 3
    assert set(rows) <= set(table_rows((RESULTS / f"{name}.md").read_text()))


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_names_command_hardware_and_date(name):
    results = read_json(RESULTS / f"{name}.json", what="a study")
    text = " ".join(section(name).split())
    assert (
        f"--epochs {results['settings'].get('epochs', results['settings'].get('recipe', {}).get('epochs'))}"
        in text
    )
    assert "CPU core" in text
    assert max(part["date"] for part in results["parts"].values()) in text
