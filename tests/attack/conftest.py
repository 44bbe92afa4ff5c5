"""The attack's own fixtures, and the table at its end."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack.tally import SEED, Tally
from attack.workers import Workers


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """The server whose children the cases are."""
    server = Workers()
    yield server
    server.close()


@pytest.fixture(scope="session")
def specimens(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of every kind of file and folder."""
    folder = tmp_path_factory.mktemp("specimens")
    made = workers.run("specimens:make_all", str(folder))
    assert not made.error, made.message
    assert not made.signal, made.stderr
    return folder


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts the cases of a test, and fails it at its end if one didn't hold."""
    kind = getattr(request.module, "KIND", request.module.__name__)
    counted = Tally(kind)
    request.node.user_properties.append(("attack", counted.counts))
    return counted


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print tried and held by kind, as a table and as a line for the log."""
    sums: dict[str, list[int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, counts in report.user_properties:
                    if name == "attack":
                        row = sums.setdefault(counts["kind"], [0, 0])
                        row[0] += counts["tried"]
                        row[1] += counts["held"]
    if not sums:
        return
    terminalreporter.section("the attack")
    terminalreporter.write_line(f"{'kind':<28}{'tried':>8}{'held':>8}{'seed':>8}")
    for kind, (tried, held) in sorted(sums.items()):
        terminalreporter.write_line(f"{kind:<28}{tried:>8}{held:>8}{SEED:>8}")
    rows = {kind: {"tried": tried, "held": held} for kind, (tried, held) in sorted(sums.items())}
    terminalreporter.write_line("attack: " + json.dumps({"seed": SEED, "kinds": rows}))
