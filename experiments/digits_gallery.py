"""Refreshes `graphs/digits/` and the README's picture from a demo run.

Claim: the committed circuit and page are what `circuitvit demo` writes, and the picture is that page.
Command: `make demo && .venv/bin/python experiments/digits_gallery.py`
Hardware: any CPU with Chromium (Debian's package `chromium`). Minutes: 1 after the demo.
Expected: graphs/digits/{circuit.json, graph.html, graph.png, report.md} as committed.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import circuitvit as cv
from circuitvit.files import write_text

HOUSE = Path(__file__).parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def picture(page: Page, html: Path, png: Path) -> None:
    """Open the page, click the strongest MLP, and take a screenshot."""
    page.goto(html.resolve().as_uri())
    page.wait_for_function("window.circuitvit && window.circuitvit.state()")
    page.fill("input[type=search]", "m1")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    page.screenshot(path=png)


def main(run: Path) -> None:
    out = HOUSE / "graphs" / "digits"
    out.mkdir(parents=True, exist_ok=True)
    circuit = cv.Circuit.load(run / "circuit.json")
    circuit.save(out / "circuit.json")
    circuit.to_html(out / "graph.html", title="Handwritten digits: the ACDC circuit")
    write_text(out / "report.md", (run / "report.md").read_text())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 760})
        picture(page, out / "graph.html", out / "graph.png")
        browser.close()
    print(f"Wrote {out}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=HOUSE / "runs" / "demo", help="a demo's folder")
    main(parser.parse_args().run)
