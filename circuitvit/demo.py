"""The demo: the whole pipeline on scikit-learn's handwritten digits.

It trains a small ViT, finds its circuit with EAP and with ACDC, draws it, compiles it into a
smaller ViT, trains that shape again from scratch, and measures all of them. Models are trained on
the training split, τ is chosen on the validation split, and results are of the test split.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitvit.compiler import compile  # noqa: A004
from circuitvit.config import ViTConfig
from circuitvit.discover import acdc, eap
from circuitvit.errors import CircuitError
from circuitvit.export.card import write_card
from circuitvit.files import check_folder_writable, write_text, writing_folder
from circuitvit.files.records import REPORT
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import units_of
from circuitvit.images import Pairs, Splits, load_splits
from circuitvit.intervene.ablated_run import MaskedViT
from circuitvit.measure import Report, accuracy, faithfulness, faithfulness_curve, macs, measure
from circuitvit.models.vit import ViT
from circuitvit.train import Recipe, train

SHAPE = ViTConfig(
    image_size=8, patch_size=2, channels=1, classes=10, width=64, depth=6, heads=4, mlp_width=128
)
TAUS = (0.01, 0.015, 0.02, 0.0225, 0.025, 0.0275, 0.03, 0.04)
LEAST_SAVING = 0.25
"""A circuit must save at least this share of the MACs to be chosen."""
ABLATION = "zero"
METRIC = "kl"
DISCOVERY_PAIRS = 128
HELD_OUT_PAIRS = 256
RANDOM_CIRCUITS = 15


@dataclass(frozen=True)
class Demo:
    """The demo's results.

    Attributes:
        circuit: the ACDC circuit at the chosen τ.
        report: dense, masked, compiled and retrained models side by side, on the test split.
        summary: the numbers that aren't in the report, as plain JSON values.
    """

    circuit: Circuit
    report: Report
    summary: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write report.json, report.md, circuit.json and graph.html."""
        REPORT.write(folder / "report.json", {"summary": self.summary, **self.report.as_dict()})
        write_text(folder / "report.md", as_markdown(self.report, self.summary))
        self.circuit.save(folder / "circuit.json")
        self.circuit.to_html(folder / "graph.html", title="Handwritten digits: the ACDC circuit")


def demo(
    folder: str | os.PathLike[str] = "runs/demo",
    *,
    seed: int = 0,
    epochs: int = 100,
    say: Callable[[str], None] = print,
) -> Demo:
    """Run the pipeline and write its results.

    Args:
        folder: for report.md, report.json, circuit.json, graph.html and the models `dense`,
            `compiled` and `retrained`.
        seed: draws splits, weights, image order, pairs and random circuits.
        epochs: of both trainings.
        say: called with a line of text before each step.
    """
    start = time.perf_counter()
    check_folder_writable(folder)
    splits, recipe = load_splits("digits", seed=seed), Recipe(epochs=epochs, seed=seed)
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    say(f"Handwritten digits: {sizes[0]} to train on, {sizes[1]} to choose on, {sizes[2]} to test.")

    say(f"Training a ViT with {SHAPE.depth} blocks of {SHAPE.heads[0]} heads …")
    dense = train(ViT(SHAPE, seed=seed), splits.train, splits.validation, recipe).vit
    say(f"Finding its circuit with ACDC at {len(TAUS)} thresholds …")
    circuit, trials = choose(dense, splits, seed=seed)
    say(f"Chosen on validation: {circuit} at τ={circuit.provenance.tau:zg}.")
    compiled = compile(dense, circuit, ablation=ABLATION)
    say("Training the compiled blueprint from scratch …")
    fresh = ViT(compiled.config, seed=seed + 1)
    retrained = train(fresh, splits.train, splits.validation, recipe).vit

    say("Measuring on the test split …")
    models = {
        "dense": dense,
        "circuit as masked run": MaskedViT(dense, circuit, ablation=ABLATION),
        "compiled": compiled,
        "retrained from scratch": retrained,
    }
    report = measure(models, splits.test.images, splits.test.labels, seed=seed)
    summary = {
        "circuit": repr(circuit),
        "tau": circuit.provenance.tau,
        "edges": len(circuit),
        "units": list(circuit.units()),
        "all_units": len(units_of(SHAPE)),
        "macs_saved": 1 - macs(compiled, (1, 8, 8)) / macs(dense, (1, 8, 8)),
        "faithfulness": held_out_faithfulness(dense, circuit, splits, seed=seed),
        "trials": trials,
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    result = Demo(circuit, report, summary)
    command = f"circuitvit demo --seed {seed} --epochs {epochs}"
    _write(folder, result, dense, compiled, retrained, command)
    return result


def _write(
    folder: str | os.PathLike[str], result: Demo, dense: ViT, compiled: ViT, retrained: ViT,
    command: str,
) -> None:  # fmt: skip
    """Write all files in one step."""
    with writing_folder(folder) as out:
        result.save(out)
        for name, model in (("dense", dense), ("compiled", compiled), ("retrained", retrained)):
            model.save_pretrained(out / name)
        write_card(
            out / "compiled", compiled, dense=dense, circuit=result.circuit, ablation=ABLATION,
            report=result.report, data="digits, test split", command=command,
        )  # fmt: skip


def choose(vit: ViT, splits: Splits, *, seed: int) -> tuple[Circuit, list[dict[str, Any]]]:
    """The ACDC circuit that is most faithful on validation pairs, if it saves enough MACs.

    Also one entry for each τ that was tried.

    Raises:
        CircuitError: none saves enough.
    """
    pairs = Pairs.by_class(splits.train, count=DISCOVERY_PAIRS, seed=seed)
    validation = splits.validation
    unseen = Pairs.by_class(validation, count=HELD_OUT_PAIRS, seed=seed)
    trials, best = [], None
    for tau in TAUS:
        circuit = acdc(vit, pairs, tau=tau, metric=METRIC, ablation=ABLATION)
        if not circuit.units():
            continue  # τ is too large: nothing of the image reaches the logits
        small = compile(vit, circuit, ablation=ABLATION)
        saved = 1 - macs(small, (1, 8, 8)) / macs(vit, (1, 8, 8))
        top1 = accuracy(small, validation.images, validation.labels).top1
        faithful = faithfulness(vit, circuit, unseen)
        trials.append(
            {
                "tau": tau,
                "edges": len(circuit),
                "macs_saved": saved,
                "validation_faithfulness": faithful,
                "validation_accuracy_compiled": top1,
            }
        )
        if saved >= LEAST_SAVING and (best is None or faithful > best[0]):
            best = (faithful, circuit)
    if best is None:
        raise CircuitError(
            f"no threshold among {TAUS} gave a circuit that saves {LEAST_SAVING:z.0%} of the MACs. "
            "Train longer, or try another seed."
        )
    return best[1], trials


def held_out_faithfulness(
    vit: ViT, circuit: Circuit, splits: Splits, *, seed: int
) -> dict[str, Any]:
    """Faithfulness on test pairs: ACDC, EAP and random circuits with the same number of edges.

    `random` circuits have any edges, `connected` ones edges on paths from `embed` to `logits`.
    """
    known = Pairs.by_class(splits.train, count=DISCOVERY_PAIRS, seed=seed)
    unseen = Pairs.by_class(splits.test, count=HELD_OUT_PAIRS, seed=seed)
    scores, size = eap(vit, known, ablation=ABLATION), len(circuit)
    curve = faithfulness_curve(
        vit, [circuit, scores.top(size), scores.greedy(size)], unseen, metric=METRIC,
        ablation=ABLATION, controls=RANDOM_CIRCUITS, seed=seed,
    )  # fmt: skip
    if curve.undefined:
        raise CircuitError(curve.undefined)
    own = [point.faithfulness.value for point in curve.lines[0].points]
    random, connected = (
        [line.points[0].faithfulness.value for line in curve.controls if line.name.startswith(kind)]
        for kind in ("random", "connected")
    )
    return {
        "metric": METRIC,
        "ablation": ABLATION,
        "pairs": len(unseen),
        **dict(zip(("acdc", "eap_top", "eap_greedy"), own, strict=True)),
        "random": random,
        "random_median": curve.random()[0].median,
        "connected": connected,
        "connected_median": curve.connected()[0].median,
    }


def as_markdown(report: Report, summary: dict[str, Any]) -> str:
    """The demo's report as Markdown."""
    faithful = summary["faithfulness"]
    lines = [
        "# circuitvit on handwritten digits",
        "",
        f"`circuitvit demo --seed {summary['seed']}` took {summary['seconds']:z.0f} s. "
        "Models learned on the training split; τ was chosen on the validation split; all figures "
        "below are of the test split.",
        "",
        report.markdown(),
        f"The circuit ({summary['edges']} edges, τ={summary['tau']:zg}, {len(summary['units'])} "
        f"of {summary['all_units']} units) compiles into a model with "
        f"{summary['macs_saved']:z.0%} fewer MACs.",
        "",
        f"Faithfulness on {faithful['pairs']} held-out pairs (1 is the full model, 0 none of it), "
        "circuits of the same number of edges:",
        "",
        f"| ACDC | EAP, top | EAP, greedy | random edges, median of {RANDOM_CIRCUITS} | random "
        f"connected, median of {RANDOM_CIRCUITS} |",
        "| --- | --- | --- | --- | --- |",
        f"| {faithful['acdc']:z.3f} | {faithful['eap_top']:z.3f} | {faithful['eap_greedy']:z.3f} | "
        f"{faithful['random_median']:z.3f} | {faithful['connected_median']:z.3f} |",
        "",
        f"The thresholds that were tried, on the validation split; the most faithful circuit that "
        f"saves at least {LEAST_SAVING:z.0%} of the MACs was chosen:",
        "",
        "| τ | edges | MACs saved | faithfulness | accuracy as compiled |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {trial['tau']:zg} | {trial['edges']} | {trial['macs_saved']:z.0%} | "
        f"{trial['validation_faithfulness']:z.3f} | "
        f"{trial['validation_accuracy_compiled']:z.2%} |"
        for trial in summary["trials"]
    ]
    return "\n".join(lines) + "\n"
