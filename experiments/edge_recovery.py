"""Claim: a short training wins back most of what removed edges cost; only few edges save time.

Command   python experiments/edge_recovery.py --data ../shared/data [--set animals]
          [--epochs 12 --threads 1] [--results experiments/results/edge_recovery.json]
Hardware  any; the full schedule wants a GPU
Minutes   on one CPU core, CIFAR-10: some 9 for each of `--epochs`, and 9 to evaluate
Expected  runs/edge_recovery/{results.json, report.md, circuits/, models/, evaluation/};
          of the animals in runs/edge_recovery_animals/

Two ViTs of 6 blocks × 4 heads, 460 edges, learn the same classes: a *baseline* by a plain recipe, a
*better* one by twice the epochs with augmentation. Of each, edges are removed: the share of the
published project (`published`) and nearly all (`hard`), by EAP and, for the published share, by
ACDC. EAP scores with corrupt images, ACDC with means, as it is compiled: what was removed is its
mean over training images. The compiled circuit is trained again for 0.15 of the epochs, without
and with the dense model as its teacher.

Controls: the dense model trained on for as long, as the recovered one has seen more images than it;
random circuits of as many edges, grown backwards from the logits as EAP's are, as pruned and trained
again as EAP's is; and the circuit of all edges, for what compiling alone does to the time. Nothing is chosen by accuracy: shares are fixed
beforehand, circuits come from training images, validation images are only looked at, and test
images are for the last stage alone.

The published figures are of 200 classes of Tiny-ImageNet: 36.25% → 33.00% without 81 of 518 edges →
36.07% recovered, 61.3 s → 58.1 s. Other images, so the *changes* are what is compared.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

from edge_recovery_report import KINDS, PUBLISHED, report
from study import (
    Study,
    at_least,
    circuit_of,
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
from circuitvit.errors import CircuitError
from circuitvit.images import Splits
from circuitvit.measure import accuracy
from circuitvit.pretrained import load_saved

NAME = "edge_recovery"
PLAIN: dict[str, Any] = {
    "batch": 64,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "clip": 1.0,
    "augment": False,
}
BETTER: dict[str, Any] = PLAIN | {
    "augment": True,
    "horizontal_flip": True,
    "translate": 0.1,
    "rotate": 0.0,
    "mixup": 0.1,
    "cutmix": 0.3,
    "drop_path": 0.1,
    "ema_decay": 0.999,
}
SETTINGS: dict[str, Any] = {
    "shape": {"patch_size": 8, "width": 192, "depth": 6, "heads": 4, "mlp_width": 768},
    "epochs": 60,
    "warmup_epochs": 5,
    "better_epochs": 2,
    "recovery": {"epochs_share": 0.15, "learning_rate": 2e-4, "drop_path": 0.0},
    "distillation": {"distill_alpha": 0.5, "distill_temperature": 2.0},
    "recipes": {"baseline": PLAIN, "better": BETTER},
    "validation": 0.1,
    "pairs": 128,
    "reference": 512,
    "keep": {"published": 1 - PUBLISHED["removed"] / PUBLISHED["edges"], "hard": 0.05},
    "acdc": {"share": "published", "pairs": 32, "taus": [1e-8, 1.0], "trials": 16, "within": 2},
    "random_circuits": 3,
    "batches": [1, 64],
    "rounds": 21,
    "seed": 0,
}
SETS: dict[str, Any] = {
    "cifar10": {"image_size": 32, "classes": None},
    "animals": {"image_size": 64, "classes": "animals"},
    "digits": {"image_size": 8, "classes": None},
}
TOY: dict[str, Any] = {
    "pairs": 16,
    "reference": 64,
    "keep": SETTINGS["keep"] | {"hard": 0.2},
    "acdc": SETTINGS["acdc"] | {"pairs": 8, "trials": 8},
    "random_circuits": 2,
    "batches": [1, 64],
    "rounds": 3,
}
TOY_SHAPE = {"patch_size": 2, "width": 32, "depth": 3, "heads": 4, "mlp_width": 64}
TOY_EPOCHS, TOY_BATCH = 8, 32
TESTED = ("random circuits", "evaluation")
DRAWS = 1000
"""Random circuits that are looked at until one holds a path."""


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the results."""
    settings = SETTINGS | (TOY if given.toy else {})
    name = set_of(given, given.set)
    epochs = given.epochs or (TOY_EPOCHS if given.toy else SETTINGS["epochs"])
    settings |= {"set": name, **SETS[name], "epochs": epochs, "limit": given.limit}
    settings["warmup_epochs"] = min(SETTINGS["warmup_epochs"], epochs / 8)
    settings["share_of_schedule"] = epochs / SETTINGS["epochs"]
    if name == "digits":  # a mirrored digit is another one, or none
        small, unlike = {"batch": TOY_BATCH}, {"horizontal_flip": False}
        settings["shape"] = TOY_SHAPE
        settings["recipes"] = {"baseline": PLAIN | small, "better": BETTER | small | unlike}
    return settings


class EdgeRecovery:
    """The experiment's steps, on one study."""

    def __init__(self, study: Study, splits: Splits) -> None:
        self.study, self.settings, self.splits = study, study.settings, splits
        self.seed = self.settings["seed"]
        self.reference = splits.train.images[: self.settings["reference"]].to(study.device)
        self.ablated: Any = {"ablation": "mean", "reference": self.reference}

    def recipe(self, kind: str) -> cv.Recipe:
        """How a dense model is trained."""
        times = self.settings["better_epochs"] if kind == "better" else 1
        return cv.Recipe(
            **self.settings["recipes"][kind],
            epochs=times * self.settings["epochs"],
            warmup_epochs=self.settings["warmup_epochs"],
            seed=self.seed,
        )

    def recovery(self, kind: str) -> cv.Recipe:
        """How a pruned model is trained again: as before, but shorter and more gently."""
        given = dict(self.settings["recovery"])
        epochs = max(1, round(given.pop("epochs_share") * self.settings["epochs"]))
        own = self.settings["recipes"][kind] | given | self.settings["distillation"]
        return cv.Recipe(**own, epochs=epochs, warmup_epochs=epochs / 8, seed=self.seed + 1)

    def dense(self, kind: str) -> cv.ViT:
        """A trained dense model."""
        config = dense_shape(self.study, self.splits.train)
        start = lambda: cv.ViT(config, seed=self.seed)  # noqa: E731
        return self.study.trained(kind, start, self.splits, self.recipe(kind))

    def circuits(self, kind: str, vit: cv.ViT) -> dict[str, Any]:
        """What is left of the edges, compiled; circuits and models are saved as files.

        By name: a share of the edges by EAP, one by ACDC, and all of them, which is the dense model
        as the compiler lowers it.
        """

        def make() -> dict[str, Any]:
            if not all(self.circuit_file(kind, name).exists() for name in self.names):
                for name, circuit in self.found(vit).items():
                    circuit.save(self.circuit_file(kind, name))
            return {name: self.compiled(kind, vit, name) for name in self.names}

        self.study.part(f"circuits of {kind}", "optimize", make)
        for name in self.names:
            circuit_of(self.circuit_file(kind, name), vit)  # refuses those of another model
        return {
            name: load_saved(self.pruned_folder(kind, name)).to(self.study.device)
            for name in self.names
        }

    @property
    def names(self) -> tuple[str, ...]:
        """What is done with the edges."""
        return (*self.settings["keep"], "acdc", "all edges")

    def circuit_file(self, kind: str, name: str) -> Path:
        """Where a circuit is saved."""
        return self.study.folder / "circuits" / f"{kind}_{name.replace(' ', '_')}.json"

    def pruned_folder(self, kind: str, name: str) -> Path:
        """Where its compiled model is saved."""
        return self.study.folder / "models" / f"{kind}_{name.replace(' ', '_')}_pruned"

    @cached_property
    def pairs(self) -> cv.Pairs:
        """Training images, each with one of another class."""
        return cv.Pairs.by_class(self.splits.train, count=self.settings["pairs"], seed=self.seed)

    def found(self, vit: cv.ViT) -> dict[str, cv.Circuit]:
        """The circuits, from the pairs."""
        pairs = self.pairs
        scores = cv.eap(vit, pairs, method="eap-ig-inputs", metric="kl", qkv="joint")
        keep = {name: round(share * len(scores)) for name, share in self.settings["keep"].items()}
        circuits = {name: scores.greedy(count) for name, count in keep.items()}
        wanted = keep[self.settings["acdc"]["share"]]
        circuits["acdc"] = self.acdc_of_size(vit, pairs, wanted)
        return circuits | {"all edges": scores.top(len(scores))}

    def acdc_of_size(self, vit: cv.ViT, pairs: cv.Pairs, wanted: int) -> cv.Circuit:
        """ACDC's circuit whose number of edges is nearest to one, τ being bisected."""
        given = self.settings["acdc"]
        pairs = pairs.subset(slice(0, given["pairs"]))
        low, high = (math.log(tau) for tau in given["taus"])
        best = None
        for _ in range(given["trials"]):
            tau = math.exp((low + high) / 2)
            circuit = cv.acdc(vit, pairs, tau=tau, qkv="joint", metric="kl", **self.ablated)
            if best is None or abs(len(circuit) - wanted) < abs(len(best) - wanted):
                best = circuit
            if abs(len(best) - wanted) <= given["within"]:
                break
            low, high = (math.log(tau), high) if len(circuit) > wanted else (low, math.log(tau))
        assert best is not None
        return best

    def compiled(self, kind: str, vit: cv.ViT, name: str) -> dict[str, Any]:
        """Save a circuit's model; its size, and what it does on validation images."""
        circuit = circuit_of(self.circuit_file(kind, name), vit)
        small = self.small(vit, circuit)
        small.save_pretrained(self.pruned_folder(kind, name))
        validation = self.splits.validation
        held = accuracy(small, validation.images.to(self.study.device), validation.labels)
        blocks = small.plan.blocks
        return {
            "edges": len(circuit),
            "of": cv.edge_graph(vit.config, qkv="joint").number_of_edges(),
            "units": len(circuit.units()),
            "tau": circuit.provenance.tau,
            "layer_norms": sum(len(b.projections) + (b.mlp is not None) for b in blocks) + 1,
            "validation_accuracy": held.top1,
            "validation_loss": held.loss,
        }

    def models(self, kind: str) -> dict[str, Any]:
        """The dense model and all that was made of it, trained now or before."""
        dense = self.dense(kind)
        circuits, recipe = self.circuits(kind, dense), self.recovery(kind)
        found: dict[str, Any] = {"dense": dense, "all edges": circuits["all edges"]}

        def again(name: str, start: Any, teacher: Any = None) -> Any:
            name = f"{kind}_{name}"
            return self.study.trained(
                name, lambda: start, self.splits, recipe, teacher=teacher, stage="optimize"
            )

        found["dense, trained on"] = again("trained_on", dense)
        for share in self.settings["keep"]:
            pruned = circuits[share]
            found[f"{share}: pruned"] = pruned
            found[f"{share}: recovered"] = again(f"{share}_recovered", pruned)
            found[f"{share}: distilled"] = again(f"{share}_distilled", pruned, dense)
            for draw in range(self.settings["random_circuits"]):
                drawn = self.small(dense, self.random_circuit(kind, dense, share, draw))
                trained = again(f"{share}_random_{draw}_recovered", drawn)
                found[f"{share}: random {draw}, recovered"] = trained
        return found | {"acdc: pruned": circuits["acdc"]}

    def evaluated(self, kind: str, models: Mapping[str, Any]) -> dict[str, Any]:
        """What the models do on test images, and how fast."""
        test, device = self.splits.test, self.study.device
        result = cv.evaluate(
            {name: model.to(device) for name, model in models.items()},
            test.images.to(device),
            test.labels,
            class_names=test.class_names,
            baseline="dense",
            batches=self.settings["batches"],
            rounds=self.settings["rounds"],
            seed=self.seed,
        )
        result.save(self.study.folder / "evaluation" / kind)
        return {
            "images": len(test),
            "rows": {row["name"]: row for row in evaluated_rows(result)},
            "pareto": list(result.pareto()),
            "advice": list(result.advice().lines()),
        }

    def random_circuit(self, kind: str, vit: cv.ViT, share: str, draw: int) -> cv.Circuit:
        """A circuit grown as EAP's, of as many edges, by random scores; it is kept in a file."""
        path = self.circuit_file(kind, f"{share}_random_{draw}")
        if not path.exists():
            count = len(circuit_of(self.circuit_file(kind, share), vit))
            seeds = Random(f"{self.seed} {kind} {share} {draw}")
            connected(partial(self.grown, vit, count), seeds).save(path)
        return circuit_of(path, vit)

    def grown(self, vit: cv.ViT, count: int, seed: int) -> cv.Circuit:
        """So many edges, grown from the logits by random scores."""
        return cv.eap(vit, self.pairs, method="random", seed=seed, qkv="joint").greedy(count)

    def random_ones(self, kind: str, dense: cv.ViT) -> dict[str, Any]:
        """Test accuracy of random circuits of as many edges as EAP's; not trained."""
        draws, test = range(self.settings["random_circuits"]), self.splits.test
        images = test.images.to(self.study.device)
        found: dict[str, Any] = {}
        for share in self.settings["keep"]:
            circuits = [self.random_circuit(kind, dense, share, draw) for draw in draws]
            held = [accuracy(self.small(dense, one), images, test.labels) for one in circuits]
            found[share] = [{"top1": one.top1, "loss": one.loss} for one in held]
        return found

    def small(self, vit: cv.ViT, circuit: cv.Circuit) -> cv.CircuitViT:
        """A circuit, compiled."""
        return cv.compile(vit, circuit, level="edge", **self.ablated)


def connected(grow: Callable[[int], cv.Circuit], seeds: Random) -> cv.Circuit:
    """The first circuit in which the images reach the logits.

    They do by heads alone: the logits are read at the class token.

    Raises:
        CircuitError: none of many does.
    """
    for _ in range(DRAWS):
        circuit = grow(seeds.getrandbits(32))
        if any(unit.startswith("a") for unit in circuit.units()):
            return circuit
    raise CircuitError(
        f"none of {DRAWS} random circuits of so few edges leads from the images through a head to the "
        "logits. Keep more edges: raise the shares in `keep` of this file."
    )


def main(given: argparse.Namespace) -> None:
    settings = settings_of(given)
    name = f"{NAME}_animals" if settings["set"] == "animals" else NAME
    study = Study(NAME, settings, folder_of(given, name), stages_of(given))
    work(study, EdgeRecovery(study, images_of(study, given.data, settings["set"])))
    study.save()
    if study.has(*(f"{what} of {kind}" for what in TESTED for kind in KINDS)):
        study.publish(report(study.results), given.results)


def work(study: Study, steps: EdgeRecovery) -> None:
    """The stages that are wanted."""
    dense = {kind: steps.dense(kind) for kind in KINDS}
    if not {"optimize", "evaluate"} & set(study.stages):
        return
    models = {kind: steps.models(kind) for kind in KINDS}
    if "evaluate" not in study.stages:
        return
    for kind in KINDS:
        study.part(
            f"random circuits of {kind}", "evaluate", lambda k=kind: steps.random_ones(k, dense[k])
        )
        study.part(
            f"evaluation of {kind}", "evaluate", lambda k=kind: steps.evaluated(k, models[k])
        )


if __name__ == "__main__":
    parser = options(__doc__, NAME)
    parser.add_argument("--set", choices=["cifar10", "animals"], default="cifar10")
    parser.add_argument("--limit", type=at_least(1), help="images of each part, at most")
    run(main, parser)
