"""The long grids of `make exhaustive`; their counts are committed under experiments/results/."""

from pathlib import Path

import oracles
import pytest
import torch
from models import SHAPES, random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.files import write_json

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95)


def thresholds(vit, pairs, ablation, reference):
    scores = cv.eap(vit, pairs, method="exact", metric="kl", ablation=ablation, reference=reference)
    sizes = torch.tensor([abs(score) for score in scores.values()]).double()
    return [float(q) + 1e-9 for q in sizes.quantile(torch.tensor(QUANTILES).double())]


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_acdc_keeps_the_oracles_edges_on_the_whole_grid():
    """6 shapes × 3 ablations × split and joint × 2 models × 5 τ = 360 circuits."""
    rows, shares = [], []
    for name in SHAPES:
        for ablation in ("patch", "zero", "mean"):
            for qkv in ("split", "joint"):
                for seed in (100, 101):
                    vit = random_vit(shape(name), seed=seed)
                    pairs, reference = random_pairs(vit, 3, seed), random_images(vit, 4, seed=seed)
                    same = 0
                    for tau in thresholds(vit, pairs, ablation, reference):
                        wanted = {"qkv": qkv, "reference": reference}
                        expected = oracles.acdc(vit, pairs, tau, ablation, **wanted)
                        got = cv.acdc(vit, pairs, tau=tau, ablation=ablation, **wanted)
                        same += got.edges == expected
                        shares.append(len(got) / len(oracles.edges(vit.config, qkv)))
                    rows.append({"shape": name, "ablation": ablation, "qkv": qkv, "seed": seed,
                                 "circuits": len(QUANTILES), "identical": same})  # fmt: skip
    write_json(
        RESULTS / "acdc_against_oracle.json",
        {
            "command": "make exhaustive",
            "torch": torch.__version__,
            "circuits": sum(row["circuits"] for row in rows),
            "identical": sum(row["identical"] for row in rows),
            "smallest_share_kept": min(shares),
            "median_share_kept": sorted(shares)[len(shares) // 2],
            "largest_share_kept": max(shares),
            "rows": rows,
        },
    )
    assert all(row["identical"] == row["circuits"] for row in rows)
