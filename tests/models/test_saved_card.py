"""The card goes where the weights go, and never stands beside others."""

import copy

import pytest
import torch
from huggingface_hub import hub_mixin
from random_models import random_vit, shape

import circuitvit as cv
from circuitvit.models.saved_model import read_card


def card_of(vit, words="as it was written"):
    return f"---\nlicense: mit\nmodel_fingerprint: {vit.fingerprint()}\n---\n\n{words}\n"


@pytest.fixture
def saved(tmp_path):
    """A model in a folder with its card, loaded from there."""
    vit = random_vit(shape(), dtype=torch.float32)
    vit.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(card_of(vit))
    return cv.load_vit(tmp_path / "model")


def test_a_card_goes_where_its_model_goes(saved, tmp_path):
    for name, model in (("a", saved), ("b", copy.deepcopy(saved)), ("c", cv.load_vit(saved))):
        model.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "README.md").read_text() == card_of(saved)


def test_a_card_that_someone_wrote_more_into_is_kept(saved, tmp_path):
    path = tmp_path / "model" / "README.md"
    path.write_text(card_of(saved, "and my own words"))
    saved.save_pretrained(tmp_path / "model")
    assert path.read_text() == card_of(saved, "and my own words")


def test_a_card_does_not_go_with_altered_weights(saved, tmp_path):
    with torch.no_grad():
        saved.head.bias.add_(1)
    saved.save_pretrained(tmp_path / "altered")
    assert not (tmp_path / "altered" / "README.md").exists()


def test_saving_other_weights_over_a_model_takes_its_card_away(saved, tmp_path):
    other = random_vit(shape(), seed=1, dtype=torch.float32)
    other.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "README.md").exists()
    (tmp_path / "model" / "README.md").write_text(card_of(other))
    saved.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == card_of(saved)


@pytest.mark.parametrize(
    "text", ["# Mine\n", "", "---\nlicense: mit\n---\n", "text\n---\nmodel_fingerprint: 0123456789abcdef\n---\n"]
)  # fmt: skip
def test_a_readme_that_is_no_card_is_left_alone(text, saved, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "README.md").write_text(text)
    assert read_card(folder) is None
    saved.save_pretrained(folder)
    assert (folder / "README.md").read_text() == text
    assert cv.load_vit(folder).card is None


def test_a_readme_that_can_not_be_read_is_no_card(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\n\xff\n---")
    assert read_card(tmp_path) is None
    assert read_card(tmp_path / "nowhere") is None


def test_pushing_to_the_hub_uploads_the_card(saved, tmp_path, monkeypatch):
    """With the network's part replaced: the folder that would be uploaded has it."""
    uploaded = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            uploaded[repo_id] = (cv.load_vit(folder_path).fingerprint(), read_card(folder_path))
            return "url"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    whole = (saved.fingerprint(), card_of(saved))
    assert saved.push_to_hub("me/loaded") == "url"
    saved.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="me/saved")
    without = random_vit(shape(), dtype=torch.float32)
    without.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/beside")
    assert uploaded == {"me/loaded": whole, "me/saved": whole, "me/beside": whole}
    other = random_vit(shape(), seed=1, dtype=torch.float32)
    other.push_to_hub("me/other")
    assert uploaded["me/other"] == (other.fingerprint(), None)
