"""Claim: what a compiled circuit saves in multiply-accumulates, it saves in time.

Command   python experiments/bench_latency.py cifar deit_s vit_b [--shared ../shared]
Hardware  2 CPU cores, 24 GiB
Minutes   cifar 13, deit_s 3, vit_b 8
Expected  experiments/results/bench_latency.json; experiments/results/README.md's table comes from
          it. At batch 64, unit circuits realise at least as much of the MACs that they save as
          timm's own blocks cut to the same shapes by hand

Dense, compiled and plain models are timed in turns in one process (`circuitvit.measure.latency`);
`null` is the dense model against itself. *Realised* is time saved ÷ MACs saved. `plain` are timm's
own blocks cut to the same shapes by hand: what can be had at all. `timm` is timm's own model.
`cifar` is the trained model of `shared/models`, units chosen by `target_macs`; the
others have random weights and random scores. Edge circuits are EAP's (greedy), under `zero`.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import copy
import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

import circuitvit as cv

cv.ViT  # noqa: B018 - the first touch of a torch-backed name makes timm importable

from circuitvit.files import read_json, write_json
from circuitvit.measure import latency, macs, parameters

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
from bench_discovery import loaded

RESULTS = ROOT / "experiments" / "results" / "bench_latency.json"
CUTS = (0.3, 0.5, 0.7)
EDGES = {"cifar": (0.01, 0.03, 0.1, 1.0), "deit_s": (1.0,), "vit_b": (1.0,)}
BATCHES = {"cifar": (1, 8, 64), "deit_s": (1, 8), "vit_b": (1, 8)}
SHOWN = {
    "cifar": ("unit -30%", "unit -50%", "unit -70%", "edge 1%", "edge 10%", "edge 100%"),
    "vit_b": ("unit -50%",),
}
"""What the table of experiments/results/README.md shows."""
ROUNDS = {"cifar": 41, "deit_s": 15, "vit_b": 9}


class PlainBlock(nn.Module):
    """A block of timm's modules, without the sub-layers that are gone."""

    def __init__(self, block, *, attends, thinks):
        super().__init__()
        self.norm1, self.attn = (block.norm1, block.attn) if attends else (None, None)
        self.norm2, self.mlp = (block.norm2, block.mlp) if thinks else (None, None)

    def forward(self, x):
        """The stream after this block."""
        if self.attn is not None:
            x = x + self.attn(self.norm1(x))
        return x if self.mlp is None else x + self.mlp(self.norm2(x))


def plain(module, config):
    """A timm model with its blocks cut to the shapes of a config; weights don't matter here."""
    module = copy.deepcopy(module)
    for index, block in enumerate(module.blocks):
        heads, width, neurons = (
            each[index] for each in (config.heads, config.head_width, config.mlp_width)
        )
        if heads:
            block.attn.num_heads, block.attn.attn_dim = heads, heads * width
            block.attn.qkv = nn.Linear(config.width, 3 * heads * width)
            block.attn.proj = nn.Linear(heads * width, config.width)
        if neurons:
            block.mlp.fc1 = nn.Linear(config.width, neurons)
            block.mlp.fc2 = nn.Linear(neurons, config.width)
        module.blocks[index] = PlainBlock(block, attends=heads > 0, thinks=neurons > 0)
    return module.eval()


def image_shape(vit):
    return vit.config.channels, vit.config.image_size, vit.config.image_size


def models_of(name, module, vit, pairs):
    """Everything that is timed, the dense model first."""
    scores = cv.eap(vit, pairs, method="eap" if name == "cifar" else "random", seed=0)
    everything = scores.top(len(scores))
    models = {"dense": vit, "timm": module, "unit, full circuit": cv.compile(vit, everything)}
    for cut in CUTS:
        small = cv.compile(vit, everything, target_macs=1 - cut)
        models |= {f"unit -{cut:z.0%}": small, f"plain -{cut:z.0%}": plain(module, small.config)}
    for share in EDGES[name]:
        circuit = everything if share == 1 else scores.greedy(int(share * len(scores)))
        models[f"edge {share:z.0%}"] = cv.compile(vit, circuit, level="edge")
    return models


def row(model, base, shape, timed):
    """One model's figures against the dense one's."""
    saved = 1 - macs(model, shape) / macs(base, shape)
    found = {
        "parameters": parameters(model),
        "macs": macs(model, shape),
        "macs_saved": round(saved, 4),
    }
    for batch, each in timed.items():
        ratio = [each.ratio, each.ratio_low, each.ratio_high]
        entry = {"ms": round(each.median_ms, 3), "ratio": [round(value, 4) for value in ratio]}
        if saved > 0.01:
            low, high = (1 - each.ratio_high) / saved, (1 - each.ratio_low) / saved
            entry["realised"] = [round(v, 3) for v in ((1 - each.ratio) / saved, low, high)]
        found[f"batch {batch}"] = entry
    return found


def measured(name, shared, seed):
    module, pairs = loaded(name, shared)
    vit = cv.load_vit(module)
    models, shape = models_of(name, module, vit, pairs), image_shape(vit)
    timed = {
        batch: latency(
            models, pairs.clean, baseline="dense", batch=batch, rounds=ROUNDS[name], seed=seed
        )
        for batch in BATCHES[name]
    }
    small = {key: models[key] for key in models if key.startswith("unit -")}
    pairs_of = {key: (models[key.replace("unit", "plain")], each) for key, each in small.items()}
    pairs_of["unit, full circuit"] = module, models["unit, full circuit"]
    rows = {
        key: row(models.get(key, vit), vit, shape, {b: found[key] for b, found in timed.items()})
        for key in [*models, "null"]
    }
    for key, (plain_one, ours) in pairs_of.items():
        rows[key] |= against_plain(plain_one, ours, vit, pairs, BATCHES[name], ROUNDS[name], seed)
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}


def against_plain(plain_one, ours, vit, pairs, batches, rounds, seed):
    """Our model's time ÷ that of plain modules of the same shapes, in turns; realised likewise."""
    saved, found = 1 - macs(ours, image_shape(vit)) / macs(vit, image_shape(vit)), {}
    for batch in batches:
        timed = latency(
            {"plain": plain_one, "ours": ours, "dense": vit}, pairs.clean, baseline="plain",
            batch=batch, rounds=rounds, seed=seed,
        )  # fmt: skip
        ours_ms, dense_ms, plain_ms = (timed[key].median_ms for key in ("ours", "dense", "plain"))
        each = timed["ours"]
        ratio = [each.ratio, each.ratio_low, each.ratio_high]
        found[f"time over plain, batch {batch}"] = [round(value, 4) for value in ratio]
        if saved > 0.01:
            share = (1 - ours_ms / dense_ms) / (1 - plain_ms / dense_ms)
            found[f"realised over plain, batch {batch}"] = round(share, 4)
    return found


def table(body):
    """The rows of README's table; `plain` is the column of the same shapes in plain modules."""
    lines = [
        "| ViT | model | params | MACs | latency, batch 1 | latency, batch 64 (8) | realised | plain |",
        "| --- " * 8 + "|",
    ]
    for name, found in body.items():
        for key, figures in found["rows"].items() if isinstance(found, dict) else ():
            if key in SHOWN.get(name, ()):
                plain = found["rows"].get(key.replace("unit", "plain"), figures)
                lines.append(_table_row(name, key, figures, found["rows"]["dense"], plain))
    return "\n".join(lines)


def _table_row(name, key, figures, dense, plain):
    last = f"batch {max(BATCHES[name])}"
    cells = [name, key]
    cells += [f"{figures[k] / dense[k] - 1:+z.0%}" for k in ("parameters", "macs")]
    cells += ["{:z.2f} ({:z.2f}–{:z.2f})".format(*figures[b]["ratio"]) for b in ("batch 1", last)]
    realised = figures[last].get("realised")
    cells.append("" if realised is None else "{:z.0%} ({:z.0%}–{:z.0%})".format(*realised))
    cells.append("" if plain is figures else f"{plain[last]['realised'][0]:z.0%}")
    return "| " + " | ".join(cells) + " |"


def main(
    names: Annotated[list[str], typer.Argument()],
    shared: Path = ROOT.parent / "shared",
    threads: int = 2,
    seed: int = 0,
):
    """Measure some of cifar, deit_s and vit_b."""
    torch.set_num_threads(threads)
    for name in names:
        found = measured(name, shared, seed)
        typer.echo(json.dumps(found["rows"], indent=1))
        body = read_json(RESULTS, what="results") if RESULTS.exists() else {}
        body = {"command": "python experiments/bench_latency.py cifar deit_s vit_b", **body}
        write_json(RESULTS, {**body, name: found})
    typer.echo(table(read_json(RESULTS, what="results")))


if __name__ == "__main__":
    typer.run(main)
