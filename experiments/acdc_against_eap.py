"""Claim: ACDC and EAP prune a ViT better than chance where much goes; of little, any part will do.

Command   python experiments/acdc_against_eap.py --data ../shared/data [--epochs 6 --threads 1
          --precision bf16] [--results experiments/results/acdc_against_eap.json]
Hardware  any; the full schedule wants a GPU
Minutes   on one CPU core some 5 an epoch in bf16, 9 without, then 12 to prune and 40 to evaluate
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

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from acdc_against_eap_report import report, tradeoff
from acdc_against_eap_search import Search, Wanted
from kept_parts import Kept, MaskedRuns, compiled, random_prunings
from study import (
    Study,
    at_least,
    dense_shape,
    evaluated_rows,
    folder_of,
    images_of,
    options,
    run,
    set_of,
    stages_of,
)

import circuitvit as cv
from circuitvit.charts.chart import chart_page
from circuitvit.images import Splits
from circuitvit.measure import accuracy, macs
from circuitvit.pretrained import load_saved

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
    "random_prunings": 15,
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
    "random_prunings": 3,
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
    settings |= {**chosen, "limit": given.limit or settings["limit"]}
    return settings | {"share_of_schedule": epochs / full}


class Comparison:
    """The experiment's steps, on one study."""

    def __init__(self, study: Study, splits: Splits) -> None:
        self.study, self.settings, self.splits = study, study.settings, splits
        self.seed, self.every = self.settings["seed"], Wanted.all_of(self.settings)
        self.device = study.device

    @property
    def recipe(self) -> cv.Recipe:
        """How the dense model is trained."""
        return cv.Recipe(**self.settings["recipe"], seed=self.seed)

    def start(self) -> cv.ViT:
        """The dense model before its training."""
        return cv.ViT(dense_shape(self.study, self.splits.train), seed=self.seed)

    @cached_property
    def dense(self) -> cv.ViT:
        """The trained model that is pruned."""
        return self.study.trained("dense", self.start, self.splits, self.recipe)

    @cached_property
    def search(self) -> Search:
        """What finds the prunings."""
        return Search(self.study, self.dense, self.splits.train)

    def folder(self, name: str) -> Path:
        """Where a model is saved."""
        return self.study.folder / "models" / name

    def prune(self, wanted: Wanted) -> dict[str, Any]:
        """Find what stays, compile it, save it; with its accuracy on validation images."""

        def make() -> dict[str, Any]:
            found, search = self.search.found(wanted), self.search
            small = compiled(self.dense, found.kept, self.settings["ablation"], search.reference)
            small.save_pretrained(self.folder(wanted.name))
            return {
                **asdict(wanted),
                "kept": found.kept.counts(),
                "divergence": found.divergence,
                "trials": found.trials,
                "same_as": self.same_as(wanted, found.kept),
                **self.judged(small),
            }

        return self.study.part(f"prune {wanted.name}", "optimize", make)

    def same_as(self, wanted: Wanted, kept: Kept) -> str | None:
        """The first model before this one of which the same stays, if any."""
        if kept == Kept.whole(self.dense.config):
            return "dense"
        earlier = self.every[: self.every.index(wanted)]
        return next((one.name for one in earlier if self.search.found(one).kept == kept), None)

    def judged(self, model: cv.ViT) -> dict[str, Any]:
        """What decides a choice: validation images and cost."""
        validation = self.splits.validation
        top1 = accuracy(model, validation.images.to(self.device), validation.labels).top1
        shape = tuple(validation.images.shape[1:])
        return {"validation_top1": top1, "macs": macs(model, shape)}

    def recover(self, wanted: Wanted) -> None:
        """Train a pruned model a little, if the settings say so."""
        recovery = self.settings["recovery"]
        if not recovery["epochs"] or self.prune(wanted)["same_as"] is not None:
            return
        recipe = replace(self.recipe, **recovery, warmup_epochs=recovery["epochs"] / 10)
        name = f"{wanted.name}_recovered"
        start = lambda: load_saved(self.folder(wanted.name))  # noqa: E731
        small = self.study.trained(name, start, self.splits, recipe, stage="optimize")
        self.study.part(f"judge {name}", "optimize", lambda: self.judged(small))

    def optimize(self) -> None:
        """All prunings, and the choice on validation images."""
        for level in self.settings["levels"]:
            if self.settings["method"] != "acdc" or level == "neurons":  # ACDC tries by score there
                score = lambda of=level: self.search.score(of)  # noqa: E731
                self.study.part(f"score {level}", "optimize", score)
        for wanted in self.every:
            self.prune(wanted)
            self.recover(wanted)
        dense = self.study.part("judge dense", "optimize", lambda: self.judged(self.dense))
        self.study.part("choose", "optimize", lambda: self.chosen(dense))

    def chosen(self, dense: dict[str, Any]) -> dict[str, Any]:
        """The model of fewest MACs that loses little accuracy on validation images."""
        judged = {"dense": dense}
        for name, part in self.study.results["parts"].items():
            if "validation_top1" in part["result"] and name != "judge dense":
                judged[name.split()[1]] = part["result"]
        least = dense["validation_top1"] - self.settings["give"]
        good = {name: one for name, one in judged.items() if one["validation_top1"] >= least}
        best = min(good, key=lambda name: (good[name]["macs"], -good[name]["validation_top1"]))
        return {"name": best, **good[best]}

    def names(self) -> list[str]:
        """The models that are evaluated, in the order of the table; of those alike the first."""
        names = ["dense"]
        for wanted in self.every:
            first = self.prune(wanted)["same_as"] is None
            names += [wanted.name] * first
            names += [f"{wanted.name}_recovered"] * bool(
                first and self.settings["recovery"]["epochs"]
            )
        return names

    def test_places(self) -> list[int]:
        """Which test images the random prunings are measured on."""
        count = len(self.splits.test.images)
        some = min(self.settings["random_images"], count)
        return sorted(Random(self.seed).sample(range(count), some))

    def evaluated(self) -> dict[str, Any]:
        """All models on test images, side by side."""
        test, folder = self.splits.test, self.study.folder
        for wanted in self.every:
            self.search.found(wanted)  # refuses those of another model
        models = {name: load_saved(self.folder(name)).to(self.device) for name in self.names()}
        found = cv.evaluate(
            models, test.images.to(self.device), test.labels, class_names=test.class_names,
            baseline="dense", batches=self.settings["batches"], rounds=self.settings["rounds"],
            seed=self.seed,
        )  # fmt: skip
        found.save(folder / "evaluation")
        places = self.test_places()
        rows = {
            row["name"]: row
            | {"top1_beside_random": float(found[row["name"]].right[places].mean())}
            for row in evaluated_rows(found)
        }
        advice = found.advice().lines()
        return {"images": len(test.images), "batch": found.batch, "rows": rows,
                "pareto": list(found.pareto()), "advice": advice}  # fmt: skip

    def random(self, level: str) -> dict[str, list[float]]:
        """Test accuracy of random prunings of a level, by how much stays, a value for each."""
        pruned = [self.prune(wanted) for wanted in self.every if wanted.level == level]
        sizes = {one["kept"][level] for one in pruned if one["same_as"] != "dense"}
        many, seed = self.settings["random_prunings"], self.settings["seed"]
        drawn = {
            (size, place): kept
            for size in sorted(sizes)
            for place, kept in enumerate(
                random_prunings(self.dense.config, level, size, many, seed)
            )
        }
        places = self.test_places()
        right = dict.fromkeys(drawn, 0)
        for start in range(0, len(places), 256):
            some = places[start : start + 256]
            images = self.splits.test.images[some].to(self.device)
            labels = self.splits.test.labels[some].to(self.device)
            runs = MaskedRuns(self.dense, images, self.search.ablated)
            for key, kept in drawn.items():
                right[key] += int((runs.logits(kept).argmax(dim=1) == labels).sum())
        return {
            str(size): [right[key] / len(places) for key in drawn if key[0] == size]
            for size in sorted(sizes)
        }

    def evaluate(self) -> None:
        """The last stage: the only one that looks at test images."""
        self.optimize()
        self.study.part("evaluate", "evaluate", self.evaluated)
        for level in self.settings["levels"]:
            self.study.part(f"random {level}", "evaluate", lambda of=level: self.random(of))


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
        "--analysis-batches", type=at_least(1), default=2, help="batches of 64 pairs to search on"
    )
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="of the training")
    parser.add_argument(
        "--recovery-epochs", type=at_least(0), default=0, help="for each pruned model"
    )
    parser.add_argument(
        "--limit", type=at_least(1), help="at most so many images a part, for a trial"
    )
    return parser


def main(given: argparse.Namespace) -> None:
    study = Study(NAME, settings_of(given), folder_of(given, NAME), stages_of(given))
    steps = Comparison(study, images_of(study, given.data, set_of(given, given.set)))
    _ = steps.dense
    if "optimize" in study.stages:
        steps.optimize()
    if "evaluate" in study.stages:
        steps.evaluate()
    study.save()
    if study.has("evaluate", *(f"random {level}" for level in study.settings["levels"])):
        study.publish(report(study.results), given.results)
        chart_page(study.folder / "tradeoff.html", tradeoff(study.results))


if __name__ == "__main__":
    run(main, parser_of())
