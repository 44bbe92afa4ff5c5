"""Writes `graphs/cifar10/evaluation/`: which of the CIFAR-10 circuits to deploy, and why.

Claim: `cv.evaluate` tells models apart by accuracy, calibration, size and time on the same images,
and gives a reason for what it advises.
Command   python experiments/cifar10_evaluation.py [--shared ../shared]
Hardware  1 CPU core
Minutes   5
Expected  graphs/cifar10/evaluation/{report.json, report.md, figure.html}; figure.png is a picture of
          the page: chromium --headless --screenshot=figure.png --hide-scrollbars
          --window-size=1300,1420 figure.html

The dense model is that of `shared/models`, the ACDC circuit `graphs/cifar10/all_classes`, compiled
at both levels. The models of 30% and 50% fewer MACs keep the units that EAP scores highest on the
same training pairs: a step is a whole head or MLP, so they save a little more. Beside them stands one
of units drawn at random until no more MACs are left than EAP −30% has: of 5 draws that one which has
the most. Nothing was trained any further. All figures are on test images, which chose only the advice.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
from pathlib import Path

import torch
from cifar10_gallery import ABLATION, DISCOVERY_PAIRS, REFERENCE, SEEN

import circuitvit as cv
from circuitvit.circuit import Circuit
from circuitvit.measure import macs

HOUSE = Path(__file__).parents[1]
GALLERY = HOUSE / "graphs" / "cifar10"
BATCHES = (1, 64)
DRAWS = 5


def models_of(vit, splits):
    """What is compared, by name."""
    reference = splits.train.images[:REFERENCE]
    options = {"ablation": ABLATION, "reference": reference}
    pairs = cv.Pairs.by_class(splits.train, count=DISCOVERY_PAIRS, seed=0)
    by_eap = ranked(cv.eap(vit, pairs, **options))
    circuit = Circuit.load(GALLERY / "all_classes" / "circuit.json")
    shape = tuple(reference.shape[1:])
    models = {
        "dense": vit,
        "ACDC, units": cv.compile(vit, circuit, **options),
        "ACDC, edges": cv.compile(vit, circuit, level="edge", **options),
        "EAP −30%": cv.compile(vit, by_eap, target_macs=0.7, **options),
        "EAP −50%": cv.compile(vit, by_eap, target_macs=0.5, **options),
    }
    goal = macs(models["EAP −30%"], shape) / macs(vit, shape)
    orders = (ranked(cv.eap(vit, pairs, method="random", seed=seed)) for seed in range(DRAWS))
    drawn = [cv.compile(vit, order, target_macs=goal, **options) for order in orders]
    return models | {"random, as EAP −30%": max(drawn, key=lambda small: macs(small, shape))}


def ranked(scores: cv.EdgeScores) -> Circuit:
    """All edges, with the scores that say which units to drop first."""
    return scores.top(len(scores))


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
