"""Holds a demo run against what the project claims of it; exits with 1 where a claim fails.

Claim: on the test split the dense ViT reaches 95%, the compiled model saves 25% of the MACs, the
retrained blueprint reaches 93%, the ACDC circuit is more faithful than the median of 15 random
circuits of its size, and the job takes 5 minutes at most on 2 cores.
Command: `make demo && .venv/bin/python experiments/digits_claims.py`
Hardware: any CPU. Minutes: 2, the demo's. Expected: five lines that say ok.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

import argparse
import json
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1]


def main(run: Path) -> int:
    body = json.loads((run / "report.json").read_text())
    rows = {row["name"]: row for row in body["rows"]}
    summary, faithful = body["summary"], body["summary"]["faithfulness"]
    dense, compiled = rows["dense"], rows["compiled"]
    retrained = rows["retrained from scratch"]["accuracy"]["top1"]
    saved = 1 - compiled["macs"] / dense["macs"]
    claims = {
        f"dense test accuracy {dense['accuracy']['top1']:z.2%} ≥ 95%": dense["accuracy"]["top1"]
        >= 0.95,
        f"MACs saved {saved:z.1%} ≥ 25%": saved >= 0.25,
        f"retrained test accuracy {retrained:z.2%} ≥ 93%": retrained >= 0.93,
        f"faithfulness {faithful['acdc']:z.3f} > median of {len(faithful['random'])} random "
        f"{faithful['random_median']:z.3f}": faithful["acdc"] > faithful["random_median"],
        f"seconds {summary['seconds']} ≤ 300": summary["seconds"] <= 300,
    }
    for text, holds in claims.items():
        print("ok  " if holds else "FAIL", text)
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=HOUSE / "runs" / "demo", help="a demo's folder")
    sys.exit(main(parser.parse_args().run))
