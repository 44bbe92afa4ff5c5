"""Writes `graphs/cifar10/evaluation/`: which of the CIFAR-10 circuits to deploy, and why.

Claim: `cv.evaluate` tells models apart by accuracy, calibration, size and time on the same images,
and gives a reason for what it advises.
Command   python experiments/cifar10_evaluation.py [--shared ../shared]
Hardware  1 CPU core
Minutes   9
Expected  graphs/cifar10/evaluation/{report.json, report.md, figure.html}; figure.png is a picture of
          the page: chromium --headless --screenshot=figure.png --hide-scrollbars
          --window-size=1300,1460 figure.html

The dense model is that of `shared/models`, the ACDC circuit `graphs/cifar10/all_classes`, compiled
at both levels. The models of 30% and 50% fewer MACs keep the units whose removal costs most for what
it saves, as `compile` ranks them on training images. Beside them stands one of units drawn at random
(`random_units`) that costs as much as −30%: of 15 draws the one whose accuracy on 1,000 validation
images is the median. Nothing was trained any further. All figures are on test images, which chose
only the advice.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
from pathlib import Path

import torch
from cifar10_gallery import ABLATION, REFERENCE, SEEN

import circuitvit as cv
from circuitvit.graph.controls import random_units
from circuitvit.graph.edge_graph import edges_among
from circuitvit.measure import accuracy
from circuitvit.measure.models.cost import vit_macs

HOUSE = Path(__file__).parents[1]
GALLERY = HOUSE / "graphs" / "cifar10"
BATCHES = (1, 64)
DRAWS, JUDGED = 15, 1000


def models_of(vit, splits):
    """What is compared, by name."""
    reference = splits.train.images[:REFERENCE]
    options = {"ablation": ABLATION, "reference": reference}
    everything = cv.Circuit.full(vit.config)
    circuit = cv.Circuit.load(GALLERY / "all_classes" / "circuit.json")
    return {
        "dense": vit,
        "ACDC, units": cv.compile(vit, circuit, **options),
        "ACDC, edges": cv.compile(vit, circuit, level="edge", **options),
        "−30% MACs": cv.compile(vit, everything, target_macs=0.7, **options),
        "−50% MACs": cv.compile(vit, everything, target_macs=0.5, **options),
        "random, −30% MACs": drawn(vit, splits.validation, 0.7 * vit_macs(vit.config), options),
    }


def drawn(vit, validation, most, options):
    """The median by validation accuracy of some models whose units are drawn at random."""
    sets = random_units(vit.config, vit_macs, most, count=DRAWS, constants=True)
    models = [
        cv.compile(vit, cv.Circuit(vit.config, edges_among(vit.config, units, "split")), **options)
        for units in sets
    ]
    images, labels = validation.images[:JUDGED], validation.labels[:JUDGED]
    by_accuracy = sorted(models, key=lambda model: accuracy(model, images, labels).top1)
    return by_accuracy[len(by_accuracy) // 2]


def main(shared: Path) -> None:
    torch.set_num_threads(1)
    vit = cv.load_vit(
        shared / "models" / "cifar10_timm_vit.safetensors", heads=8, preprocessing=SEEN
    )
    splits = cv.load_splits(str(shared / "data" / "cifar10_*.parquet"), model=vit)
    test = splits.test
    found = cv.evaluate(
        models_of(vit, splits),
        test.images,
        test.labels,
        class_names=test.class_names,
        batches=BATCHES,
    )
    print(f"Wrote {found.save(GALLERY / 'evaluation')}.\n{found.markdown()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=HOUSE.parent / "shared")
    main(parser.parse_args().shared)
