"""Writes `graphs/cifar10/`: circuits of a trained CIFAR-10 model, each with its report.

Claim: on images that were used for nothing else, the circuits are more faithful than random ones of
their size, and compile into smaller models whose figures stand in their reports.
Command: `.venv/bin/python experiments/cifar10_gallery.py [--shared ../shared]`
Hardware: 1 CPU core. Minutes: 30.
Expected: graphs/cifar10/{cat_dog, automobile_truck, airplane_ship, all_classes}/{circuit.json,
report.md} and graphs/cifar10/classes/ as committed.

The model is that of `shared/models`, 6 blocks of 8 heads. Pairs for ACDC are training images; τ is
the one whose circuit is most faithful on validation pairs (training images too, others), among
those that save 30% of the MACs at the level of units; reports are on test images. It was trained on
images of the training set, so only the test images are new to it. `classes/` has a circuit for each
class against all others, at one τ, and how far all circuits overlap.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
from pathlib import Path

import torch

import circuitvit as cv
from circuitvit.charts.tables import markdown_table
from circuitvit.files import write_text
from circuitvit.measure import macs

HOUSE = Path(__file__).parents[1]
SEEN = cv.Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
TAUS = (0.003, 0.01, 0.02, 0.05, 0.1, 0.2)
CLASS_TAU = 0.02
LEAST_SAVING = 0.3
ABLATION = "mean"
DISCOVERY_PAIRS, HELD_OUT_PAIRS, REFERENCE = 64, 256, 512
RANDOM_CIRCUITS = 15
CASES = {
    "cat_dog": ("cat", "dog"),
    "automobile_truck": ("automobile", "truck"),
    "airplane_ship": ("airplane", "ship"),
    "all_classes": (None, None),
}


def chosen(vit, pairs, unseen, reference):
    """The most faithful circuit on validation pairs, of those that save enough; and the trials."""
    trials, best = [], None
    for tau in TAUS:
        circuit = cv.acdc(vit, pairs, tau=tau, ablation=ABLATION, reference=reference)
        if not circuit.units():
            continue
        small = cv.compile(vit, circuit, ablation=ABLATION, reference=reference)
        saved = 1 - macs(small, (3, 32, 32)) / macs(vit, (3, 32, 32))
        faithful = faithfulness(vit, circuit, unseen, reference)
        trials.append(f"| {tau:zg} | {len(circuit)} | {saved:z.0%} | {faithful:z.3f} |")
        if saved >= LEAST_SAVING and (best is None or faithful > best[0]):
            best = faithful, circuit
    assert best is not None, "no threshold saves enough"
    return best[1], trials


def faithfulness(vit, circuit, pairs, reference):
    return cv.faithfulness(vit, circuit, pairs, metric="kl", ablation=ABLATION, reference=reference)


def report(name, vit, circuit, trials, splits, pairs, unseen, reference):
    """What the circuit and its compiled models do on test images."""
    options = {"ablation": ABLATION, "reference": reference}
    edge = cv.compile(vit, circuit, level="edge", **options)
    models = {
        "dense": vit,
        "compiled, level='unit'": cv.compile(vit, circuit, **options),
        "compiled, level='edge'": edge,
    }
    test = splits.test
    if None not in CASES[name]:
        classes = torch.tensor([test.class_names.index(c) for c in CASES[name]])
        some = torch.isin(test.labels, classes)
        test = cv.ImageSet(test.images[some], test.labels[some], test.class_names)
    measured = cv.measure(models, test.images, test.labels)
    scores = cv.eap(vit, pairs, **options)
    size = len(circuit)
    kept, control, connected = beside_random(
        vit, [circuit, scores.top(size), scores.greedy(size)], unseen, reference
    )
    figures = [*kept, control, connected]
    what = "all classes" if name == "all_classes" else " against ".join(CASES[name])
    lines = [
        f"# CIFAR-10, {what}",
        "",
        f"ACDC, τ={circuit.provenance.tau:zg}, {len(circuit)} edges, {len(circuit.units())} units, "
        f"`{ABLATION}` ablation. Made by `.venv/bin/python experiments/cifar10_gallery.py`. "
        "The compiled models were not trained any further.",
        "",
        measured.markdown(),
        f"Faithfulness (kl) on {len(unseen)} test pairs, circuits of the same number of edges: "
        "ACDC {:z.3f}, EAP top {:z.3f}, EAP greedy {:z.3f}, random edges {:z.3f}, random connected "
        "ones {:z.3f} (medians of {}).".format(*figures, RANDOM_CIRCUITS),
        "",
        "Thresholds that were tried, on validation pairs:",
        "",
        "| τ | edges | MACs saved (units) | faithfulness |",
        "| --- | --- | --- | --- |",
        *trials,
        "",
        "What became of each block at `level='edge'`:",
        "",
        "```",
        edge.explain(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def beside_random(vit, circuits, unseen, reference):
    """Faithfulness of circuits of one size, and the medians of random and of connected ones."""
    curve = cv.faithfulness_curve(
        vit, circuits, unseen, metric="kl", ablation=ABLATION, reference=reference,
        controls=RANDOM_CIRCUITS,
    )  # fmt: skip
    kept = [point.faithfulness.value for point in curve.lines[0].points]
    return kept, curve.random()[0].median, curve.connected()[0].median


def class_by_class(vit, splits, reference):
    """A circuit for each class, what they do on test pairs, and what all circuits share."""
    out = HOUSE / "graphs" / "cifar10"
    options = {"ablation": ABLATION, "reference": reference, "count": DISCOVERY_PAIRS}
    found = cv.class_circuits(vit, splits.train, tau=CLASS_TAU, **options)
    found.save(out / "classes")
    (out / "classes" / "overlap.html").unlink()  # 5 MB; the table says the same
    rows = []
    for name, circuit in found.items():
        unseen = cv.Pairs.by_class(splits.test, clean=name, count=HELD_OUT_PAIRS)
        (kept,), _, control = beside_random(vit, [circuit], unseen, reference)
        rows.append(
            [name, f"{len(circuit)}", f"{len(circuit.units())}", f"{kept:z.3f}", f"{control:z.3f}"]
        )
    circuits = {name: cv.Circuit.load(out / name / "circuit.json") for name in CASES} | dict(found)
    overlap = cv.Overlap.of(circuits)
    lines = [
        "# CIFAR-10, class by class",
        "",
        f"ACDC, τ={CLASS_TAU:zg}, `{ABLATION}` ablation, one class against all others; faithfulness (kl) on "
        f"{HELD_OUT_PAIRS} test pairs, beside the median of {RANDOM_CIRCUITS} random connected circuits of as many "
        "edges. Made by `.venv/bin/python experiments/cifar10_gallery.py`.",
        "",
        markdown_table([["class", "edges", "units", "faithfulness", "random, connected"], *rows]),
        "",
        "How far these and the circuits beside them overlap:",
        "",
        overlap.markdown(),
    ]
    text = "\n".join(lines) + "\n"
    write_text(out / "classes" / "report.md", text)
    print(text)


def main(shared: Path) -> None:
    torch.set_num_threads(1)  # so that other work on the machine disturbs it less
    vit = cv.load_vit(
        shared / "models" / "cifar10_timm_vit.safetensors", heads=8, preprocessing=SEEN
    )
    splits = cv.load_splits(str(shared / "data" / "cifar10_*.parquet"), model=vit)
    reference = splits.train.images[:REFERENCE]
    for name, (clean, corrupt) in CASES.items():
        pairs, held, unseen = (
            cv.Pairs.by_class(part, clean=clean, corrupt=corrupt, count=count, seed=0)
            for part, count in (
                (splits.train, DISCOVERY_PAIRS),
                (splits.validation, HELD_OUT_PAIRS),
                (splits.test, HELD_OUT_PAIRS),
            )
        )
        circuit, trials = chosen(vit, pairs, held, reference)
        out = HOUSE / "graphs" / "cifar10" / name
        circuit.save(out / "circuit.json")
        text = report(name, vit, circuit, trials, splits, pairs, unseen, reference)
        write_text(out / "report.md", text)
        print(f"Wrote {out}.\n{text}")
    class_by_class(vit, splits, reference)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=HOUSE.parent / "shared")
    main(parser.parse_args().shared)
