"""Writes `experiments/tour.ipynb`: the main job in a notebook, with outputs.

Claim: the notebook runs from top to bottom, and circuits and reports show themselves.
Command: `.venv/bin/python experiments/make_tour.py`
Hardware: any CPU. Minutes: 2. Expected: experiments/tour.ipynb, executed.
"""

import quiet_interrupt  # noqa: F401  # isort: skip

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TOUR = Path(__file__).with_name("tour.ipynb")

CELLS = [
    "# circuitvit in ten minutes\n\nTrain a small ViT on handwritten digits, find the circuit that "
    "carries its behaviour, look at it, and compile it into a smaller model.",
    "import circuitvit as cv\n\nsplits = cv.load_splits('digits')\nsplits.train",
    "## A model\nAny ViT will do: `cv.load_vit` takes a timm module or a saved folder. Here we train "
    "one; with 40 epochs it is good enough for a tour.",
    "config = cv.ViTConfig(\n    image_size=8, patch_size=2, channels=1, classes=10,\n    width=48, "
    "depth=3, heads=4, mlp_width=96,\n)\nrecipe = cv.Recipe(epochs=40)\ntraining = cv.train("
    "cv.ViT(config, seed=0), splits.train, splits.validation, recipe)\nvit = training.vit\n"
    "training.history[-1]['validation_accuracy']",
    "## Looking inside\n`HookedViT` shares the weights and has TransformerLens's hooks.",
    "hooked = cv.HookedViT(vit)\nlogits, cache = hooked.run_with_cache(splits.validation.images[:8])"
    "\ncache['blocks.1.attn.hook_pattern'].shape",
    "## A circuit\nPairs of images ask the question: what makes the difference between a 3 and an 8? "
    "EAP scores every edge from gradients; ACDC removes edge after edge as long as the output stays.",
    "pairs = cv.Pairs.by_class(splits.train, clean='3', corrupt='8', count=32)\n"
    "scores = cv.eap(vit, pairs, method='eap-ig-inputs')\n[(edge, round(scores[edge], 3)) for edge "
    "in scores.ranked()[:5]]",
    "circuit = cv.acdc(vit, pairs, tau=0.02)\ncircuit",
    "circuit.units()",
    "How much of the behaviour does it keep, on images that it has not seen? And a random circuit of "
    "its size?",
    "from circuitvit.graph.controls import random_edges\n"
    "unseen = cv.Pairs.by_class(splits.validation, clean='3', corrupt='8', count=24)\n"
    "control = random_edges(vit.config, len(circuit), count=1)[0]\n"
    "[round(cv.faithfulness(vit, c, unseen, metric='kl'), 3) for c in (circuit, control)]",
    "## A smaller model\nFor all ten classes, with removed units at their mean: the compiled ViT "
    "holds only the units on a path.",
    "everything = cv.Pairs.by_class(splits.train, count=64)\nreference = splits.train.images\n"
    "whole = cv.acdc(vit, everything, tau=0.03, ablation='mean', reference=reference)\n"
    "small = cv.compile(vit, whole, reference=reference)\n"
    "small.config.heads, small.config.mlp_width",
    "cv.measure({'dense': vit, 'compiled': small}, splits.test.images, splits.test.labels, "
    "batches=(8,), rounds=5)",
    "`circuit.to_html('circuit.html')` writes the interactive page; `small.save_pretrained('small')` "
    "the model.",
]


def tour() -> nbformat.NotebookNode:
    """The notebook, without outputs."""
    prose = ("#", "How much", "`circuit")
    cells = [
        new_markdown_cell(text) if text.startswith(prose) else new_code_cell(text) for text in CELLS
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    notebook = tour()
    NotebookClient(notebook, timeout=300).execute()
    for cell in notebook.cells:  # warnings on standard error name paths of this machine
        cell["outputs"] = [out for out in cell.get("outputs", []) if out.get("name") != "stderr"]
        if cell["cell_type"] == "markdown":
            del cell["outputs"]
    nbformat.write(notebook, TOUR)
    print(f"Wrote {TOUR}.")
