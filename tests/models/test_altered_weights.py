"""Case 15 of the field's reports: masks, parametrizations and replaced layers on a model of ours."""

import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape
from small_training import blobs
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import circuitvit as cv


class LowRank(nn.Linear):
    """As peft and loralib add it: the layer itself, and two small matrices beside it."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features, dtype=like.weight.dtype)
        self.load_state_dict(like.state_dict())
        self.lora_a = nn.Parameter(torch.zeros(2, like.in_features, dtype=like.weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(like.out_features, 2, dtype=like.weight.dtype))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


class Around(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2)})

    def forward(self, x):
        return self.base_layer(x)


class Quantised(nn.Linear):
    pass


def pruned(vit):
    prune.l1_unstructured(vit.blocks[0].mlp.fc1, "weight", amount=0.5)


def pruned_globally(vit):
    layers = [(block.mlp.fc1, "weight") for block in vit.blocks]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.3)


def spectral(vit):
    parametrizations.spectral_norm(vit.blocks[1].attention.qkv)


def weight_norm(vit):
    parametrizations.weight_norm(vit.head)


def old_weight_norm(vit):
    nn.utils.weight_norm(vit.head)


def own_parametrization(vit):
    parametrize.register_parametrization(vit.blocks[0].mlp.fc2, "bias", nn.Identity())


def lora(vit):
    vit.blocks[0].attention.qkv = LowRank(vit.blocks[0].attention.qkv)


def peft(vit):
    vit.blocks[1].mlp.fc1 = Around(vit.blocks[1].mlp.fc1)


def quantised(vit):
    vit.blocks[0].mlp.fc1 = Quantised(8, 6).double()


def other_head(vit):
    vit.head = nn.Linear(8, 7).double()


def sequential_head(vit):
    vit.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 4).double())


def without_a_layer(vit):
    vit.blocks[0].mlp = None


def with_one_more(vit):
    vit.extra = nn.Linear(8, 8).double()


MASKS = r"masks of torch.nn.utils.prune compute"
PERMANENT = r"makes it permanent\)\. circuitvit.load_vit\(model\) gives a copy"
COMPUTED = {
    pruned: rf"{MASKS} blocks.0.mlp.fc1.weight \(torch.nn.utils.prune.remove\(layer, 'weight'\) {PERMANENT}",
    pruned_globally: rf"{MASKS} blocks.0.mlp.fc1.weight, blocks.1.mlp.fc1.weight \(",
    spectral: r"parametrizations \(SpectralNorm\) compute blocks.1.attention.qkv.weight \(.*remove_parametrizations\(",
    weight_norm: r"parametrizations \(WeightNorm\) compute head.weight \(.*remove_parametrizations\(",
    old_weight_norm: r"weight norm compute head.weight \(torch.nn.utils.remove_weight_norm\(layer, 'weight'\)",
    own_parametrization: r"parametrizations \(Identity\) compute blocks.0.mlp.fc2.bias \(",
}
"""Weights that can be made permanent, as `load_vit` and `export` do in their copies."""

REPLACED = {
    lora: r"LoRA \(or another adapter of peft\) is in blocks.0.attention.qkv.* model.merge_and_unload",
    peft: r"LoRA \(or another adapter of peft\) is in blocks.1.mlp.fc1.* model.merge_and_unload",
    quantised: r"blocks.0.mlp.fc1 is a Quantised, expected a Linear; put back the plain layer",
    other_head: r"head.bias, head.weight: of another shape; cv.with_new_head\(vit, classes\)",
    sequential_head: r"head is a Sequential, expected a Linear",
    without_a_layer: r"blocks.0.mlp.fc1.bias, blocks.0.mlp.fc1.weight, .* and 1 more: missing",
    with_one_more: r"extra.bias, extra.weight: surplus",
}


def score(vit, folder):
    cv.eap(vit, random_pairs(vit))


def search(vit, folder):
    cv.acdc(vit, random_pairs(vit))


def run(vit, folder):
    cv.run_circuit(vit, cv.Circuit(vit.config, ["embed->logits"]), random_pairs(vit))


def compiled(vit, folder):
    cv.compile(vit, cv.Circuit(vit.config, ["embed->logits"]))


def cut(vit, folder):
    cv.prune_heads(vit, {0: [0]})


def train(vit, folder):
    cv.train(vit, blobs(), blobs(), cv.Recipe(epochs=1, batch=16))


def new_head(vit, folder):
    cv.with_new_head(vit, 3)


def export(vit, folder):
    cv.export(vit, folder / "model.pt2")


def save(vit, folder):
    vit.save_pretrained(folder / "model")


def load(vit, folder):
    cv.load_vit(vit)


def hook(vit, folder):
    cv.HookedViT(vit)


USES = [score, search, run, compiled, cut, train, new_head, export, save, load, hook]


def altered(alter):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # the old norms are deprecated
        vit = random_vit(shape())
        alter(vit)
    return vit


@pytest.mark.parametrize("alter", COMPUTED, ids=lambda alter: alter.__name__)
def test_computed_weights_are_named_with_the_remedy_or_made_permanent(alter, tmp_path):
    vit = altered(alter)
    for use in USES:
        if use not in (load, export):
            with pytest.raises(cv.CircuitError, match=COMPUTED[alter]):
                use(vit, tmp_path)
    assert list(tmp_path.iterdir()) == []
    images = random_images(vit, 3)
    torch.testing.assert_close(cv.load_vit(vit)(images), vit(images))
    export(vit, tmp_path)


@pytest.mark.parametrize("alter", REPLACED, ids=lambda alter: alter.__name__)
def test_replaced_and_added_layers_are_named_with_the_remedy_at_every_door(alter, tmp_path):
    vit = altered(alter)
    for use in USES:
        with pytest.raises(cv.CircuitError, match=REPLACED[alter]):
            use(vit, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_removed_as_advised_works_again(tmp_path):
    vit = random_vit(shape())
    pruned(vit)
    spectral(vit)
    images = random_images(vit, 3)
    expected = vit(images)
    prune.remove(vit.blocks[0].mlp.fc1, "weight")
    parametrize.remove_parametrizations(vit.blocks[1].attention.qkv, "weight")
    for use in USES:
        use(vit, tmp_path)
    torch.testing.assert_close(cv.ViT.from_pretrained(tmp_path / "model")(images), expected)


def test_a_masked_model_can_be_measured_and_can_teach():
    vit, images = random_vit(shape()), blobs()
    pruned(vit)
    cv.measure({"masked": vit}, images.images, images.labels, batches=())
    recipe = cv.Recipe(epochs=1, batch=16)
    learnt = cv.train(random_vit(shape()), images, images, recipe, teacher=vit).vit
    prune.remove(vit.blocks[0].mlp.fc1, "weight")
    again = cv.train(random_vit(shape()), images, images, recipe, teacher=vit).vit
    torch.testing.assert_close(learnt(images.images.double()), again(images.images.double()))


def test_what_is_around_a_vit_is_told_how_to_take_it_out(as_users_call):
    vit = random_vit(shape())
    adapted = cv.train(
        vit, blobs(), blobs(), cv.Recipe(epochs=1, batch=16, tune="adapter", adapter_width=2)
    ).vit
    merged = nn.Identity()
    merged.merge_and_unload = lambda: vit
    for model, words in (
        (
            torch.compile(vit, backend="eager"),
            r"OptimizedModule. Give the ViT inside it: model._orig_mod",
        ),
        (nn.DataParallel(vit), r"DataParallel. Give the ViT inside it: model.module"),
        (adapted, "AdaptedViT. An adapter can't be folded into a ViT"),
        (merged, r"Merge its adapters first: model.merge_and_unload\(\)"),
    ):
        with pytest.raises(cv.CircuitError, match=words):
            cv.eap(model, random_pairs(vit))


def test_hooks_on_a_model_that_discovery_does_not_run_are_warned_of(tmp_path):
    vit = random_vit(shape())
    vit.blocks[0].register_forward_hook(lambda module, given, found: 2 * found)
    for use in (score, compiled, save):
        with pytest.warns(
            UserWarning, match=r"has forward hooks on blocks.0, which run in its own"
        ):
            use(vit, tmp_path)
