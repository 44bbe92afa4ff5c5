"""One of every public result and input object, and whether two of them hold the same."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import networkx as nx
import numpy as np
import torch
from random_models import random_images
from small_training import blobs, make_vit
from telling_pairs import telling_pairs, telling_vit
from torch import nn

import circuitvit as cv
from circuitvit.discover import Speedups
from circuitvit.graph.edge_graph import edges_of, node_named
from circuitvit.images import ANIMALS, ImageSet, Splits
from circuitvit.pretrained import examine
from circuitvit.train import Recipe

IMAGE_NAMES = ("a", "b", "c", "d")
BOOTSTRAP = {"bootstrap": 9}
TIMED = {"batches": (1, 2), "rounds": 3}


@cache
def made(name: str) -> Any:
    """The one of this name; the same at each call."""
    return MAKERS[name]()


def _vit() -> cv.ViT:
    return made("vit")


def _pairs() -> cv.Pairs:
    return made("pairs")


@cache
def _held_out() -> cv.Pairs:
    return telling_pairs(_vit(), 6, seed=5)


@cache
def _images() -> tuple[torch.Tensor, torch.Tensor]:
    return random_images(_vit(), 40), torch.arange(40) % 4


def _image_set() -> ImageSet:
    return ImageSet(_images()[0].float(), _images()[1], IMAGE_NAMES, made("preprocessing"))


def _circuits() -> dict[str, cv.Circuit]:
    return {"cat → dog": made("circuit"), "<i>owl|": made("scores").top(9, signed=True)}


@cache
def _models() -> dict[str, cv.ViT]:
    return {"dense": _vit(), "small <b>|": cv.prune_heads(_vit(), {0: [0], 1: [1]})}


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def _seeing() -> cv.ViT:
    vit = copy.deepcopy(_vit())
    vit.preprocessing = made("preprocessing")
    return vit


def _pixels() -> np.ndarray:
    config = _vit().config
    shape = (2, config.image_size, config.image_size, config.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _evaluated(**options: Any) -> cv.Evaluation:
    return cv.evaluate(_models(), *_images(), class_names=["a", "b", "<c>", "d|"], **options)


def _trained(**options: Any) -> Any:
    return cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=1, batch=16, **options))


MAKERS: dict[str, Callable[[], Any]] = {
    "vit": telling_vit,
    "config": lambda: _vit().config,
    "pairs": lambda: telling_pairs(_vit(), 6),
    "pairs with a recipe": lambda: cv.Pairs.by_class(
        made("image set"), clean="a", corrupt="b", count=3
    ),
    "image set": _image_set,
    "splits": lambda: Splits(*[made("image set")] * 3, skipped=("train image 17: broken",)),
    "preprocessing": lambda: cv.Preprocessing(std=(0.25,), class_names=IMAGE_NAMES),
    "recipe": lambda: Recipe(epochs=3, mixup=0.2),
    "node": lambda: node_named("a0.h1.q"),
    "edge": lambda: edges_of(_vit().config)[3],
    "edge graph": lambda: cv.edge_graph(_vit().config),
    "examination": lambda: examine(_vit()),
    "error": lambda: cv.CircuitError("a message"),
    "animal": lambda: ANIMALS[0],
    "speedups": Speedups,
    "scores": lambda: cv.eap(_vit(), _pairs()),
    "scores of neurons": lambda: cv.eap(_vit(), _pairs(), level="neuron"),
    "scores by position": lambda: cv.eap(_vit(), _pairs(), positions="class/patch", qkv="joint"),
    "circuit": lambda: made("scores").top(20),
    "circuit of no edges": lambda: cv.Circuit(_vit().config, ()),
    "provenance": lambda: made("circuit").provenance,
    "circuit graph": lambda: made("circuit").graph(),
    "class circuits": lambda: cv.ClassCircuits(_circuits(), settings={"tau": 0.1, "count": 3}),
    "overlap": lambda: cv.Overlap.of(_circuits()),
    "hooked": lambda: cv.HookedViT(_vit()),
    "masked": lambda: cv.MaskedViT(_vit(), made("circuit"), ablation="zero"),
    "circuit vit": lambda: cv.compile(_vit(), made("circuit"), level="edge", ablation="zero"),
    "curve": lambda: cv.faithfulness_curve(
        _vit(), made("scores"), _held_out(), controls=2, **BOOTSTRAP
    ),
    "curve of a circuit": lambda: cv.faithfulness_curve(
        _vit(), [made("circuit")], _held_out(), controls=0, **BOOTSTRAP
    ),
    "estimate": lambda: made("curve").cpr,
    "completeness": lambda: cv.completeness(
        _vit(), made("circuit"), _held_out(), knockouts=3, **BOOTSTRAP
    ),
    "minimality": lambda: cv.minimality(_vit(), made("circuit"), _held_out(), **BOOTSTRAP),
    "across ablations": lambda: cv.across_ablations(
        _vit(), _circuits(), _held_out(), reference=_images()[0], **BOOTSTRAP
    ),
    "report": lambda: cv.measure(_models(), *_images(), **TIMED),
    "report without times": lambda: cv.measure(_models(), *_images(), batches=()),
    "latency": lambda: made("report")["dense"].latency[1],
    "evaluation": lambda: _evaluated(**TIMED),
    "evaluation without times": lambda: _evaluated(batches=(), seed=3),
    "classification": lambda: made("evaluation")["dense"],
    "accuracy": lambda: made("classification").accuracy,
    "advice": lambda: made("evaluation").advice(),
    "advice within limits": lambda: made("evaluation").advice(max_parameters=1e9),
    "predictions": lambda: _seeing().predict(_pixels()),
    "prediction": lambda: _seeing().predict(_pixels()[0]),
    "onnx model": lambda: cv.OnnxModel(
        cv.export(_vit(), f"{_folder().name}/m.onnx", dtype=torch.float32)
    ),
    "history": lambda: _models()["small <b>|"].history,
    "costs": lambda: cv.measure_costs(_vit().config, batch=1, rounds=3),
    "cost": lambda: made("costs").rows[0],
    "savings": lambda: cv.savings(_vit(), made("circuit"), made("costs")),
    "savings without times": lambda: cv.savings(_vit(), made("circuit")),
    "saving": lambda: made("savings").dense,
    "figure": lambda: made("curve").figure(),
    "training": _trained,
    "training of an adapter": lambda: _trained(tune="adapter"),
    "adapter": lambda: made("training of an adapter").adapter,
    "adapted vit": lambda: made("training of an adapter").vit,
}


def same(one: Any, other: Any) -> bool:
    """Whether two things are of one type and hold the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, nn.Module):
        return _same_module(one, other)
    if isinstance(one, nx.Graph):
        ends = (dict(one.nodes(data=True)), dict(other.nodes(data=True)))
        return ends[0] == ends[1] and list(one.edges(data=True)) == list(other.edges(data=True))
    if isinstance(one, cv.Circuit):
        parts = ("config", "edges", "qkv", "provenance")
        return dict(one.scores) == dict(other.scores) and all(
            same(getattr(one, part), getattr(other, part)) for part in parts
        )
    if isinstance(one, Mapping):
        own = vars(one) if hasattr(one, "__dict__") else {}
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one) and all(
            same(value, vars(other)[name]) for name, value in own.items()
        )  # fmt: skip
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, Exception):
        return one.args == other.args
    return one == other


def _same_module(one: nn.Module, other: nn.Module) -> bool:
    own = [getattr(one, name, None) for name in ("config", "preprocessing", "training")]
    theirs = [getattr(other, name, None) for name in ("config", "preprocessing", "training")]
    return own == theirs and same(dict(one.state_dict()), dict(other.state_dict()))
