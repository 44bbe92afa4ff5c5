"""Claim: pruned by ACDC or by EAP, a ViT does better than pruned at random; which is better where.

Command   python experiments/acdc_against_eap.py --data ../shared/data [--epochs 6 --threads 1
          --precision bf16] [--results experiments/results/acdc_against_eap.json]
Hardware  any; the full schedule wants a GPU
Minutes   TODO
Expected  runs/acdc_against_eap/{results.json, report.md, tradeoff.html, evaluation/, scores/,
          circuits/acdc_heads_tau_0.05.json, …, models/eap_neurons_keep_0.8/, …}

A ViT of 6 blocks × 6 heads, width 576, learns CIFAR-10 (or the animals of Tiny-ImageNet). ACDC at
three τ and EAP at three keep-ratios remove whole blocks, heads, or neurons of the MLPs; each
result is compiled to a smaller model and evaluated on test images as it is, beside random prunings
of the same size. At the level of heads all MLPs stay, in both methods; no MLP loses all its
neurons. ACDC asks for the rise of KL by one removal, in the pinned order (blocks from the last,
heads from the last), neurons in groups, the weakest by EAP's score first. EAP keeps what scores
most by size. Nothing is chosen on test images: they are looked at in the last stage alone.
"""

import argparse
from typing import Any

from study import Study, folder_of, options, run, source_of, stages_of

import circuitvit as cv

NAME = "acdc_against_eap"
SETTINGS: dict[str, Any] = {
    "set": "cifar10",
    "image_size": 32,
    "shape": {"patch_size": 8, "width": 576, "depth": 6, "heads": 6, "mlp_width": 1536},
    "recipe": {
        "epochs": 50,
        "batch": 64,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup_epochs": 5,
        "label_smoothing": 0.1,
        "clip": 1.0,
        "horizontal_flip": True,
        "translate": 0.1,
        "rotate": 0.0,
        "mixed_precision": "no",
    },
    "recovery": {"epochs": 0, "learning_rate": 2e-5},
    "validation": 0.1,
    "limit": None,
    "method": "both",
    "levels": ["blocks", "heads", "neurons"],
    "taus": [0.01, 0.05, 0.1],
    "keep_ratios": [0.9, 0.8, 0.7],
    "loss": "kl",
    "eap": {
        "kl": {"metric": "kl", "method": "eap-ig-inputs", "steps": 5, "ablation": "patch"},
        "task": {"metric": "cross_entropy", "method": "eap", "ablation": "mean"},
    },
    "analysis_batches": 2,
    "analysis_batch": 64,
    "neuron_group": 16,
    "ablation": "mean",
    "reference": 256,
    "random_seeds": 3,
    "random_images": 2000,
    "give": 0.02,
    "batches": [64],
    "rounds": 15,
    "seed": 0,
}
TOY: dict[str, Any] = {
    "image_size": 8,
    "shape": {"patch_size": 2, "width": 32, "depth": 3, "heads": 4, "mlp_width": 64},
    "limit": 300,
    "analysis_batch": 16,
    "neuron_group": 8,
    "reference": 64,
    "random_images": 200,
    "batches": [8],
    "rounds": 3,
}
TOY_EPOCHS = 30
TOY_RECIPE = {"learning_rate": 3e-3, "horizontal_flip": False}
SIZES = {"cifar10": 32, "animals": 64}


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the results."""
    settings = SETTINGS | {"set": given.set, "image_size": SIZES[given.set]}
    settings |= TOY if given.toy else {}
    full = SETTINGS["recipe"]["epochs"]
    epochs = given.epochs or (TOY_EPOCHS if given.toy else full)
    settings["recipe"] = SETTINGS["recipe"] | (TOY_RECIPE if given.toy else {})
    settings["recipe"] |= {
        "epochs": epochs,
        "warmup_epochs": min(SETTINGS["recipe"]["warmup_epochs"], epochs / 8),
        "mixed_precision": given.precision,
    }
    settings["recovery"] = SETTINGS["recovery"] | {"epochs": given.recovery_epochs}
    chosen = {
        "method": given.method,
        "loss": given.loss,
        "analysis_batches": given.analysis_batches,
    }
    digits = given.toy and not given.data
    settings |= {
        **chosen,
        "data": "digits" if digits else given.data,
        "limit": given.limit or settings["limit"],
    }
    return settings | {"share_of_schedule": epochs / full}


class Comparison:
    """The experiment's steps, on one study."""

    def __init__(self, study: Study) -> None:
        self.study, self.settings = study, study.settings
        self.seed = self.settings["seed"]
        digits = self.settings["data"] == "digits"
        name = self.settings["set"]
        self.splits = cv.load_splits(
            "digits" if digits else source_of(self.settings["data"], name),
            image_size=self.settings["image_size"],
            classes="animals" if name == "animals" and not digits else None,
            validation=self.settings["validation"],
            seed=self.seed,
            limit=self.settings["limit"],
            cache=None if digits else study.folder / "cache",
        )

    @property
    def recipe(self) -> cv.Recipe:
        """How the dense model is trained."""
        return cv.Recipe(**self.settings["recipe"], seed=self.seed)

    def start(self) -> cv.ViT:
        """The dense model before its training."""
        config = cv.ViTConfig(
            image_size=self.settings["image_size"],
            channels=self.splits.train.images.shape[1],
            classes=len(self.splits.train.class_names),
            **self.settings["shape"],
        )
        return cv.ViT(config, seed=self.seed)

    def dense(self) -> cv.ViT:
        """The trained model that is pruned."""
        return self.study.trained("dense", self.start, self.splits, self.recipe)


def parser_of() -> argparse.ArgumentParser:
    """The options."""
    parser = options(__doc__, NAME)
    parser.add_argument("--set", choices=list(SIZES), default="cifar10", help="which images")
    parser.add_argument("--method", choices=["both", "acdc", "eap"], default="both")
    parser.add_argument(
        "--loss",
        choices=["kl", "task"],
        default="kl",
        help="what EAP scores by: KL or cross-entropy",
    )
    parser.add_argument(
        "--analysis-batches", type=int, default=2, help="batches of 64 pairs to search on"
    )
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="of the training")
    parser.add_argument("--recovery-epochs", type=int, default=0, help="for each pruned model")
    parser.add_argument("--limit", type=int, help="at most so many images a part, for a trial")
    return parser


def main(given: argparse.Namespace) -> None:
    study = Study(NAME, settings_of(given), folder_of(given, NAME), stages_of(given))
    steps = Comparison(study)
    steps.dense()


if __name__ == "__main__":
    run(main, parser_of())
