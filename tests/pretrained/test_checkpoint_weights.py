"""Several sets of weights in one file: which is taken, what is said, and how to choose."""

import numpy as np
import pytest
import torch
from foreign_models import HEADS, a_timm, a_torchvision, images, logits_of
from torch import nn

import circuitvit as cv
from circuitvit.pretrained import examine

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


@torch.no_grad()
def check_same(found, module):
    expected = logits_of(module, images())
    assert (found.vit(images()) - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.fixture
def saved(tmp_path):
    """Saves what it is given, and examines the file."""

    def save(content, **options):
        torch.save(content, tmp_path / "last.pth")
        return examine(tmp_path / "last.pth", heads=HEADS, **options)

    return save


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def choices(found):
    return [text for text in found.guessed if " is taken" in text]


def test_a_lone_wrapper_does_not_decide_before_prefixes_were_looked_at(saved):
    module = a_timm()
    mine = module.state_dict()
    both = under("model.", other(mine)) | under("model_ema.module.", mine)
    for asked in (None, "ema"):
        check_same(saved({"state_dict": both, "epoch": 1}, weights=asked), module)
    both = under("model.", mine) | under("model_ema.module.", other(mine))
    check_same(saved({"state_dict": both}, weights="model"), module)
    lone = {"state_dict": under("ema.", mine)}
    check_same(saved(lone, weights="ema"), module)
    with pytest.raises(cv.CircuitError, match="weights is 'model', but .*command line --weights"):
        saved(lone, weights="model")


def test_bare_weights_beside_an_average_are_taken_aloud_as_timm_does(saved):
    module = a_timm()
    mine = module.state_dict()
    for bare, average in ((mine, other(mine)), (other(mine), mine)):
        content = bare | under("ema.", average)
        asked = (None, "model") if bare is mine else ("ema",)
        for weights in asked:
            found = saved(content, weights=weights)
            check_same(found, module)
            assert len(choices(found)) == (weights is None)
            assert "ema.head.weight" not in found.unused
    text = choices(saved(mine | under("ema.", mine)))[0]
    assert "holds weights without a prefix and 'ema.': weights without a prefix, the" in text
    assert "weights='ema' takes the other" in text
    assert "circuitvit inspect has --weights" in text


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("net_ema", "net"), ("params_ema", "params"), ("state_dict", "averaged_model"),
     ("avg_net", "my_net"), ("EMA", "weights"), ("", "ema")],
)  # fmt: skip
def test_any_two_names_of_which_one_is_an_average_are_a_choice(right, wrong, saved):
    module = a_timm()
    mine = module.state_dict()
    content = {wrong: other(mine), right: mine} if right else {**mine, wrong: other(mine)}
    found = saved(content)
    check_same(found, module)
    assert len(choices(found)) == 1
    assert repr(wrong) in choices(found)[0]
    both = {"ema", "model"}
    kind = "ema" if "model' takes the other" in choices(found)[0] else "model"
    check_same(saved(content, weights=kind), module)
    swapped = saved(content, weights=(both - {kind}).pop())
    assert swapped.vit.fingerprint() != found.vit.fingerprint()
    assert not choices(swapped)


@pytest.mark.parametrize("name", ["weights", "params", "my_vit", "student"])
def test_weights_under_any_one_name_are_found(name, saved):
    module = a_timm()
    for content in ({name: module.state_dict()}, {"run": {"best": {name: module.state_dict()}}}):
        found = saved({**content, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}})
        check_same(found, module)
        assert not choices(found)


def test_two_models_are_refused_with_the_lines_that_choose(saved, tmp_path):
    module = a_timm()
    mine = module.state_dict()
    with pytest.raises(cv.CircuitError, match="several models, under 'student', 'teacher'") as told:
        saved({"student": mine, "teacher": other(mine)})
    assert "content is torch.load('last.pth', map_location='cpu', weights_only=True)" in str(
        told.value
    )
    assert "save_file(content['student'], 'student.safetensors')" in str(told.value)
    flat = under("student.", mine) | under("teacher.", mine)
    with pytest.raises(cv.CircuitError, match=r"weights_only=True\)\['state_dict'\]"):
        saved({"state_dict": flat})
    with pytest.raises(cv.CircuitError, match="several models"):
        saved({"student": mine, "teacher": other(mine)}, weights="model")
    found = saved({"model": mine, "teacher": other(mine)})
    check_same(found, module)
    assert "holds 'model' and 'teacher': 'model', " in choices(found)[0]
    assert not choices(saved({"model": mine, "teacher": other(mine)}, weights="model"))


class Around(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.backbone = a_timm(num_classes=0)
        setattr(self, name, nn.Linear(24, 5).double())

    def forward(self, x):
        return list(self.children())[1](self.backbone(x))


@pytest.mark.parametrize("name", ["head", "classifier", "fc", "my_layer"])
def test_one_linear_layer_beside_a_backbone_is_its_head(name, saved):
    module = Around(name)
    found = saved({"state_dict": module.state_dict()})
    check_same(found, module)
    note = f"{name}.bias, {name}.weight beside the backbone taken as its head"
    assert note in found.folded
    sequence = nn.Sequential(module.backbone, nn.Dropout(), getattr(module, name)).eval()
    check_same(saved(sequence.state_dict()), module)
    bare = module.backbone.state_dict() | under("fc.", getattr(module, name).state_dict())
    check_same(saved(bare), module)


def test_a_head_beside_torchvisions_backbone_is_found_too(saved):
    module = a_torchvision()
    state = {f"0.{k}": v for k, v in module.state_dict().items() if "heads" not in k}
    head = under("1.", module.heads.head.state_dict())
    check_same(saved(state | head), module)


def test_several_layers_that_can_be_the_head_are_named_with_the_line_that_renames(saved):
    state = Around("head").state_dict()
    with pytest.raises(cv.CircuitError, match="several layers that can be the head: head.weight, "
                       r"other.weight.*state\['head.weight'\] = state.pop"):  # fmt: skip
        saved(state | {"other.weight": torch.ones(3, 24)})
    found = saved(state | {"neck.weight": torch.ones(24), "loss.center": torch.ones(3)})
    assert any("while neck.weight is left out" in text for text in found.guessed)
    assert set(found.unused) == {"neck.weight", "loss.center"}


def test_tensors_in_unknown_nesting_are_told_with_their_places(saved):
    with pytest.raises(cv.CircuitError, match=r"holds a dict with the keys 'a', 'epoch'; tensors "
                       r"are in content\['a'\]\['b'\] \(1\), and.*save_file"):  # fmt: skip
        saved({"a": {"b": {"x": torch.ones(2)}}, "epoch": 3})
    with pytest.raises(cv.CircuitError, match=r"holds a list; tensors are in content\[1\] \(1\)"):
        saved([3, {"x": torch.ones(2)}])
    with pytest.raises(cv.CircuitError, match="no tensors by name, but a dict with the keys 'e'"):
        saved({"e": 3})
    with pytest.raises(cv.CircuitError, match="no tensors by name, but an empty dict"):
        saved({})
    with pytest.raises(cv.CircuitError, match=r"such as save_file\(content\[0\], 'weights"):
        saved([a_timm().state_dict(), {"x": torch.ones(2)}])


def test_numpy_arrays_are_read_as_tensors(saved):
    module = a_timm()
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    for content in (arrays, {"model": arrays}):
        found = saved(content)
        check_same(found, module)
        assert f"{len(arrays)} NumPy arrays read as tensors" in found.folded


def test_weights_of_several_dtypes_in_a_file_are_read_in_the_widest(saved):
    state = a_timm().float().state_dict()
    mixed = {k: v.half() if "blocks" in k else v for k, v in state.items()}
    found = saved(mixed)
    assert found.vit.positions.dtype == torch.float32
    assert "weights in float16, float32 are all read in float32" in found.folded
