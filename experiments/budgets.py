"""Claim: units that go by loss for what they save keep more accuracy than others of the same cost.

Command   python experiments/budgets.py digits cifar10 [--shared ../shared]
Hardware  1 CPU core
Minutes   15
Expected  experiments/results/budgets.{json,md}, budgets_{digits,cifar10}.png

Nothing is trained after the cut. The CIFAR-10 model is that of `shared/models`, the digits model is
trained as `make demo` does, but with another seed, as that one's test images were looked at while
`ours` was chosen. Removed units write their means over training images (`mean`). Budgets are
shares of the dense model's time at batch 64 by one table of costs (in seconds of the processor, so
that a busy machine matters less), and of its MACs; all methods get the same price list, and fill it
the same way. Units go by

* `ours`: what `compile` does: of `one scan` and `quarters` the one whose model is nearer to the
  dense one (KL on 64 training images);
* `one scan`: their node effect (the same KL) for what they save, measured once; `quarters`: measured
  anew after each quarter of the units; `per unit`: once, whatever they save; `greedy` (on
  digits): measured anew after each unit; `EAP nodes`: `eap(..., level="node")` of the cross-entropy
  on 64 training images, for what they save; `edge sums`: sums of |score| over out-edges, as
  circuitvit ranked them before; `weights`: mean |weight|;
* chance: 15 draws of `random_units`.

`ours` was chosen on validation images, which are apart from all others. Figures are on test images;
the interval is that of the paired difference to the best of those that chose other units, random
draws included, which the test images themselves name: it favours the others. Those that chose the
very same units tie, and are named.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from cifar10_gallery import SEEN

import circuitvit as cv
from circuitvit.charts.chart import AnyFigure, Series, chart
from circuitvit.charts.tables import markdown_table
from circuitvit.compiler.ranking import (
    by_measured_worth,
    by_worth,
    effects_task,
    node_effects,
    ranked_units,
)
from circuitvit.demo import SHAPE
from circuitvit.files import read_json, write_json, write_text
from circuitvit.graph.controls import random_units, units_within
from circuitvit.graph.edge_graph import edges_among, node_named, shape_of_units, units_of
from circuitvit.measure import Cost
from circuitvit.measure.models.accuracy import evaluating
from circuitvit.measure.models.cost import call_of, vit_macs
from circuitvit.measure.models.latency import machine_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "budgets.json"
BUDGETS = {"latency": (0.7, 0.5, 0.35), "MACs": (0.5,)}
DIGITS_SEED = 1
WANTED = [(kind, share) for kind, shares in BUDGETS.items() for share in shares]
METHODS = (
    "ours",
    "quarters",
    "one scan",
    "per unit",
    "greedy",
    "EAP nodes",
    "edge sums",
    "weights",
)
COLORS = ("#c0392b", "#f1948a", "#e59866", "#f4d03f", "#8e44ad", "#2471a3", "#17a589", "#7d6608")
IMAGES, REFERENCE, TEST, DRAWS, BATCH, ROUNDS = 64, 512, 2000, 15, 64, 9


def loaded(name, shared, folder):
    """The dense model, and images: training ones to choose by, validation and test ones."""
    if name == "digits":
        splits = cv.load_splits("digits", seed=DIGITS_SEED)
        if not folder.exists():
            recipe = cv.Recipe(epochs=100, seed=DIGITS_SEED)
            fresh = cv.ViT(SHAPE, seed=DIGITS_SEED)
            cv.train(fresh, splits.train, splits.validation, recipe).vit.save_pretrained(folder)
        return cv.ViT.from_pretrained(folder), splits
    weights = shared / "models" / "cifar10_timm_vit.safetensors"
    vit = cv.load_vit(weights, heads=8, preprocessing=SEEN)
    return vit, cv.load_splits(str(shared / "data" / "cifar10_*.parquet"), model=vit)


def cost_table(config):
    """The processor's time of each part at batch 64, median over interleaved rounds."""
    most = max(config.heads)
    parts = [("embed", ()), ("addition", ()), ("read_out", ()), ("mlp", (max(config.mlp_width),))]
    parts += [("attention", (heads, config.head_width[0])) for heads in range(1, most + 1)]
    calls = [call_of(config, part, BATCH, torch.device("cpu"), torch.float32) for part in parts]
    seconds = np.zeros((ROUNDS + 1, len(parts)))
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):  # the first is to warm up
            for place, call in enumerate(calls):
                start = time.process_time()
                call()
                seconds[turn, place] = time.process_time() - start
    medians = 1e3 * np.median(seconds[1:], axis=0)
    rows = tuple(Cost(op, size, float(ms)) for (op, size), ms in zip(parts, medians, strict=True))
    return cv.Costs(config, BATCH, rows, rounds=ROUNDS)


class Choice:
    """What a model's units are ranked by, each made once, when it is asked for."""

    def __init__(self, vit, train):
        self.vit, self.units = vit, units_of(vit.config)
        self.reference = train.images[:REFERENCE]
        some = slice(REFERENCE, REFERENCE + IMAGES)
        self.pairs = cv.Pairs(clean=train.images[some], labels=train.labels[some])
        self.options = {"ablation": "mean", "reference": self.reference}
        self.everything = cv.Circuit.full(vit.config)
        problem = effects_task(vit, "mean", self.reference)
        self.effects = cache(lambda units: node_effects(problem, units))

    def order(self, method, cost, most):
        """Units by a method, best first."""
        if method == "ours":
            return ranked_units(self.vit, self.everything, cost, most, **self.options)
        if method == "quarters":
            return by_measured_worth(self.units, self.effects, cost, most)
        if method == "one scan":
            return by_worth(self.effects(self.units), cost)
        if method == "greedy":
            return self.greedy(cost)
        if method == "EAP nodes":
            return by_worth(self.eap("node"), cost)
        scores = {"edge sums": self.sums, "weights": self.weights}
        found = scores[method]() if method in scores else self.effects(self.units)
        return tuple(sorted(self.units, key=lambda unit: -found[unit]))

    def eap(self, level):
        """EAP's scores of the cross-entropy."""
        scores = cv.eap(self.vit, self.pairs, metric="cross_entropy", level=level, **self.options)
        return {name: scores[name] for name in (self.units if level == "node" else scores)}

    def sums(self):
        """Sums of |score| over out-edges: early units have more of them."""
        total = dict.fromkeys(self.units, 0.0)
        for edge, score in self.eap("edge").items():
            writer = edge.split("->")[0]
            if writer in total:
                total[writer] += abs(score)
        return total

    def weights(self):
        """The mean size of each unit's weights, biases apart."""
        found = {}
        for unit in self.units:
            node = node_named(unit)
            block = self.vit.blocks[node.block]
            if node.head is None:
                parts = [block.mlp.fc1.weight, block.mlp.fc2.weight]
            else:
                parts = [block.attention.projection(part)[0][node.head] for part in "qkv"]
                parts.append(block.attention.output_weight()[node.head])
            found[unit] = float(torch.cat([part.detach().flatten() for part in parts]).abs().mean())
        return found

    def greedy(self, cost):
        """Units by effect for what they save, effects measured anew after each that goes."""
        left, gone = self.units, ()
        while left:
            worst = by_worth(self.effects(left), cost)[-1]
            left, gone = tuple(unit for unit in left if unit != worst), (worst, *gone)
        return gone


def right(vit, choice, units, part):
    """Which images of a part the model with some units gets right, as hexadecimal digits."""
    circuit = cv.Circuit(vit.config, edges_among(vit.config, units, "split"))
    model = cv.compile(vit, circuit, **choice.options)
    with evaluating(model), torch.inference_mode():
        logits = torch.cat([model(images) for images in part.images[:TEST].split(250)])
    hits = logits.argmax(dim=1) == part.labels[:TEST]
    return {
        "units": " ".join(units), "images": len(hits), "top1": float(hits.float().mean()),
        "right": np.packbits(hits.numpy()).tobytes().hex(),
    }  # fmt: skip


def hits_of(row):
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))
    return bits[: row["images"]].astype(float)


def difference(one, other, seed=0):
    """The paired difference of accuracy, and its 95% bootstrap interval over images."""
    paired = hits_of(one) - hits_of(other)
    draws = np.random.default_rng(seed).integers(len(paired), size=(2000, len(paired)))
    low, high = np.percentile(paired[draws].mean(axis=1), [2.5, 97.5])
    return float(paired.mean()), float(low), float(high)


class Measured:
    """One model's figures; what its body of results has already isn't made again."""

    def __init__(self, name, vit, splits, body, save):
        self.name, self.vit, self.splits, self.save = name, vit, splits, save
        self.choice, self.rows = Choice(vit, splits.train), body.setdefault("rows", {})
        if "costs" not in body:
            parts = cost_table(vit.config).rows
            body["costs"] = {
                " ".join(map(str, (part.op, *part.shape))): part.median_ms for part in parts
            }
        named = ((key.split(" "), ms) for key, ms in body["costs"].items())
        table = tuple(Cost(op, tuple(map(int, size)), ms) for (op, *size), ms in named)
        costs = cv.Costs(vit.config, BATCH, table)
        self.prices = {"latency": cache(costs.predict), "MACs": cache(vit_macs)}

    def cost(self, kind, units):
        """What some units cost."""
        shape = shape_of_units(self.vit.config, units, constants=True)
        return float(self.prices[kind](shape))

    def note(self, key, units, part):
        """Measure a set of units on test or validation images, and save."""
        if key not in self.rows:
            dense, told = self.vit.config, " ".join(units)
            shares = {
                f"{k} share": self.cost(k, units) / price(dense) for k, price in self.prices.items()
            }
            same = [
                row for known, row in self.rows.items()
                if known.startswith(part) and row["units"] == told
            ]  # fmt: skip
            found = (
                same[0] if same else right(self.vit, self.choice, units, getattr(self.splits, part))
            )
            self.rows[key] = found | shares
            self.save()
            print(f"{self.name}: {key} {found['top1']:z.4f}", flush=True)

    def method(self, part, method):
        """Every budget of a method, or of all random draws."""
        for kind, share in WANTED:
            most = share * self.prices[kind](self.vit.config)
            cost, names = partial(self.cost, kind), [method]
            if method == "random":
                names = [f"random {draw}" for draw in range(DRAWS)]
            keys = [f"{part} {share:zg} {kind} {name}" for name in names]
            if all(key in self.rows for key in keys):
                continue
            if method == "random":
                price = self.prices[kind]
                sets = random_units(self.vit.config, price, most, count=DRAWS, constants=True)
            else:
                order = self.choice.order(method, cost, most)
                sets = [units_within(self.vit.config, order, cost, most)]
            for key, units in zip(keys, sets, strict=False):
                self.note(key, units, part)

    def everything(self):
        """The dense model, what is compared on test images, and what validation images chose by."""
        for part in ("test", "validation"):
            self.note(f"{part} dense", self.choice.units, part)
        for method in (
            "ours",
            "quarters",
            "EAP nodes",
            "edge sums",
            "per unit",
            "weights",
            "one scan",
            "random",
        ):
            self.method("test", method)
        tried = ("ours", "quarters", "one scan", "per unit", "EAP nodes", "edge sums")
        for method in (*tried, *(["greedy"] if self.name == "digits" else [])):
            self.method("validation", method)


def at(rows: dict, part: str, kind: str, share: float) -> dict:
    """The rows of a budget, by method."""
    start = f"{part} {share:zg} {kind} "
    return {key.removeprefix(start): row for key, row in rows.items() if key.startswith(start)}


def tables(name: str, rows: dict) -> str:
    """Accuracy on test images by budget and method, and what validation images chose by."""
    lines = [f"## {name}", ""]
    for part in ("test", "validation"):
        header = ["budget", *METHODS, "random: median (best)", "ours − best other"]
        body = [header]
        for kind, share in WANTED:
            found = at(rows, part, kind, share)
            if "ours" not in found:
                continue
            drawn = [row["top1"] for key, row in found.items() if key.startswith("random")]
            spread = f"{median(drawn):z.1%} ({max(drawn):z.1%})" if drawn else "–"
            own = found["ours"]
            same = [key for key, row in found.items() if row["units"] == own["units"]]
            others = {key: row for key, row in found.items() if key not in same}
            best = max(others, key=lambda key: others[key]["top1"]) if others else None
            told = "–" if best is None else verdict(best, *difference(own, others[best]))
            same.remove("ours")
            told += f" (same units: {', '.join(same)})" if same else ""
            tops = [f"{found[m]['top1']:z.1%}" if m in found else "–" for m in METHODS]
            body.append([f"{share:zg} of the {kind}", *tops, spread, told])
        dense = rows[f"{part} dense"]
        lines += [f"{part}: {dense['images']:,} images, dense {dense['top1']:z.1%}", ""]
        lines += [markdown_table(body), ""]
    return "\n".join(lines)


def verdict(best: str, change: float, low: float, high: float) -> str:
    """The difference in points, and whether it is one."""
    told = "wins" if low > 0 else "loses" if high < 0 else "tie"
    return f"{100 * change:+z.1f} ({100 * low:+z.1f} to {100 * high:+z.1f}) to {best}: {told}"


def figure(name: str, rows: dict) -> AnyFigure:
    """Accuracy over the share of the time that is left, on test images."""
    dense, drawn = rows["test dense"], []
    places = [at(rows, "test", "latency", share) for share in BUDGETS["latency"]]
    for found in places:
        drawn += [row for key, row in found.items() if key.startswith("random")]
    series = [
        Series(
            "random draws", [r["latency share"] for r in drawn], [r["top1"] for r in drawn],
            color="#b2babb", mark="dots",
        )
    ]  # fmt: skip
    for method, color in reversed(tuple(zip(METHODS, COLORS, strict=True))):
        points: Sequence[dict] = [found[method] for found in places if method in found]
        if points:
            points = [dense, *points]
            shares = [row["latency share"] for row in points]
            series.append(Series(method, shares, [row["top1"] for row in points], color=color))
    return chart(
        series,
        title=f"{name}: accuracy of units chosen within a budget, without training",
        subtitle=f"{dense['images']:,} test images; removed units write their mean",
        x_title="share of the dense model's time at batch 64, by one table of costs",
        y_title="top-1",
    )


def main(
    names: Annotated[list[str], typer.Argument()],
    shared: Path = ROOT.parent / "shared",
    digits: Path = ROOT / "runs" / "budgets" / "digits",
    out: Path = RESULTS,
    threads: int = 1,
):
    """Measure some of digits and cifar10; what is there already isn't made again."""
    torch.set_num_threads(threads)
    body = read_json(out, what="results") if out.exists() else {}
    body |= {
        "command": "python experiments/budgets.py digits cifar10",
        "machine": machine_of(torch.device("cpu")),
    }
    models = body.setdefault("models", {})
    for name in names:
        vit, splits = loaded(name, shared, digits)
        save = partial(write_json, out, body)
        Measured(name, vit, splits, models.setdefault(name, {}), save).everything()
    report = "\n".join(tables(name, found["rows"]) for name, found in models.items())
    pictures = "\n\n".join(f"![{name}]({out.stem}_{name}.png)" for name in models)
    write_text(out.with_suffix(".md"), f"# Budgets\n\n{report}\n\n{pictures}\n")
    for name, found in models.items():
        picture = figure(name, found["rows"])
        picture.save(out.with_name(f"{out.stem}_{name}.png"), width=1100, height=620)
    typer.echo(report)


if __name__ == "__main__":
    typer.run(main)
