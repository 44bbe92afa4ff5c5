"""Claim: units that go by loss for what they save keep more accuracy than others of the same cost.

Command   python experiments/budgets.py digits cifar10 [--shared ../shared] [--demo runs/demo]
Hardware  1 CPU core
Minutes   15
Expected  experiments/results/budgets.{json,md}; runs/budgets/{digits,cifar10}.html

Nothing is trained after the cut. The CIFAR-10 model is that of `shared/models`, the digits model the
dense one of `make demo`. Removed units write their means over training images (`mean`). Budgets are
shares of the dense model's time at batch 64 by one table of costs (in seconds of the processor, so
that a busy machine matters less), and of its MACs; all methods get the same price list, and fill it
the same way. Units go by

* `ours`: their node effect (KL to the dense model on 64 training images) for what they save, as
  `compile` ranks them;
* `node effects`: the same, whatever they save; `rescored`: as ours, with effects measured anew after
  every few that went (after each on digits: greedy search); `EAP nodes`: `eap(..., level="node")` of
  the cross-entropy on 64 training images, for what they save; `edge sums`: sums of |score| over
  out-edges, as circuitvit ranked them before; `weights`: mean |weight|;
* chance: 15 draws of `random_units`.

`ours` was chosen on validation images, which are apart from all others. Figures are on test images;
the interval is that of the paired difference to the best other of all, random draws included, which
the test images themselves name: it favours the others.
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
from circuitvit.circuit import edges_among
from circuitvit.compiler.ranking import by_worth, node_effects
from circuitvit.controls import filled, random_units
from circuitvit.edge_graph import node_named, shape_of_units, units_of
from circuitvit.files import read_json, write_json, write_text
from circuitvit.html.chart import Series, chart, chart_page
from circuitvit.html.tables import markdown_table
from circuitvit.measure import Cost
from circuitvit.measure.accuracy import evaluating
from circuitvit.measure.cost import vit_macs
from circuitvit.measure.cost_table import call_of
from circuitvit.measure.machine import machine_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "budgets.json"
BUDGETS = {"latency": (0.7, 0.5, 0.35), "MACs": (0.5,)}
METHODS = ("ours", "node effects", "rescored", "EAP nodes", "edge sums", "weights")
COLORS = ("#c0392b", "#e59866", "#8e44ad", "#2471a3", "#17a589", "#7d6608")
IMAGES, REFERENCE, TEST, DRAWS, BATCH, ROUNDS = 64, 512, 2000, 15, 64, 9
EVERY = {"digits": 1, "cifar10": 8}


def loaded(name, shared, demo):
    """The dense model, and images: training ones to choose by, validation and test ones."""
    if name == "digits":
        return cv.ViT.from_pretrained(demo / "dense"), cv.load_splits("digits")
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

    def __init__(self, name, vit, train):
        self.vit, self.every, self.units = vit, EVERY[name], units_of(vit.config)
        self.reference = train.images[:REFERENCE]
        some = slice(REFERENCE, REFERENCE + IMAGES)
        self.pairs = cv.Pairs(clean=train.images[some], labels=train.labels[some])
        self.options = {"ablation": "mean", "reference": self.reference}
        self.effects = cache(lambda units: node_effects(vit, units, **self.options))

    def order(self, method, cost):
        """Units by a method, best first."""
        if method == "ours":
            return by_worth(self.effects(self.units), cost)
        if method == "rescored":
            return self.rescored(cost)
        if method == "EAP nodes":
            return by_worth(self.eap("node"), cost)
        scores = {"node effects": self.node, "edge sums": self.sums, "weights": self.weights}
        found = scores[method]()
        return tuple(sorted(self.units, key=lambda unit: -found[unit]))

    def node(self):
        return self.effects(self.units)

    def eap(self, level):
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

    def rescored(self, cost):
        """Units by effect for what they save, effects measured anew after every few that went."""
        left, gone = self.units, ()
        while left:
            worst = by_worth(self.effects(left), cost)[::-1][: self.every]
            gone = (*reversed(worst), *gone)
            left = tuple(unit for unit in left if unit not in worst)
        return gone


def right(vit, choice, units, part):
    """Which images of a part the model with some units gets right, as hexadecimal digits."""
    circuit = cv.Circuit(vit.config, edges_among(vit.config, units, "split"))
    model = cv.compile(vit, circuit, **choice.options)
    with evaluating(model), torch.inference_mode():
        logits = torch.cat([model(images) for images in part.images[:TEST].split(250)])
    hits = logits.argmax(dim=1) == part.labels[:TEST]
    return {
        "units": list(units), "images": len(hits), "top1": float(hits.float().mean()),
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


def measured(name, shared, demo, body, save):
    """Everything of one model; what is in the body already isn't made again."""
    vit, splits = loaded(name, shared, demo)
    choice, rows = Choice(name, vit, splits.train), body.setdefault("rows", {})
    if "costs" not in body:
        body["costs"] = [[r.op, list(r.shape), r.median_ms] for r in cost_table(vit.config).rows]
    table = tuple(Cost(op, tuple(size), ms) for op, size, ms in body["costs"])
    costs = cv.Costs(vit.config, BATCH, table)
    prices = {"latency": cache(costs.predict), "MACs": cache(vit_macs)}
    wanted = [(kind, share) for kind in BUDGETS for share in BUDGETS[kind]]
    drawn = [f"random {draw}" for draw in range(DRAWS)]

    def cost(kind, units):
        return float(prices[kind](shape_of_units(vit.config, units, constants=True)))

    def sets(kind, share, method):
        """The units, and those of all random draws by `random`."""
        most = share * prices[kind](vit.config)
        if method == "random":
            return random_units(vit.config, prices[kind], most, count=DRAWS, constants=True)
        order = choice.order(method, partial(cost, kind))
        return (filled(vit.config, order, partial(cost, kind), most),)

    def note(key, kind, units, part):
        if key not in rows:
            whole = prices[kind](vit.config)
            shares = {f"{k} share": cost(k, units) / prices[k](vit.config) for k in prices}
            assert cost(kind, units) <= whole
            rows[key] = shares | right(vit, choice, units, part)
            save()
            print(f"{name}: {key} {rows[key]['top1']:z.4f}", flush=True)

    for part, at in (("validation", splits.validation), ("test", splits.test)):
        note(f"{part} dense", "MACs", choice.units, at)
    for part, method in (
        *(("test", method) for method in ("ours", *METHODS[3:], "node effects", "random")),
        *(("validation", method) for method in ("ours", "node effects", "EAP nodes", "edge sums")),
        ("validation", "rescored"), ("test", "rescored"),
    ):  # fmt: skip
        for kind, share in wanted:
            names = drawn if method == "random" else [method]
            keys = [f"{part} {share:zg} {kind} {one}" for one in names]
            if not all(key in rows for key in keys):
                for key, units in zip(keys, sets(kind, share, method), strict=False):
                    note(key, kind, units, getattr(splits, part))
    return body


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
        for kind, share in [(kind, share) for kind in BUDGETS for share in BUDGETS[kind]]:
            found = at(rows, part, kind, share)
            if "ours" not in found:
                continue
            drawn = [row["top1"] for key, row in found.items() if key.startswith("random")]
            spread = f"{median(drawn):z.1%} ({max(drawn):z.1%})" if drawn else "–"
            others = {key: row for key, row in found.items() if key != "ours"}
            best = max(others, key=lambda key: others[key]["top1"]) if others else None
            told = "–" if best is None else verdict(best, *difference(found["ours"], others[best]))
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


def figure(name: str, rows: dict) -> object:
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
    demo: Path = ROOT / "runs" / "demo",
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
        measured(name, shared, demo, models.setdefault(name, {}), lambda: write_json(out, body))
    report = "\n".join(tables(name, found["rows"]) for name, found in models.items())
    write_text(out.with_suffix(".md"), f"# Budgets\n\n{report}")
    for name, found in models.items():
        chart_page(ROOT / "runs" / "budgets" / f"{name}.html", figure(name, found["rows"]))
    typer.echo(report)


if __name__ == "__main__":
    typer.run(main)
