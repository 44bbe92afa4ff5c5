"""Gradient flow: against autograd by hand, kept over a resume, and drawn."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_training import blobs, edge_model, make_vit, same_weights, timeless

import circuitvit as cv
from circuitvit.charts.timeline import timeline
from circuitvit.train import Recipe
from circuitvit.train.epoch_records import GradientFlow, gradient_figure, layer_of

ONE_STEP = Recipe(epochs=1, batch=16, augment=False, label_smoothing=0.0)
LAYERS = ["embed", "attention 0", "MLP 0", "attention 1", "MLP 1", "head"]


def by_hand(vit, images):
    loss = F.cross_entropy(vit(images.images), images.labels)
    gradients = torch.autograd.grad(loss, list(vit.parameters()))
    return dict(zip([name for name, _ in vit.named_parameters()], gradients, strict=True))


def mean_of(gradients):
    return torch.cat([gradient.abs().flatten() for gradient in gradients]).mean().item()


@pytest.mark.parametrize("changes", [{}, {"accumulate": 4}, {"clip": 1e-3}])
def test_a_step_records_the_mean_gradient_of_each_layer_before_clipping(changes):
    vit, images = make_vit(), blobs(16)
    [entry] = cv.train(vit, images, images, replace(ONE_STEP, **changes)).history
    found = by_hand(vit, images)
    assert list(entry["gradients"]) == LAYERS
    for layer, mean in entry["gradients"].items():
        kind, _, number = layer.partition(" ")
        block = f"blocks.{number}."
        starts = {
            "embed": ("patch", "class_token", "positions"),
            "attention": (block + "ln1", block + "attention", block + "output_bias"),
            "MLP": (block + "ln2", block + "mlp"),
            "head": ("final_norm", "head"),
        }[kind]
        of_layer = [gradient for name, gradient in found.items() if name.startswith(starts)]
        assert mean == pytest.approx(mean_of(of_layer), rel=1e-9)
    norm = torch.stack([gradient.square().sum() for gradient in found.values()]).sum().sqrt()
    assert entry["gradient_norm"] == pytest.approx(norm.item(), rel=1e-9)


def test_an_epoch_records_the_mean_over_its_steps():
    vit = make_vit()
    flow, means = GradientFlow(vit), []
    for seed in range(3):
        images = blobs(8, seed=seed)
        vit.zero_grad()
        F.cross_entropy(vit(images.images), images.labels).backward()
        flow.record()
        means.append(mean_of([vit.head.weight.grad, vit.head.bias.grad,
                              vit.final_norm.weight.grad, vit.final_norm.bias.grad]))  # fmt: skip
    assert flow.take_means()["head"] == pytest.approx(sum(means) / 3, rel=1e-9)


def test_steps_that_fp16_skips_do_not_count():
    vit = make_vit()
    flow = GradientFlow(vit)
    for value in (torch.inf, 2.0, torch.nan):
        for parameter in vit.parameters():
            parameter.grad = torch.full_like(parameter, value)
        flow.record()
    assert flow.take_means() == pytest.approx(dict.fromkeys(LAYERS, 2.0))
    vit.head.weight.grad[0, 0] = torch.inf
    flow.record()
    assert flow.take_means() == {}


@pytest.mark.parametrize("tune", ["all", "head", "adapter"])
def test_layers_without_anything_that_learns_are_left_out(tune):
    recipe = replace(ONE_STEP, tune=tune)
    result = cv.train(make_vit(), blobs(16), blobs(16), recipe)
    found = result.history[0]["gradients"]
    assert list(found) == {"all": LAYERS, "head": ["head"], "adapter": LAYERS[1:]}[tune]
    assert all(value > 0 for value in found.values())
    assert "Gradient flow" in str(result.gradient_flow().layout.title.text)


def test_every_parameter_of_a_compiled_circuit_has_its_layer():
    small = edge_model()
    layers = {name: layer_of(name) for name, _ in small.named_parameters()}
    assert {layer for name, layer in layers.items() if name.startswith("ends.head")} == {"head"}
    assert layers["ends.patch.weight"] == "embed"
    assert all(layer.split()[1] == name.split(".")[1]
               for name, layer in layers.items() if name.startswith("blocks."))  # fmt: skip
    history = cv.train(small, blobs(), blobs(), replace(ONE_STEP, batch=48)).history
    assert set(history[0]["gradients"]) == set(layers.values())


def test_recording_changes_no_weight(monkeypatch):
    recipe = Recipe(epochs=2, batch=16)
    recorded = cv.train(make_vit(), blobs(), blobs(), recipe)
    monkeypatch.setattr(GradientFlow, "record", lambda self: None)
    monkeypatch.setattr(GradientFlow, "take_means", lambda self: {})
    without = cv.train(make_vit(), blobs(), blobs(), recipe)
    assert same_weights(recorded.vit, without.vit)
    with pytest.raises(cv.CircuitError, match="no gradients were recorded"):
        without.gradient_flow()


def test_a_resumed_training_has_all_of_it(tmp_path, monkeypatch):
    from circuitvit.train import training as module

    recipe = Recipe(epochs=3, batch=16)
    whole = cv.train(make_vit(), blobs(), blobs(), recipe)
    held = module.TrainingCheckpoint.save

    def save_and_stop(self, path):
        held(self, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.TrainingCheckpoint, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    monkeypatch.setattr(module.TrainingCheckpoint, "save", held)
    resumed = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    assert timeless(resumed.history) == timeless(whole.history)
    assert [len(entry["gradients"]) for entry in resumed.history] == [6, 6, 6]


def test_the_figure_shows_every_layer_and_epoch_and_gaps_where_nothing_was_recorded():
    history = [
        {"epoch": 1},
        {"epoch": 2, "gradients": {"head": 1e-2, "MLP 10": 1e-5, "embed": 0.0}},
        {"epoch": 3, "gradients": {"head": 1e-1, "MLP 10": 1e-4, "embed": 1e-6, "MLP 2": 1.0}},
    ]
    drawn = gradient_figure(history)
    assert drawn.layout.yaxis.ticktext == ("embed", "MLP 2", "MLP 10", "head")
    [trace] = drawn.data
    assert list(trace.x) == [1, 2, 3]
    cells = [[None if v is None else round(v, 9) for v in row] for row in trace.z]
    assert cells == [[None, None, -6], [None, None, 0], [None, -5, -4], [None, -2, -1]]
    assert trace.customdata[0][0].endswith("not recorded")
    assert trace.customdata[3][1] == "head<br>epoch 2<br>0.01"
    assert (trace.zmin, trace.zmax) == (-6, 0)
    assert "1e-05" in trace.colorbar.ticktext


def test_equal_values_and_names_with_markup_can_be_drawn():
    drawn = timeline(["<b>"], [1, 2], [[0.5, 0.5]], title="<i>", subtitle="", x_title="x",
                     scale_title="v")  # fmt: skip
    assert drawn.data[0].zmin < drawn.data[0].zmax
    assert "<b>" not in drawn.layout.yaxis.ticktext[0]
    assert "<i>" not in drawn.layout.title.text
