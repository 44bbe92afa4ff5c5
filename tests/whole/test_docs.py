"""README and docs: short lines, links that exist, and code that runs."""

import re
from pathlib import Path

import pytest

import circuitvit as cv

HOUSE = Path(__file__).parents[2]
PAGES = [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", flags=re.S | re.M)
WITH_CODE = [page for page in PAGES[1:] if CODE.search(page.read_text())]


@pytest.fixture(scope="module")
def names():
    """What the pages' examples start from: a trained model of digits, its scores, a circuit."""
    splits = cv.load_splits("digits")
    shape = dict(image_size=8, patch_size=4, channels=1, classes=10)
    vit = cv.ViT(cv.ViTConfig(**shape, width=16, depth=2, heads=2, mlp_width=32), seed=0)
    vit = cv.train(vit, splits.train, splits.validation, cv.Recipe(epochs=4)).vit
    vit.preprocessing = splits.train.preprocessing
    pairs = cv.Pairs.by_class(splits.train, count=8)
    scores = cv.eap(vit, pairs)
    small = cv.compile(vit, scores.top(30), ablation="zero")
    return dict(
        cv=cv,
        splits=splits,
        vit=vit,
        pairs=pairs,
        scores=scores,
        circuit=scores.top(30),
        small=small,
    )


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("default")
def test_the_python_of_a_page_runs(page, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = dict(names)
    for code in CODE.findall(page.read_text()):
        exec(compile(code, page.name, "exec"), known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_are_short_and_links_exist(page):
    text = page.read_text()
    long = [line for line in text.splitlines() if len(line) > 110 and not line.startswith("|")]
    assert long == []
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def test_every_page_is_named_in_the_readme():
    named = set(re.findall(r"\]\(docs/([a-z-]+\.md)\)", PAGES[0].read_text()))
    assert named == {page.name for page in PAGES[1:]}
