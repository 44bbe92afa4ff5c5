"""Pages, figures and tables that show names, all of them hostile."""

import dataclasses
from pathlib import Path
from typing import Any

from attack import specimens as own

import circuitvit as cv

EVIL = (
    "<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "</script><script>pwned=1</script>",
    "[a](javascript:window.pwned=1)", "<a href='javascript:window.pwned=1' autofocus onfocus=window.pwned=1>b</a>",
    "\"><svg onload=window.pwned=1>", "' onmouseover='window.pwned=1", "a|b\n\n<script>window.pwned=1</script>",
    "`</code><script>window.pwned=1</script>`", "é→\u202e<b>né</b>",
)  # fmt: skip
"""Ten texts, as many as the model has classes."""


def _vit() -> cv.ViT:
    vit = own.vit()
    vit.preprocessing = dataclasses.replace(vit.preprocessing, class_names=EVIL)
    return vit


def _shown(name: str, value: Any, room: Path) -> None:
    """What a notebook would show of a result."""
    bundle = getattr(value, "_repr_html_", lambda: None)()
    if isinstance(bundle, str):
        (room / f"{name}, notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{bundle}")


def make(folder: str) -> list[str]:
    """Write everything that shows a name; what could not be made, with the reason."""
    room, told = Path(folder), []
    room.mkdir(parents=True)
    vit, circuit = _vit(), own.circuit()
    images = dataclasses.replace(own.images(), class_names=EVIL, preprocessing=vit.preprocessing)
    models = {EVIL[0]: vit, EVIL[1]: own.vit(1), EVIL[7]: own.vit(2)}
    circuits = dict(zip(EVIL, [own.circuit(0), own.circuit(1)] * 5, strict=True))
    data = (images.images[:8], images.labels[:8])

    def page(plotlyjs: Any) -> Any:
        for number, text in enumerate(EVIL):
            circuit.to_html(room / f"page {number} {plotlyjs}.html", title=text, plotlyjs=plotlyjs)

    def told_by(circuit: cv.Circuit) -> Any:
        origin = dataclasses.replace(
            circuit.provenance,
            metric=EVIL[0],
            method=EVIL[1],
            model=EVIL[4],
            pairs={"clean": EVIL[2], "corrupt": EVIL[5]},
        )
        known = cv.Circuit(circuit.config, circuit.edges, scores=circuit.scores, provenance=origin)
        known.to_html(room / "provenance.html")
        _shown("circuit", known, room)

    def card(_: Any) -> Any:
        small: Any = cv.compile(vit, circuit)
        small.save_pretrained(room / "card")
        report = cv.measure({"dense": vit, "compiled": small}, *data, batches=(1,), rounds=3)
        cv.write_card(
            room / "card", small, dense=vit, circuit=circuit, ablation="zero", report=report,
            data=EVIL[0], command=EVIL[8], license=None,
        )  # fmt: skip

    def saved(name: str, value: Any) -> None:
        value.save(room / name)
        _shown(name, value, room)

    acts: dict[str, Any] = {
        "page": lambda: page(True), "page with plotly beside": lambda: page("directory"),
        "provenance": lambda: told_by(circuit), "card": lambda: card(None),
        "overlap": lambda: saved("overlap", cv.Overlap.of(circuits)),
        "report": lambda: saved("report", cv.measure(models, *data, batches=(1,), rounds=3)),
        "evaluation": lambda: saved("evaluation", cv.evaluate(models, *data, class_names=EVIL, batches=(1,), rounds=3)),
        "class circuits": lambda: saved("classes", cv.ClassCircuits(circuits)),
        "across ablations": lambda: cv.across_ablations(
            vit, {EVIL[0]: own.circuit(0), EVIL[1]: own.circuit(1)}, own.pairs(), ablations=("zero", "patch"), bootstrap=5
        ).to_html(room / "across.html"),
    }  # fmt: skip
    for name, act in acts.items():
        try:
            act()
        except cv.CircuitError as cause:
            told.append(f"{name}: {cause}")
    return told
