"""One of every kind of file and folder that circuitvit reads, made small, and how each is read."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import circuitvit as cv

SHAPE = dict(
    image_size=8, patch_size=4, channels=1, classes=10, width=8, depth=2, heads=2, mlp_width=6
)
NAMES = tuple(
    f"digit {word}"
    for word in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "né"]
)
RECIPE = dict(epochs=2, batch=8, warmup_epochs=0, augment=False)


def vit(seed: int = 0, **changes: Any) -> cv.ViT:
    """A model whose every weight, name and mean the seed draws."""
    model = cv.ViT(cv.ViTConfig(**(SHAPE | changes)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=generator))
    names = NAMES if seed == 0 else tuple(f"{name} of {seed}" for name in NAMES)
    model.preprocessing = cv.Preprocessing(mean=(0.1 + seed / 100,), std=(0.5,), class_names=names)
    return model.eval()


@cache
def images(count: int = 24) -> cv.ImageSet:
    """Drawn images; each class is there."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(count, 1, 8, 8, generator=generator)
    return cv.ImageSet(drawn, torch.arange(count) % 10, NAMES, vit().preprocessing)


def pairs() -> cv.Pairs:
    return cv.Pairs.by_class(images(), count=4, seed=0)


def circuit(seed: int = 0) -> cv.Circuit:
    return scores(seed).top(20)


@cache
def scores(seed: int = 0) -> cv.EdgeScores:
    return cv.eap(vit(seed), pairs())


def small(seed: int = 0) -> Any:
    """A model that `compile` made of a circuit's very edges."""
    return cv.compile(vit(seed), circuit(seed), level="edge", ablation="zero")


def adapted(folder: Path | None = None) -> Any:
    return cv.train(
        vit(), images(), images(), cv.Recipe(**RECIPE, tune="adapter", adapter_width=2),
        folder=folder, progress=False,
    )  # fmt: skip


def report(seed: int = 0) -> cv.Report:
    data = images(8)
    models = {f"dense {seed}": vit(seed), f"other {seed}": vit(seed + 1)}
    return cv.measure(models, data.images, data.labels, batches=(1,), rounds=3)


def evaluation(seed: int = 0) -> cv.Evaluation:
    data = images(8)
    models = {f"dense {seed}": vit(seed), f"other {seed}": vit(seed + 1)}
    return cv.evaluate(
        models, data.images, data.labels, class_names=NAMES, batches=(1,), rounds=3
    )  # fmt: skip


def class_circuits(seed: int = 0, **options: Any) -> Any:
    return cv.class_circuits(
        vit(seed), images(), find="eap", edges=9, count=2, **({"classes": [0, 1]} | options)
    )


def overlap(seed: int = 0) -> cv.Overlap:
    return class_circuits(seed).overlap()


@cache
def costs() -> cv.Costs:
    return cv.measure_costs(vit().config, batch=1, rounds=3)


def trained(folder: Path) -> Any:
    """A training that is over, so that reading its checkpoint is all that is left to do."""
    return cv.train(
        vit(), images(), images(), cv.Recipe(**RECIPE), folder=folder, progress=False
    ).vit  # fmt: skip


def searched(path: Path) -> Any:
    return cv.acdc(vit(), pairs(), tau=0.05, resume=path)


def pictures(folder: Path, suffix: str = "png") -> Path:
    for index in range(12):
        path = folder / "abc"[index % 3] / f"{index}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(index).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(path)
    return folder


def _parquet(path: Path) -> None:
    from datasets import Dataset, Features
    from datasets import Image as Pictures

    data = pictures(path.parent / "of")
    rows = [str(file) for file in sorted(data.rglob("*.png"))]
    features = Features({"image": Pictures()})
    made = Dataset.from_dict({"image": [{"path": r, "bytes": Path(r).read_bytes()} for r in rows]})
    made = made.cast(features).add_column("label", [i % 3 for i in range(len(rows))])
    made.to_parquet(path)


def _npz(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    np.savez(path, images=values, labels=np.arange(12) % 3)


def _foreign() -> nn.Module:
    return cv.to_timm(vit())


def splits(source: Path, cache: Path | None = None) -> Any:
    return cv.load_splits(str(source), image_size=8, cache=cache)


def _cached(folder: Path) -> Any:
    return splits(folder.parent / "pictures", folder)


def _cache(folder: Path) -> None:
    pictures(folder.parent / "pictures")
    _cached(folder)


@dataclasses.dataclass(frozen=True)
class Specimen:
    """A kind of file or folder.

    Attributes:
        name: of the file or folder; it lies in a folder of its own kind.
        make: writes it at a path.
        load: what it holds, or a CircuitError.
        guarded: whether a digest or checksum tells that it was altered.
        command: the command line that reads it, where `{}` stands for its path.
        never_refused: whether a damaged one is as good as none.
    """

    name: str
    make: Callable[[Path], Any]
    load: Callable[[Path], Any]
    guarded: bool = False
    command: tuple[str, ...] = ()
    never_refused: bool = False


INSPECT = ("inspect", "{}")
TRAIN = ("train", "{}.run", "--data", "{}", "--image-size", "8", "--patch-size", "4", "--width", "4",
         "--depth", "1", "--heads", "1", "--mlp-width", "4", "--epochs", "1", "--batch", "2")  # fmt: skip
KINDS: dict[str, Specimen] = {
    "model": Specimen(
        "model", lambda p: vit().save_pretrained(p), lambda p: cv.load_vit(p), True, INSPECT
    ),
    "circuit model": Specimen(
        "small", lambda p: small().save_pretrained(p), cv.CircuitViT.from_pretrained, True
    ),
    "adapter": Specimen(
        "adapter.safetensors", lambda p: adapted().adapter.save(p), cv.Adapter.load, True
    ),
    "checkpoint": Specimen("run", trained, trained, True),
    "pairs": Specimen("pairs.safetensors", lambda p: pairs().save(p), cv.Pairs.load, True),
    "circuit": Specimen(
        "circuit.json", lambda p: circuit().save(p), cv.Circuit.load, True,
        ("draw", "{}", "{}.html"),
    ),
    "scores": Specimen("scores.json", lambda p: scores().save(p), cv.EdgeScores.load, True),
    "class circuits": Specimen(
        "classes", lambda p: class_circuits().save(p), cv.ClassCircuits.load
    ),
    "overlap": Specimen("overlap", lambda p: overlap().save(p), cv.Overlap.load),
    "curve": Specimen(
        "curve.json",
        lambda p: cv.faithfulness_curve(vit(), scores(), pairs(), shares=[0.1, 0.5], controls=1, bootstrap=5).save(p),
        cv.Curve.load,
    ),
    "completeness": Specimen(
        "completeness.json",
        lambda p: cv.completeness(vit(), circuit(), pairs(), knockouts=2, bootstrap=5).save(p),
        cv.Completeness.load,
    ),
    "minimality": Specimen(
        "minimality.json",
        lambda p: cv.minimality(vit(), circuit(), pairs(), bootstrap=5).save(p),
        cv.Minimality.load,
    ),
    "across ablations": Specimen(
        "across.json",
        lambda p: cv.across_ablations(vit(), circuit(), pairs(), ablations=("patch", "zero"), bootstrap=5).save(p),
        cv.AcrossAblations.load,
    ),
    "report": Specimen("report", lambda p: report().save(p), cv.Report.load),
    "evaluation": Specimen("evaluation", lambda p: evaluation().save(p), cv.Evaluation.load),
    "costs": Specimen("costs.json", lambda p: costs().save(p), cv.Costs.load),
    "savings": Specimen(
        "savings", lambda p: cv.savings(vit(), circuit(), costs()).save(p), cv.Savings.load
    ),
    "search": Specimen("search.json", searched, searched),
    "cache": Specimen("cache", _cache, _cached, True, never_refused=True),
    "timm folder": Specimen(
        "timm", lambda p: cv.export(vit(), p, to="timm"), lambda p: cv.load_vit(p), False, INSPECT
    ),
    "transformers folder": Specimen(
        "transformers", lambda p: cv.export(vit(), p, to="transformers"),
        lambda p: cv.load_vit(p), False, INSPECT,
    ),
    "torch checkpoint": Specimen(
        "weights.pt", lambda p: torch.save(_foreign().state_dict(), p),
        lambda p: cv.load_vit(p, heads=2), False, (*INSPECT, "--heads", "2"),
    ),
    "safetensors checkpoint": Specimen(
        "weights.safetensors", lambda p: save_file(_foreign().state_dict(), p),
        lambda p: cv.load_vit(p, heads=2), False, (*INSPECT, "--heads", "2"),
    ),
    "arrays": Specimen("images.npz", _npz, splits, False, TRAIN),
    "parquet": Specimen("images.parquet", _parquet, splits, False, TRAIN),
    "pictures": Specimen("pictures", pictures, splits, False, TRAIN),
    "jpegs": Specimen("pictures", lambda p: pictures(p, "jpg"), splits),
}  # fmt: skip


def plain(value: Any) -> Any:
    """What two equal results have in common, as JSON values."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().contiguous()
        bits = array.flatten().view(torch.uint8).numpy().tobytes()
        return [str(array.dtype), list(array.shape), hashlib.sha256(bits).hexdigest()[:16]]
    if isinstance(value, nn.Module):
        seen = getattr(value, "preprocessing", None)
        return [value.shape_as_dict(), plain(dict(value.state_dict())), plain(seen)]  # type: ignore
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, cv.Circuit):
        return [
            list(value.edges),
            plain(value.scores),
            plain(value.config),
            plain(value.provenance),
        ]
    if isinstance(value, cv.EdgeScores):
        return [dict(value), plain(value.config), plain(value.provenance)]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return repr(value)


def read(kind: str, path: str) -> str:
    """A digest of what a file or folder holds, and how many warnings there were."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        held = plain(KINDS[kind].load(Path(path)))
    told = sum(issubclass(each.category, UserWarning) for each in caught)
    return f"{hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()} {told}"


def words(kind: str, path: Path) -> list[str]:
    """The command line that reads a file or folder; none if there is no such command."""
    return [word.replace("{}", str(path)) for word in KINDS[kind].command]


def make_all(folder: str) -> None:
    """Make every kind, each in a folder of its own."""
    for kind, specimen in KINDS.items():
        place = Path(folder) / kind
        place.mkdir(parents=True)
        try:
            specimen.make(place / specimen.name)
        except Exception as cause:
            raise RuntimeError(f"{kind} can't be made") from cause


def warm_up() -> None:
    """Import what cases would import, so that none pays for it."""
    for name in cv.__all__:
        getattr(cv, name)
    for name in (
        "timm", "transformers", "sklearn.datasets", "datasets", "plotly.graph_objects", "pyarrow.parquet",
        "circuitvit.cli", "circuitvit.demo", "torchvision.transforms.v2", "PIL.PngImagePlugin",
        "PIL.JpegImagePlugin", "datasets.arrow_dataset", "huggingface_hub",
    ):  # fmt: skip
        import_module(name)
    import tempfile

    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        path = Path(folder) / "model"
        vit().save_pretrained(path)
        cv.load_vit(path)
        cv.export(vit(), Path(folder) / "timm", to="timm")
        cv.export(vit(), Path(folder) / "transformers", to="transformers")
        cv.load_vit(Path(folder) / "transformers")
        splits(pictures(Path(folder) / "pictures"))
        circuit().to_html(Path(folder) / "circuit.html")
