"""The long grids of `make exhaustive`; their counts are committed under experiments/results/."""

import time
from pathlib import Path

import oracles
import pytest
import torch
from random_models import SHAPES, TINY, random_images, random_pairs, random_vit, shape
from thresholds import SPEEDUPS, is_telling, share_kept, telling_circuits

import circuitvit as cv
from circuitvit.files import write_json

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
ABLATIONS = ("patch", "zero", "mean")
MANY_HEADS = cv.ViTConfig(**TINY, heads=(2, 5, 1), head_width=(4, 2, 4), mlp_width=(6, 0, 4))
"""More heads in a block than `Followers` takes together."""
MODELS = [(name, shape(name), seed) for name in SHAPES for seed in range(100, 108)]
MODELS += [("many heads", MANY_HEADS, seed) for seed in range(100, 104)]


def double(vit, pairs):
    """The same weights and images in double precision."""
    twin = cv.ViT(vit.config).double()
    twin.load_state_dict(vit.state_dict())
    return twin.eval(), cv.Pairs(clean=pairs.clean.double(), corrupt=pairs.corrupt.double())


def compared(name, config, seed, ablation, qkv, settings):
    """One row of the grid: five τ, the oracle's circuit and those of all settings."""
    vit = random_vit(config, seed=seed)
    pairs, reference = random_pairs(vit, 3, seed), random_images(vit, 4, seed=seed)
    wanted = {"ablation": ablation, "qkv": qkv, "reference": reference}
    identical, kept, ties = dict.fromkeys(["default", *settings], 0), [], 0
    found = telling_circuits(vit, pairs, **wanted)
    for tau, default in found.items():
        expected = oracles.acdc(vit, pairs, tau, **wanted)
        identical["default"] += default.edges == expected
        ties += len(default.provenance.ties)
        kept.append(round(share_kept(default), 4))
        for setting, speedups in settings.items():
            got = cv.acdc(vit, pairs, tau=tau, speedups=speedups, **wanted)
            identical[setting] += got.edges == expected
            ties += len(got.provenance.ties)
    return {
        "shape": name, "seed": seed, "ablation": ablation, "qkv": qkv,
        "taus": list(found), "shares_kept": kept, "ties": ties,
        "inside_the_range": sum(map(is_telling, found.values())), "identical": identical,
    }  # fmt: skip


def compared_in_single(name, seed, ablation, qkv, settings):
    """In single precision, against the oracle in double: apart only where a tie is reported."""
    vit = random_vit(shape(name), seed=seed, dtype=torch.float32)
    pairs, reference = random_pairs(vit, 3, seed), random_images(vit, 4, seed=seed)
    wanted = {"ablation": ablation, "qkv": qkv}
    twin, twins = double(vit, pairs)
    same, tied, apart = 0, 0, 0
    for tau in telling_circuits(vit, pairs, reference=reference, **wanted):
        expected = oracles.acdc(twin, twins, tau, reference=reference.double(), **wanted)
        for speedups in settings.values():
            got = cv.acdc(vit, pairs, tau=tau, speedups=speedups, reference=reference, **wanted)
            differ = [
                e for e in oracles.edges(vit.config, qkv) if (e in got.edges) != (e in expected)
            ]
            same += not differ
            tied += bool(differ) and differ[0] in got.provenance.ties
            apart += bool(differ) and differ[0] not in got.provenance.ties
    return {"shape": name, "seed": seed, "ablation": ablation, "qkv": qkv,
            "identical": same, "apart_at_a_tie": tied, "apart": apart}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_acdc_keeps_the_oracles_edges_on_the_whole_grid():
    """Every model × 5 τ × 3 ablations, each with every speed-up on and off."""
    began = time.monotonic()
    rows = [
        compared(name, config, seed, ablation, ("split", "joint")[seed % 2], SPEEDUPS)
        for name, config, seed in MODELS
        for ablation in ABLATIONS
    ]
    some = {name: SPEEDUPS[name] for name in ("all on", "all off")}
    single = [
        compared_in_single(name, 200, ABLATIONS[i % 3], ("split", "joint")[i % 2], some)
        for i, name in enumerate(SHAPES)
    ]
    shares = sorted(share for row in rows for share in row["shares_kept"])
    count, settings = len(shares), ["default", *SPEEDUPS]
    identical = {s: sum(row["identical"][s] for row in rows) for s in settings}
    write_json(
        RESULTS / "acdc_against_oracle.json",
        {
            "command": "make exhaustive",
            "torch": torch.__version__,
            "minutes": round((time.monotonic() - began) / 60, 1),
            "models": len(MODELS),
            "oracle_circuits": count,
            "comparisons": count * len(settings),
            "identical": sum(identical.values()),
            "identical_by_speedups": identical,
            "ties": sum(row["ties"] for row in rows),
            "taus": "bisected until 3-30% of the edges stay, five for each model and ablation",
            "inside_the_range": sum(row["inside_the_range"] for row in rows),
            "models_and_ablations_that_skip_the_range": sum(
                row["inside_the_range"] < 5 for row in rows
            ),
            "smallest_share_kept": shares[0],
            "median_share_kept": shares[count // 2],
            "largest_share_kept": shares[-1],
            "single_precision": {
                "comparisons": 5 * len(some) * len(single),
                "identical": sum(row["identical"] for row in single),
                "apart_at_a_reported_tie": sum(row["apart_at_a_tie"] for row in single),
                "apart": sum(row["apart"] for row in single),
                "rows": single,
            },
            "rows": rows,
        },
    )
    assert identical == dict.fromkeys(settings, count)
    assert not any(row["ties"] for row in rows)
    assert not any(row["apart"] for row in single)
