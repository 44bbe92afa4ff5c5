"""A ViT as a model of timm or transformers: in memory, and as a folder that they read."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from random_models import random_images, random_vit, shape

import circuitvit as cv
from circuitvit.pretrained import examine

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

QUICK = dict(activation="quick_gelu", layer_norm_eps=1e-3)
TO_TIMM = {
    "class token": dict(),
    "registers, tanh, q/k norm": dict(
        register_tokens=2, activation="gelu_tanh", qk_norm=True, qkv_bias=False
    ),
    "mean": dict(pooling="mean"),
    "mean, fc_norm, no class token": dict(pooling="mean", fc_norm=True, class_token=False),
    "mean of all": dict(pooling="mean_all", register_tokens=1, fc_norm=True),
    "embed norm": dict(embed_norm=True, layer_norm_eps=1e-5),
    "distillation": dict(pooling="class_distillation", register_tokens=1),
    "no output bias": dict(output_bias=False),
}
TO_TRANSFORMERS = {
    "ViT": dict(QUICK, qkv_bias=False),
    "ViT, no output bias, tanh": dict(output_bias=False, activation="gelu_tanh"),
    "ViT, heads wider than the width": dict(heads=3),
    "DeiT": dict(register_tokens=1),
    "DeiT WithTeacher": dict(pooling="class_distillation", register_tokens=1),
    "Dinov2": dict(pooling="class_mean", mlp_width=16),
    "Dinov2WithRegisters": dict(pooling="class_mean", register_tokens=3, mlp_width=16),
    "IJepa": dict(pooling="mean", class_token=False),
}
SEEN = cv.Preprocessing(
    mean=(0.25,), std=(0.5,), interpolation="bilinear", crop=0.8, class_names=tuple("abcd")
)


def a_vit(changes, dtype=torch.float32):
    vit = random_vit(shape(**changes), dtype=dtype)
    vit.preprocessing = SEEN
    return vit


def logits_of(module, x):
    found = module(x)
    return getattr(found, "logits", found)


BOTH = [("timm", n) for n in TO_TIMM] + [("transformers", n) for n in TO_TRANSFORMERS]


def changes_of(to, name):
    return (TO_TIMM if to == "timm" else TO_TRANSFORMERS)[name]


@pytest.mark.parametrize(("to", "name"), BOTH)
@torch.no_grad()
def test_there_and_back_logits_stay(to, name):
    for dtype, share in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        vit = a_vit(changes_of(to, name), dtype)
        module = cv.to_timm(vit) if to == "timm" else cv.to_transformers(vit)
        x = random_images(vit, 5)
        expected = vit(x)
        assert (logits_of(module, x) - expected).abs().max() <= share * expected.abs().max()
        assert not module.training
        assert next(module.parameters()).dtype == dtype
        back = examine(module).vit
        assert (back(x) - expected).abs().max() <= share * expected.abs().max()
        assert back.config.pooling == vit.config.pooling
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.equal(vit(x), expected)


def test_the_classes_are_those_of_the_library():
    for name, expected in (
        ("distillation", "VisionTransformerDistilled"),
        ("mean", "VisionTransformer"),
    ):
        assert type(cv.to_timm(a_vit(TO_TIMM[name]))).__name__ == expected
    for name, changes in TO_TRANSFORMERS.items():
        family, _, teacher = name.partition(",")[0].partition(" ")
        expected = f"{family}ForImageClassification{teacher}"
        assert type(cv.to_transformers(a_vit(changes))).__name__ == expected


def test_preprocessing_and_class_names_go_along():
    vit = a_vit({})
    module = cv.to_timm(vit)
    assert cv.load_vit(module).preprocessing == SEEN
    told = timm.data.resolve_model_data_config(module)
    assert (told["mean"], told["input_size"], told["crop_pct"]) == ((0.25,), (1, 4, 4), 0.8)
    assert cv.to_transformers(vit).config.id2label == dict(enumerate("abcd"))


REFUSED = {
    "heads differs by block: .1, 0, 3.; head_width differs.*mlp_width differs": ("ragged", {}),
    "add a constant .token width. .attention_constant.": ("constants, quick", {}),
    "3 heads of width 4 make 12, not the width 8": ("uniform", {"heads": 3}),
    "class token beside the mean": ("class and mean", {}),
    "1 token beside the class token, this 2": ("class and distillation, embed norm", {}),
    "no block has attention": ("uniform", {"heads": 0, "head_width": 4}),
    "no block has an MLP": ("uniform", {"mlp_width": 0}),
}
REFUSED_BY_TRANSFORMERS = {
    "heads differs by block": ("ragged", {}),
    "pooling='mean' with class_token=True and 0 register": ("mean", {}),
    "after the mean of tokens .fc_norm.": ("mean, fc_norm, no class token", {}),
    "LayerNorm of queries and keys": ("uniform", {"qk_norm": True}),
    "whole multiple of the width 8": ("class and mean", {}),
    "2 register tokens; a LayerNorm after the embedding": (
        "class and distillation, embed norm",
        {},
    ),
}


def test_shapes_that_a_library_has_not_are_refused_with_every_reason(as_users_call):
    for table, back, library in (
        (REFUSED, cv.to_timm, "timm"),
        (REFUSED_BY_TRANSFORMERS, cv.to_transformers, "transformers"),
    ):
        for reason, (name, changes) in table.items():
            vit = cv.ViT(shape(name, **changes), seed=0)
            with pytest.raises(cv.CircuitError, match=f"{library} has no model .*{reason}"):
                back(vit)
        with pytest.raises(cv.CircuitError, match="from a int, expected a circuitvit.ViT"):
            back(3)


FOLDERS = [
    (to, name)
    for to, name in BOTH
    if name not in ("class token", "no output bias", "ViT, no output bias, tanh")
]


@pytest.mark.parametrize(("to", "name"), FOLDERS)
@torch.no_grad()
def test_a_folder_is_read_by_its_library_and_by_us(to, name, tmp_path):
    vit = a_vit(changes_of(to, name))
    assert cv.export(vit, tmp_path / "out", to=to) == tmp_path / "out"
    if to == "timm":
        module = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    else:
        from transformers import AutoModelForImageClassification

        module = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    x = random_images(vit, 5)
    expected = vit(x)
    assert (logits_of(module, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    found = examine(tmp_path / "out")
    assert (found.vit(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert found.vit.preprocessing == SEEN
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("resize", ["squash", "shortest"])
def test_the_image_processor_of_transformers_does_the_same_to_a_picture(resize, tmp_path):
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor

    vit = random_vit(shape(channels=3, image_size=16), dtype=torch.float32)
    vit.preprocessing = cv.Preprocessing(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", resize=resize, crop=0.8
    )
    cv.export(vit, tmp_path / "out", to="transformers")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    found = processor(picture, return_tensors="pt")["pixel_values"][0]
    sides = (20, 20) if resize == "squash" else (26, 20)
    left = (sides[0] - 16) // 2
    resized = picture.resize(sides, Image.Resampling.BILINEAR).crop((left, 2, left + 16, 18))
    expected = torch.tensor(np.array(resized)).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.4, 0.5, 0.6]
    ).view(3, 1, 1)
    assert found.shape == (3, 16, 16)
    assert (found - expected).abs().max() < 0.02  # two resamplings round pixels apart by one level


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, as_users_call):
    vit = a_vit({})
    vit.save_pretrained(tmp_path / "ours")
    before = (tmp_path / "ours" / "config.json").read_text()
    for to in ("timm", "transformers"):
        with pytest.raises(cv.CircuitError, match="holds something else than a model of"):
            cv.export(vit, tmp_path / "ours", to=to)
        cv.export(vit, tmp_path / to, to=to)
        cv.export(vit, tmp_path / to, to=to)  # what it wrote before, it may replace
    assert (tmp_path / "ours" / "config.json").read_text() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(cv.CircuitError, match="is a file; name a folder"):
        cv.export(vit, tmp_path / "file", to="timm")
    with pytest.raises(cv.CircuitError, match="cannot write .*Name a folder that can be written"):
        cv.export(vit, tmp_path / "file" / "out", to="timm")
    with pytest.raises(cv.CircuitError, match="can't say that LayerNorms have ε 0.001"):
        cv.export(a_vit(QUICK), tmp_path / "out", to="timm")
    with pytest.raises(cv.CircuitError, match="heads differs by block"):
        cv.export(random_vit(shape("ragged")), tmp_path / "out", to="transformers")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file",
        "ours",
        "timm",
        "transformers",
    ]


def test_what_is_read_back_is_compared_before_it_takes_its_place(tmp_path, monkeypatch):
    from circuitvit.export import library_folder as writing

    write = writing._write_timm

    def slightly_wrong(vit, module, folder):
        with torch.no_grad():
            module.blocks[0].attn.proj.bias[0] += 0.01
        write(vit, module, folder)

    monkeypatch.setattr(writing, "_write_timm", slightly_wrong)
    with pytest.raises(cv.CircuitError, match="logits differ from the source's"):
        cv.export(a_vit({}), tmp_path / "out", to="timm")
    assert list(tmp_path.iterdir()) == []


def test_weights_can_be_written_in_half(tmp_path):
    vit = a_vit({})
    cv.export(vit, tmp_path / "half", to="transformers", dtype=torch.float16)
    assert cv.load_vit(tmp_path / "half").positions.dtype == torch.float16
    cv.export(vit, tmp_path / "half timm", to="timm", dtype=torch.float16)
    assert cv.load_vit(tmp_path / "half timm").positions.dtype == torch.float16
    assert vit.positions.dtype == torch.float32
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_nothing_of_an_earlier_export_stays_beside_a_later_one(to, tmp_path):
    vit, folder = a_vit({}), tmp_path / "out"
    cv.export(vit, folder, to=to)
    (folder / "model-00001-of-00002.safetensors").write_text("a shard of a larger one before it")
    (folder / "README.md").write_text("mine")
    vit.preprocessing = None
    cv.export(vit, folder, to=to)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert examine(folder).vit.preprocessing is None


@pytest.mark.parametrize("to", ["timm", "transformers"])
@torch.no_grad()
def test_a_kill_while_files_take_their_place_leaves_the_old_or_the_new(to, tmp_path, monkeypatch):
    """Beside a file of someone else, files are moved one by one; ours are finished when loaded."""
    old, new = a_vit({}), random_vit(shape(), seed=5, dtype=torch.float32)
    x, killed, kept = random_images(old, 3), 0, set()
    for kill_at in range(30):
        folder = tmp_path / f"killed {kill_at}"
        cv.export(old, folder, to=to)
        (folder / "notes.txt").write_text("mine")
        with monkeypatch.context() as patch:
            kill_in(patch, folder, kill_at)
            try:
                cv.export(new, folder, to=to)
            except KeyboardInterrupt:
                killed += 1
        vit = cv.load_vit(folder)
        each = {name: float((vit(x) - each(x)).abs().max()) < 1e-5 for name, each in (("old", old), ("new", new))}  # fmt: skip
        [which] = [name for name, same in each.items() if same]
        kept.add(which)
        assert vit.preprocessing == {"old": old, "new": new}[which].preprocessing
        cv.export(new, folder, to=to)
        assert (cv.load_vit(folder)(x) - new(x)).abs().max() < 1e-5
        assert (folder / "notes.txt").read_text() == "mine"
        if killed <= kill_at:
            break
    assert killed >= 3
    assert kept == {"old", "new"}


def kill_in(patch, folder, kill_at):
    """Interrupts before a file is moved into a folder or deleted from it: the how-manieth."""
    count = itertools.count()

    def interrupted(act):
        def acted(path, *target, **options):
            inside = folder in (path.parent, *(Path(each).parent for each in target))
            if inside and next(count) == kill_at:
                raise KeyboardInterrupt
            return act(path, *target, **options)

        return acted

    for name in ("rename", "replace", "unlink"):
        patch.setattr(Path, name, interrupted(getattr(Path, name)))


@pytest.mark.parametrize("back", [cv.to_timm, cv.to_transformers])
def test_class_names_that_do_not_fit_stay_behind_aloud(back):
    vit = random_vit(shape(channels=3))
    vit.preprocessing = cv.Preprocessing((0.1,), (0.2,), class_names=("a", "b"))
    with pytest.warns(UserWarning, match="there are 2 class names for 4 classes") as told:
        module = back(vit)
    assert len(told) == 1
    assert vit.preprocessing.class_names == ("a", "b")
    if back is cv.to_timm:
        assert "label_names" not in module.pretrained_cfg
        assert module.pretrained_cfg["mean"] == (0.1,) * 3
    else:
        assert module.config.num_labels == 4
        assert module.config.id2label[0] == "LABEL_0"
