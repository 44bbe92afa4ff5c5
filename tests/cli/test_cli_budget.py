"""On which images the command line ranks units for a budget."""

import pytest
from command_line import run
from random_models import random_vit, shape

import circuitvit as cv


@pytest.mark.parametrize("how", ["--no-card", "--fresh"])
def test_a_budget_ranks_on_the_images_that_are_given(tmp_path, how):
    vit = random_vit(shape(depth=3, image_size=8, classes=10), seed=2).float()
    vit.preprocessing = cv.Preprocessing()
    vit.save_pretrained(tmp_path / "model")
    cv.Circuit.full(vit.config).save(tmp_path / "c.json")
    words = ["compile", "model", "c.json", "out", how, "--target-macs", "0.5"]
    noise = "units ranked on noise images (--data names others)."
    for data, images in (
        ([], None),
        (["--data", "digits"], cv.load_splits("digits", model=vit).train.images),
    ):
        done = run(*words, *data, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (noise in done.stdout) is (images is None)
        expected = cv.compile(
            vit, cv.Circuit.full(vit.config), target_macs=0.5, reference=images,
            fresh=how == "--fresh",
        )  # fmt: skip
        assert cv.load_vit(tmp_path / "out").fingerprint() == expected.fingerprint()
