"""Makes this folder: every file format, as version 0.1.0 (commit 0d75abd) wrote it, and what each file means.

    git worktree add /tmp/v010 0d75abd && cd /tmp/v010
    PYTHONPATH=$PWD:$PWD/tests python THIS_FILE OUT

It is run at that commit only; `tests/whole/test_golden.py` loads the files with today's version.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from models import random_images, random_pairs, random_vit, shape
from public_things import MAKERS, made

import circuitvit as cv

JSON = (
    "scores", "scores of neurons", "scores by position", "circuit", "overlap", "curve",
    "completeness", "minimality", "across ablations", "report", "costs", "savings",
)  # fmt: skip


def meaning(name, thing):
    """What a loaded result must show."""
    if name.startswith("scores"):
        return {"values": dict(thing), "method": thing.provenance.method}
    if name == "circuit":
        return {"edges": list(thing.edges), "scores": dict(thing.scores)}
    if hasattr(thing, "markdown"):
        return {"markdown": thing.markdown()}
    return {"repr": repr(thing)}


def logits(model, images):
    with torch.no_grad():
        return model(images).tolist()


def make(out):
    """Write all files and `expected.json`."""
    out.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name in JSON:
        thing = made(name)
        thing.save(out / f"{name.replace(' ', '_')}.json")
        expected[name] = meaning(name, thing)
    made("class circuits").save(out / "class_circuits")
    expected["class circuits"] = {k: list(c.edges) for k, c in made("class circuits").items()}
    made("evaluation").save(out / "evaluation")
    expected["evaluation"] = {"markdown": made("evaluation").markdown()}
    for name in ("pairs", "pairs with a recipe"):
        made(name).save(out / f"{name.replace(' ', '_')}.safetensors")
        expected[name] = {"fingerprint": made(name).fingerprint(), "images": len(made(name))}
    vit = made("vit")
    images = random_images(vit, 2, seed=7)
    for name, model in {
        "vit": vit,
        "circuit vit": made("circuit vit"),
        "half": copy.deepcopy(vit).half(),
    }.items():
        model.save_pretrained(out / name.replace(" ", "_"))
        if name == "half":
            expected[name] = {"fingerprint": model.fingerprint()}
            continue
        expected[name] = {"logits": logits(model, images), "fingerprint": model.fingerprint()}
    adapter = made("adapter")
    adapter.save(out / "adapter.safetensors")
    expected["images"] = images.tolist()
    searched = random_vit(shape(), seed=3)
    pairs = random_pairs(searched, 3)
    circuit = cv.acdc(searched, pairs, tau=0.02, resume=out / "search.json")
    expected["search"] = {"edges": list(circuit.edges)}
    for page in [*out.rglob("*.html"), *out.rglob("plotly*.js")]:
        page.unlink()
    (out / "expected.json").write_text(json.dumps(expected))
    assert set(JSON) <= set(MAKERS)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
