"""Claim: the circuit of a ViT tells the shape of a smaller one that learns as well.

Command   python experiments/animals_blueprint.py --data ../shared/data [--epochs 8 --threads 1]
          [--results experiments/results/animals_blueprint.json]
Hardware  any; the full schedule wants a GPU
Minutes   on one CPU core some 10 an epoch, over all trainings
Expected  runs/animals_blueprint/{results.json, report.md, tau.html, circuits/tau_*.json, models/}

A ViT of 6 blocks × 8 heads learns the 58 animal classes of Tiny-ImageNet. Pairs of images of unlike
coarse categories (a dog, a bird) are searched by ACDC over several τ, and every τ's circuit is
compiled. The τ is chosen on validation images; its blueprint is retrained from scratch, beside it
tuned with the weights it has, and a blueprint of as many heads and MLPs drawn at random is trained
as the control. Test images are looked at in the last stage alone. The published figures: at τ=0.01
41 of 48 heads went, all MLPs stayed, 55.24% after retraining.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from study import Study, folder_of, options, run, source_of, stages_of

import circuitvit as cv
from circuitvit.files import write_text
from circuitvit.html.chart import Series, chart, chart_page
from circuitvit.html.tables import markdown_table
from circuitvit.images.animals import categories
from circuitvit.measure import accuracy, latency, macs

NAME = "animals_blueprint"
SETTINGS: dict[str, Any] = {
    "image_size": 64,
    "shape": {"patch_size": 8, "width": 192, "depth": 6, "heads": 8, "mlp_width": 768},
    "recipe": {
        "epochs": 60,
        "batch": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "warmup_epochs": 5,
        "label_smoothing": 0.1,
        "clip": 1.0,
        "horizontal_flip": True,
        "translate": 0.1,
        "rotate": 0.0,
    },
    "tuning": {"epochs_share": 0.25, "learning_rate": 2e-4},
    "validation": 0.1,
    "limit": None,
    "pairs": 64,
    "metric": "kl",
    "ablation": "mean",
    "reference": 512,
    "taus": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1],
    "least_saving": 0.25,
    "seed": 0,
}
TOY: dict[str, Any] = {
    "image_size": 8,
    "shape": {"patch_size": 2, "width": 32, "depth": 3, "heads": 4, "mlp_width": 64},
    "limit": 300,
    "pairs": 16,
    "reference": 64,
    "taus": [0.005, 0.02, 0.05],
    "least_saving": 0.05,
}
TOY_EPOCHS = 6
DIGITS = {str(digit): "straight" if digit in (1, 4, 7) else "round" for digit in range(10)}
PUBLISHED = "41 of 48 heads gone at τ=0.01, all MLPs kept; 55.24% retrained"


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the results."""
    settings = SETTINGS | (TOY if given.toy else {})
    epochs = given.epochs or (TOY_EPOCHS if given.toy else SETTINGS["recipe"]["epochs"])
    warmup = min(SETTINGS["recipe"]["warmup_epochs"], epochs / 8)
    settings["recipe"] = SETTINGS["recipe"] | {"epochs": epochs, "warmup_epochs": warmup}
    settings["share_of_schedule"] = epochs / SETTINGS["recipe"]["epochs"]
    return settings | {"data": "digits" if given.toy and not given.data else given.data}


class Blueprint:
    """The experiment's steps, on one study."""

    def __init__(self, study: Study, toy: bool) -> None:
        self.study, self.settings = study, study.settings
        digits = self.settings["data"] == "digits"
        self.categories = DIGITS if digits else categories()
        self.seed = self.settings["seed"]
        source = "digits" if digits else source_of(self.settings["data"], "animals")
        self.splits = cv.load_splits(
            source,
            image_size=self.settings["image_size"],
            classes=None if digits else "animals",
            validation=self.settings["validation"],
            seed=self.seed,
            limit=self.settings["limit"],
            cache=None if digits else study.folder / "cache",
        )
        self.reference = self.splits.train.images[: self.settings["reference"]]
        self.ablated = {"ablation": self.settings["ablation"], "reference": self.reference}
        self.channels = self.splits.train.images.shape[1]

    @property
    def recipe(self) -> cv.Recipe:
        """How everything is trained from scratch."""
        return cv.Recipe(**self.settings["recipe"], seed=self.seed)

    def config(self) -> cv.ViTConfig:
        """The baseline's shape."""
        return cv.ViTConfig(
            image_size=self.settings["image_size"],
            channels=self.channels,
            classes=len(self.splits.train.class_names),
            **self.settings["shape"],
        )

    def baseline(self) -> Any:
        """The trained baseline."""
        start = lambda: cv.ViT(self.config(), seed=self.seed)  # noqa: E731
        return self.study.trained("baseline", start, self.splits, self.recipe)


def main(given: argparse.Namespace) -> None:
    study = Study(NAME, settings_of(given), folder_of(given, NAME), stages_of(given))
    steps = Blueprint(study, given.toy)
    steps.baseline()


if __name__ == "__main__":
    run(main, options(__doc__, NAME))
