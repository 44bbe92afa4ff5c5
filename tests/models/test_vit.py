import json

import numpy as np
import pytest
import torch
from random_models import SHAPES, TINY, agree, random_images, random_vit, shape
from torch.nn import functional as F

import circuitvit as cv


def numpy_logits(vit, images):
    """The textbook forward pass in numpy, head by head."""
    c = vit.config
    w = {name: tensor.detach().numpy() for name, tensor in vit.state_dict().items()}

    def norm(x, prefix):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.layer_norm_eps)
        return x * w[f"{prefix}.weight"] + w[f"{prefix}.bias"]

    def act(x):
        if c.activation == "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        if c.activation == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(torch.tensor(x) / 2**0.5).numpy())

    p, n = c.patch_size, c.image_size // c.patch_size
    patches = (
        images.numpy().reshape(len(images), c.channels, n, p, n, p).transpose(0, 2, 4, 1, 3, 5)
    )
    x = (
        patches.reshape(len(images), n * n, -1) @ w["patch.weight"].reshape(c.width, -1).T
        + w["patch.bias"]
    )
    prefix = [
        w[name].reshape(-1, c.width) for name in ("class_token", "register_tokens") if name in w
    ]
    prefix = [np.broadcast_to(t, (len(images), *t.shape)) for t in prefix]
    x = np.concatenate([*prefix, x], 1) + w["positions"]
    x = norm(x, "embed_norm") if c.embed_norm else x
    for b in range(c.depth):
        name, added = f"blocks.{b}", 0
        if c.heads[b]:
            y, d = norm(x, f"{name}.ln1"), c.head_width[b]
            qkv = y @ w[f"{name}.attention.qkv.weight"].T + w.get(f"{name}.attention.qkv.bias", 0)
            qkv = qkv.reshape(*y.shape[:2], 3, c.heads[b], d)
            for h in range(c.heads[b]):
                q, k, v = (qkv[:, :, i, h] for i in range(3))
                if c.qk_norm:
                    q, k = norm(q, f"{name}.attention.q_norm"), norm(k, f"{name}.attention.k_norm")
                scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(d))
                z = scores / scores.sum(-1, keepdims=True) @ v
                added = added + z @ w[f"{name}.attention.out.weight"][:, h * d : (h + 1) * d].T
        x = x + added + w.get(f"{name}.output_bias", 0) + w.get(f"{name}.attention_constant", 0)
        if c.mlp_width[b]:
            y = norm(x, f"{name}.ln2") @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
            x = x + act(y) @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
        x = x + w.get(f"{name}.mlp_constant", 0)
    first = c.class_token + c.register_tokens
    first = 0 if c.pooling == "mean_all" else first
    if c.fc_norm:
        x = norm(x[:, first:].mean(1), "final_norm")
    else:
        x = norm(x, "final_norm")
        beside = {
            "class": [x[:, 0]],
            "class_distillation": [x[:, 0], x[:, 1]],
            "class_mean": [x[:, 0], x[:, first:].mean(1)],
        }
        x = np.concatenate(beside.get(c.pooling, [x[:, first:].mean(1)]), 1)
    return x @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_vit_computes_the_textbook_forward_pass(name):
    vit = random_vit(shape(name), seed=3)
    images = random_images(vit, 5)
    expected = numpy_logits(vit, images)
    assert np.abs(vit(images).detach().numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_matters(name):
    vit = random_vit(shape(name), seed=3)
    images = random_images(vit, 5)
    expected = vit(images)
    for parameter_name, parameter in vit.named_parameters():
        if parameter_name.endswith("k_norm.bias"):
            continue  # it shifts all scores of a query alike, which softmax does not see
        with torch.no_grad():
            before = parameter.clone()
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
            assert (vit(images) - expected).abs().max() > 1e-6, parameter_name
            parameter.copy_(before)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_loads_as_it_was(name, dtype, tmp_path):
    vit = random_vit(shape(name), dtype=dtype)
    vit.save_pretrained(tmp_path / "model")
    loaded = cv.ViT.from_pretrained(tmp_path / "model")
    assert loaded.config == vit.config
    assert loaded.fingerprint() == vit.fingerprint()
    images = random_images(vit, 2)
    assert agree(loaded(images), vit(images))
    assert not loaded.training
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_saving_over_an_old_model_replaces_it(tmp_path):
    random_vit(shape("ragged")).save_pretrained(tmp_path)
    vit = random_vit(shape())
    vit.save_pretrained(tmp_path)
    assert cv.ViT.from_pretrained(tmp_path).fingerprint() == vit.fingerprint()


def test_a_damaged_folder_is_refused_with_the_reason(tmp_path):
    vit = random_vit(shape())
    vit.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(cv.CircuitError, match="missing or cut short"):
        cv.load_vit(tmp_path)
    weights.unlink()
    with pytest.raises(cv.CircuitError, match="missing or cut short"):
        cv.load_vit(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**json.loads(text), "mlp_width": [6, 7]}))
    with pytest.raises(
        cv.CircuitError, match=r"blocks.1.mlp.fc1.weight has shape \(6, 8\), expected \(7, 8\)"
    ):
        cv.load_vit(tmp_path)
    config.write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(cv.CircuitError, match="not the config of a ViT of circuitvit"):
        cv.load_vit(tmp_path)
    config.write_text(json.dumps({**json.loads(text), "activation": "quick_gelu"}))
    with pytest.raises(cv.CircuitError, match="is not the config that model.safetensors was saved"):
        cv.load_vit(tmp_path)
    for other in ("[{}]", "3", "null"):
        config.write_text(other)
        with pytest.raises(cv.CircuitError, match="not the config of a ViT of circuitvit"):
            cv.load_vit(tmp_path)
    config.write_text(text[:40])
    with pytest.raises(cv.CircuitError, match="cut short"):
        cv.load_vit(tmp_path)
    config.unlink()
    with pytest.raises(cv.CircuitError, match="there is no config.json"):
        cv.load_vit(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    for load in (cv.load_vit, cv.ViT.from_pretrained):
        with pytest.raises(cv.CircuitError, match="there is no such folder"):
            load(tmp_path / "nothing")


def test_an_unwritable_place_is_refused_and_nothing_stays_behind(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(cv.CircuitError, match="cannot write"):
        random_vit(shape()).save_pretrained(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_seed_draws_the_weights_and_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (cv.ViT(shape(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_images_of_another_shape_or_dtype_are_refused(as_users_call):
    vit = random_vit(shape())
    for images, message in (
        (
            torch.zeros(2, 1, 6, 6).double(),
            r"shape \(2, 1, 6, 6\), this model expects \[image, 1, 4, 4\]",
        ),
        (torch.zeros(1, 4, 4).double(), "add the image axis"),
        (torch.zeros(2, 1, 4, 4), "dtype torch.float32, this model's weights torch.float64"),
        (torch.zeros(2, 1, 4, 4).long(), "dtype torch.int64"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            vit(images)


def test_gradients_reach_every_parameter():
    for name in SHAPES:
        vit = random_vit(shape(name))
        F.cross_entropy(vit(random_images(vit, 3)), torch.tensor([0, 1, 2])).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in vit.parameters()), name


def test_an_empty_sub_layer_has_no_modules():
    vit = cv.ViT(cv.ViTConfig(**TINY, heads=(0,), head_width=1, mlp_width=0, output_bias=False))
    assert list(vit.blocks[0].parameters()) == []


def test_pushing_to_the_hub_uploads_the_saved_folder(monkeypatch, tmp_path):
    """With the network's part replaced: what would be uploaded loads back."""
    from huggingface_hub import hub_mixin

    uploaded = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            uploaded[repo_id] = cv.ViT.from_pretrained(folder_path)
            return "url"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    vit = random_vit(shape())
    assert vit.push_to_hub("me/vit") == "url"
    assert uploaded["me/vit"].fingerprint() == vit.fingerprint()
    assert vit.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/other") == "url"
    assert set(uploaded) == {"me/vit", "me/other"}
    with pytest.raises(cv.CircuitError, match="mean nothing without push_to_hub"):
        vit.save_pretrained(tmp_path / "b", repo="me/vit")
    assert not (tmp_path / "b").exists()


def test_a_vit_shows_itself_as_a_summary_and_its_modules_on_request():
    vit = random_vit(shape())
    count = sum(parameter.numel() for parameter in vit.parameters())
    told = "2 blocks, 2 heads, width 8, MLP 6, images 1×4×4 in patches of 2×2, 4 classes"
    assert repr(vit) == f"ViT({told}, {count:,} parameters)"
    vit.preprocessing = cv.Preprocessing(class_names=("a", "b", "c", "d"))
    assert repr(vit) == f"ViT({told}, {count:,} parameters, 4 class names)"
    assert "3 blocks, 1/0/3 heads, width 8, MLP 5/7/0," in repr(random_vit(shape("ragged")))
    assert "Linear(in_features=8" in torch.nn.Module.__repr__(vit)
    assert "Linear(in_features=8" in str(vit.blocks)
    assert repr(cv.HookedViT(vit)).count("ViT(2 blocks") == 1, "within another module too"
    assert repr(cv.ViT.__new__(cv.ViT)) == "ViT()"
