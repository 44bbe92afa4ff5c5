"""The three experiments' tables in README.md are those of the committed results."""

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
    """README's part about an experiment: from its command to the next paragraph after its table."""
    readme = (HOUSE / "README.md").read_text()
    found = re.search(rf"`python experiments/{name}\.py.*?\n\n(\|.*?)\n\n", readme, flags=re.S)
    assert found, f"README has no table of {name}"
    return found[0]


@pytest.mark.parametrize("name", REPORTS)
def test_the_committed_report_is_made_of_the_committed_results(name):
    report = importlib.import_module(REPORTS[name]).report
    results = read_json(RESULTS / f"{name}.json", what="a study")
    assert (RESULTS / f"{name}.md").read_text() == report(results)


@pytest.mark.parametrize("name", REPORTS)
def test_every_row_in_the_readme_is_a_row_of_the_report(name):
    rows = table_rows(section(name))
    assert len(rows) > 3
    assert set(rows) <= set(table_rows((RESULTS / f"{name}.md").read_text()))


@pytest.mark.parametrize("name", REPORTS)
def test_the_readme_names_command_hardware_and_date(name):
    results = read_json(RESULTS / f"{name}.json", what="a study")
    text = section(name)
    assert (
        f"--epochs {results['settings'].get('epochs', results['settings'].get('recipe', {}).get('epochs'))}"
        in text
    )
    assert "CPU core" in text
    assert max(part["date"] for part in results["parts"].values()) in text
