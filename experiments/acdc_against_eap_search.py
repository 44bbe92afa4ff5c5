"""The searches of `acdc_against_eap.py`: what ACDC and EAP leave of a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kept_parts import (
    Ablated,
    Found,
    Kept,
    MaskedRuns,
    acdc_over,
    blocks_of,
    heads_of,
    neuron_groups,
)
from study import Study, check_origin
from torch import Tensor

import circuitvit as cv
from circuitvit.compiler.passes.neurons import kept_neurons
from circuitvit.discover.task import discovery_task
from circuitvit.files import read_json, write_json
from circuitvit.graph.circuit import edges_among
from circuitvit.intervene.task import PatchingTask

LEVELS = {"blocks": "block", "heads": "node", "neurons": "neuron"}
"""The levels of circuitvit's scores; of nodes, heads alone are looked at."""


@dataclass(frozen=True)
class Wanted:
    """One pruning: a method at a level with its setting."""

    method: str
    level: str
    knob: str
    value: float

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.method}_{self.level}_{self.knob}_{self.value:zg}"

    @classmethod
    def all_of(cls, settings: Mapping[str, Any]) -> list["Wanted"]:
        """All prunings, in the order of the table."""
        knobs = {"acdc": ("tau", settings["taus"]), "eap": ("keep", settings["keep_ratios"])}
        return [
            cls(method, level, knob, value)
            for level in settings["levels"]
            for method, (knob, values) in knobs.items()
            if settings["method"] in (method, "both")
            for value in values
        ]


class Search:
    """Both methods on one trained model; what they find is in `circuits/` and `scores/`.

    Attributes:
        study: whose settings and folder they use.
        vit: the dense model, where it computes.
        pairs: training images, each with one of another class.
        reference: training images over which the means of removed parts are taken.
        ablated: what removed parts give.
    """

    def __init__(self, study: Study, vit: cv.ViT, images: cv.ImageSet) -> None:
        self.study, self.settings, self.vit = study, study.settings, vit
        count = self.settings["analysis_batches"] * self.settings["analysis_batch"]
        self.pairs = cv.Pairs.by_class(images, count=count, seed=self.settings["seed"])
        self.reference = images.images[: self.settings["reference"]].to(vit.positions.device)
        self.ablated = Ablated.of(vit, self.settings["ablation"], self.reference)
        self._measured: dict[Kept, float] = {}

    @cached_property
    def task(self) -> PatchingTask:
        """What ACDC is asked."""
        return discovery_task(
            self.vit, self.pairs, metric="kl", level="node",
            ablation=self.settings["ablation"], reference=self.reference,
        )  # fmt: skip

    @cached_property
    def origin(self) -> dict[str, str]:
        """The fingerprints of the model and of the pairs, which stand in every file."""
        return {"model": self.vit.fingerprint(), "data": self.pairs.fingerprint()}

    @cached_property
    def runs(self) -> MaskedRuns:
        """Runs of the pairs' clean images without some parts."""
        return MaskedRuns(self.vit, self.task.pairs.clean, self.ablated)

    def divergence(self, kept: Kept) -> float:
        """Mean KL from the dense model, over the pairs; measured once, whatever τ asks for it."""
        if kept not in self._measured:
            logits: Tensor = self.runs.logits(kept)
            self._measured[kept] = self.task.mean_loss(logits, self.runs.full)
        return self._measured[kept]

    def score(self, level: str) -> dict[str, Any]:
        """Have EAP score blocks, heads and MLPs, or neurons; they go into a file."""
        how = self.settings["eap"][self.settings["loss"]]
        reference = self.reference if how["ablation"] == "mean" else None
        found = cv.eap(self.vit, self.task.pairs, level=LEVELS[level], reference=reference, **how)
        write_json(self.file_of_scores(level), dict(found))
        return {"level": LEVELS[level], "scores": len(found), "pairs": len(self.pairs), **how}

    def file_of_scores(self, level: str) -> Path:
        """Where they are."""
        return self.study.folder / "scores" / f"{level}.json"

    def scores(self, level: str) -> cv.EdgeScores:
        """What `score` found."""
        how, of = self.settings["eap"][self.settings["loss"]], LEVELS[level]
        origin = self.task.provenance(method=how["method"], level=of)
        origin = replace(origin, ablation=how["ablation"], metric=how["metric"])
        values = read_json(self.file_of_scores(level), what="scores")
        return cv.EdgeScores(self.vit.config, values, qkv="split", provenance=origin)

    def acdc(self, wanted: Wanted) -> Found:
        """What ACDC leaves at one τ."""
        config = self.vit.config
        if wanted.level == "blocks":
            parts = blocks_of(config)
        elif wanted.level == "heads":
            parts = heads_of(config)
        else:
            parts = neuron_groups(config, self.scores("neurons"), self.settings["neuron_group"])
        return acdc_over(config, parts, self.divergence, wanted.value)

    def eap(self, wanted: Wanted) -> Found:
        """The share of blocks, heads or neurons that scores most by size."""
        config, scores = self.vit.config, self.scores(wanted.level)
        kept = Kept.whole(config)
        if wanted.level == "neurons":
            stay = kept_neurons(scores, kept.units(), wanted.value, self.settings["neuron_group"])
            neurons = tuple(tuple(stay.get(b, every)) for b, every in enumerate(kept.neurons))
            kept = replace(kept, neurons=neurons)
        else:
            parts = blocks_of(config) if wanted.level == "blocks" else heads_of(config)
            ranked = sorted(parts, key=lambda part: -abs(scores[part.name]))
            for part in ranked[round(wanted.value * len(parts)) :]:
                kept = kept.without(heads=part.heads, neurons=part.neurons)
        return Found(kept, self.divergence(kept), 0)

    def found(self, wanted: Wanted) -> Found:
        """What stays, searched for now or read from its file.

        That of blocks and heads is a circuit, which `circuitvit` draws and compiles.

        Raises:
            CircuitError: the file is of another model, or of other images.
        """
        path = self.study.folder / "circuits" / f"{wanted.name}.json"
        if path.exists() and wanted.level == "neurons":
            noted = read_json(path, what="neurons that stay")
            check_origin(path, noted, self.origin)
            return Found.from_dict(noted)
        if path.exists():
            circuit = cv.Circuit.load(path)
            check_origin(path, asdict(circuit.provenance), self.origin)
            origin, kept = circuit.provenance, Kept.of_units(self.vit.config, circuit.units())
            return Found(kept, origin.divergence or 0.0, origin.evaluations or 0)
        found = (self.acdc if wanted.method == "acdc" else self.eap)(wanted)
        if wanted.level == "neurons":
            write_json(path, {**asdict(wanted), **self.origin, **found.as_dict()})
        else:
            self.circuit(wanted, found).save(path)
        return found

    def circuit(self, wanted: Wanted, found: Found) -> cv.Circuit:
        """All edges among the heads and MLPs that stay, and where they come from."""
        how = self.settings["eap"][self.settings["loss"]]
        method = "acdc" if wanted.method == "acdc" else how["method"]
        origin = self.task.provenance(
            method=method,
            level=LEVELS[wanted.level],
            tau=wanted.value if method == "acdc" else None,
            evaluations=found.trials,
            divergence=found.divergence,
            selection=f"of {wanted.level}"
            + ("" if method == "acdc" else f", the best {wanted.value:zg} by |score|"),
        )
        if method != "acdc":
            origin = replace(origin, ablation=how["ablation"], metric=how["metric"])
        edges = edges_among(self.vit.config, found.kept.units(), "split")
        return cv.Circuit(self.vit.config, edges, provenance=origin)
