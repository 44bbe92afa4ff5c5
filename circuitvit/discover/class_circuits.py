"""A circuit for each class, or for pairs of classes, in one call."""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from circuitvit.checks import whole
from circuitvit.discover.acdc.acdc import acdc
from circuitvit.discover.acdc.resume import checked_name, lasting_name
from circuitvit.discover.eap.eap import METHODS, eap
from circuitvit.errors import CircuitError
from circuitvit.files import check_folder_writable, held, inside, writing_folder
from circuitvit.files.records import CLASS_CIRCUITS
from circuitvit.graph.circuit import Ablation, Circuit, Level
from circuitvit.graph.edge_graph import Qkv
from circuitvit.graph.overlap import Overlap, checked, shared_circuit
from circuitvit.images import ImageSet, Pairs, fingerprint
from circuitvit.images.pairs.pairing import PAIRS, Judge, class_index, places_by_class
from circuitvit.intervene.input_checks import check_ablation, check_circuit, check_vit
from circuitvit.intervene.metrics import Metric, metric_name
from circuitvit.models.vit import ViT
from circuitvit.preprocessing import class_name
from circuitvit.progress import progress
from circuitvit.torch_modes import in_default_modes

INDEX = "classes.json"
OWN_PLACE = r"[^/]+/circuit\.json"
"""Where `Store` puts circuits; files at other places are not its own to remove."""
LONGEST = 60


class ClassCircuits(Mapping[str, Circuit]):
    """Circuits by the class they are of: `cat`, or `cat → dog` for a pair of classes.

    Args:
        circuits: one or more, of one model or of models with the same edges.
        settings: how they were found; kept in the folder.

    Raises:
        CircuitError: none is given, or they are of models with different edges.
    """

    def __init__(
        self, circuits: Mapping[str, Circuit], *, settings: Mapping[str, Any] | None = None
    ) -> None:
        checked(circuits)
        self._circuits = dict(circuits)
        self._settings = dict(settings or {})

    def __getitem__(self, name: str) -> Circuit:
        return self._circuits[class_name(name) if isinstance(name, str) else name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._circuits)

    def __len__(self) -> int:
        return len(self._circuits)

    def __repr__(self) -> str:
        sizes = sorted(map(len, self.values()))
        return f"ClassCircuits({len(self)} circuits of {sizes[0]} to {sizes[-1]} edges)"

    def _repr_html_(self) -> str:
        return self.overlap()._repr_html_()

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the circuits were found: method, τ, metric, seed, fingerprints, …."""
        return MappingProxyType(self._settings)

    def pairs(self, images: ImageSet) -> dict[str, Pairs]:
        """The very pairs that each circuit was found on, made again.

        Args:
            images: the images that they were drawn from.

        Raises:
            CircuitError: the images are others than those, or a circuit has no recipe.
        """
        return {name: Pairs.remake(c.provenance.pairs, images) for name, c in self.items()}

    def overlap(self) -> Overlap:
        """The overlap of each two circuits."""
        return Overlap.of(self)

    def shared(self, share: float = 1.0) -> Circuit:
        """The edges that at least this share of the circuits have, as a circuit.

        Args:
            share: above 0 and at most 1; 1 is every circuit.

        Raises:
            CircuitError: `share` is out of range.
        """
        return shared_circuit(self, share)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write everything into a folder: a circuit.json each, and their overlap.

        `classes.json` lists the circuits; `overlap.json`, `overlap.md` and `overlap.html` say what
        they have in common.

        Raises:
            CircuitError: the folder can't be written.
        """
        with writing_folder(folder, owned=_written_before(folder)) as beside:
            store = Store(beside, self._settings)
            for name, circuit in self.items():
                circuit.save(beside / store.place(name))
            store.write_index()
            self.overlap().save(beside)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ClassCircuits":
        """Read what `save` wrote, or what `class_circuits(resume=folder)` has found so far.

        Args:
            folder: the folder, or `classes.json` in it.

        Raises:
            CircuitError: the folder or a circuit in it is missing, cut short or something else.
        """
        settings, places = read_index(folder)
        if not places:
            raise CircuitError(f"{folder} holds no circuits yet. Find some first.")
        home = CLASS_CIRCUITS.place(folder).parent
        circuits = {name: Circuit.load(inside(home, place)) for name, place in places.items()}
        return cls(circuits, settings=settings)


class Store:
    """The folder of circuits by class, to which they are added one by one.

    Attributes:
        folder: the folder.
        settings: how the circuits are found.
        places: where each circuit's file is, as a path inside the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = dict(settings)
        self.places: dict[str, str] = {}

    @classmethod
    def resumed(cls, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> "Store":
        """The store in a folder, with the circuits that are there already.

        Raises:
            CircuitError: what is there was found with other settings.
        """
        store = cls(folder, settings)
        if not (store.folder / INDEX).exists():
            return store
        theirs, store.places = read_index(store.folder)
        store.check_settings(theirs)
        return store

    def check_settings(self, theirs: Mapping[str, Any]) -> None:
        """Refuse circuits that were found with other settings.

        Raises:
            CircuitError: as it says; the settings that differ are named.
        """
        own = self.settings
        different = [key for key in own if theirs.get(key) != own[key]]
        if different:
            told = ", ".join(f"{k} {theirs.get(k)!r} there, {own[k]!r} here" for k in different)
            raise CircuitError(
                f"the circuits in {self.folder} were found with other settings ({told}). Name "
                "another folder, or remove it to start anew."
            )

    def kept(self, name: str, pairs: Pairs, model: str) -> Circuit | None:
        """The circuit of this name, if it is there and was found on these pairs and weights."""
        if name not in self.places or not inside(self.folder, self.places[name]).exists():
            return None
        circuit = Circuit.load(inside(self.folder, self.places[name]))
        origin = circuit.provenance
        same = origin.data == pairs.fingerprint() and origin.model in (None, model)
        return circuit if same else None

    def keep(self, name: str, circuit: Circuit) -> None:
        """Write a circuit into its file, then the list of all, also of what others have added."""
        with held(self.folder / INDEX, "a search for circuits by class", wait=True):
            if (self.folder / INDEX).exists():
                theirs, places = read_index(self.folder)
                self.check_settings(theirs)
                if name not in places and self.places.get(name) in places.values():
                    del self.places[name]  # taken by another process, for another name
                self.places = {**self.places, **places}
            circuit.save(inside(self.folder, self.place(name)))
            self.write_index()

    def write_index(self) -> None:
        """Write the list of all circuits."""
        body = {"settings": self.settings, "circuits": self.places}
        CLASS_CIRCUITS.write(self.folder / INDEX, body)

    def place(self, name: str) -> str:
        """The folder of a circuit's file, named after it as far as file systems allow."""
        if name not in self.places:
            plain = re.sub(r"[^\w-]+", "-", name.replace("→", "to")).strip("-")[:LONGEST]
            taken = {place.casefold() for place in self.places.values()}
            number, place = 1, f"{plain or 'class'}/circuit.json"
            while place.casefold() in taken:
                number += 1
                place = f"{plain or 'class'}-{number}/circuit.json"
            self.places[name] = place
        return self.places[name]


def read_index(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and the places of the circuits in a folder.

    Raises:
        CircuitError: it is not a folder of circuits by class.
    """
    body = CLASS_CIRCUITS.read(folder)
    settings: Any = body.get("settings")
    places: Any = body.get("circuits")
    whole = isinstance(settings, dict) and isinstance(places, dict)
    if not whole or not all(isinstance(place, str) for place in places.values()):
        raise CircuitError(
            f"{CLASS_CIRCUITS.place(folder)} was damaged or altered. Find the circuits again."
        )
    for place in places.values():
        inside(CLASS_CIRCUITS.place(folder).parent, place)
    return settings, places


def _written_before(folder: str | os.PathLike[str]) -> list[str]:
    """The files of the circuits that were saved in a folder before."""
    try:
        places = read_index(folder)[1].values()
        return [glob.escape(place) for place in places if re.fullmatch(OWN_PLACE, place)]
    except CircuitError:  # there is none, or it is damaged
        return []


One = str | int | tuple[str | int, str | int]
"""A class against all others, or a pair (clean, corrupt) of classes."""
Find = str | Callable[[ViT, Pairs], Circuit]
SEARCH = "search.json"
PROBLEMS_TOLD = 12


@in_default_modes
def class_circuits(
    vit: ViT,
    images: ImageSet,
    *,
    classes: One | Iterable[One] | None = None,
    find: Find = "acdc",
    tau: float = 0.01,
    edges: int | None = None,
    count: int | None = None,
    seed: int = 0,
    metric: Metric | None = None,
    ablation: Ablation = "patch",
    level: Level = "edge",
    qkv: Qkv = "split",
    reference: Tensor | None = None,
    right_for: Any = None,
    resume: str | os.PathLike[str] | None = None,
) -> ClassCircuits:
    """Find the circuit of one class, of a pair of classes, or of every class.

    A class's circuit is found on `Pairs.by_class`: clean images of the class, each with a corrupt
    one of another class.

    Args:
        vit: the model; it is not changed.
        images: where the pairs are drawn from, with the classes in the order of the logits.
        classes: None is every class against all others; a name or number is that class against all
            others; a tuple (clean, corrupt) is a pair of classes; a list is several of these.
        find: `acdc`; a method of `eap`, whose best `edges` are taken; or a callable from a model
            and pairs to a circuit, which alone decides how.
        tau: of `acdc`.
        edges: how many edges (or nodes or blocks, by `level`) to take by |score|; with methods of
            `eap` only, which need it.
        count: pairs for each circuit; None is 64, or all there are of a class.
        seed: draws the pairs, and the scores of `random`.
        metric: a name or a callable; None is `kl` for `acdc` and `logit_difference` for `eap`.
        ablation: what removed edges carry.
        level: what is tried or scored.
        qkv: whether a head's query, key and value read apart.
        reference: images for `mean`.
        right_for: a model (best `vit` itself) or a mask [image]; draw only images that it gets
            right.
        resume: a folder in which each circuit is written as soon as it is found; circuits that are
            there already, found with the same settings on the same pairs, are kept. A killed ACDC
            goes on where it was. Callables are known by their names, so they need one: a lambda or
            a function within a function is refused.

    Returns:
        The circuits by name, in the order asked for: `cat`, or `cat → dog` for a pair of classes.

    Raises:
        CircuitError: a class is unknown, has no (or too few right) images or is asked for twice,
            the options don't go together, or `resume` holds circuits of other settings; or as
            `acdc` and `eap`.
    """
    check_vit(vit)
    if not isinstance(images, ImageSet):
        raise CircuitError(
            f"images are a {type(images).__name__}, expected an ImageSet, such as "
            "load_splits(...).train."
        )
    check_ablation(ablation, corrupt=images.images, reference=reference)
    search = Search(vit, find, tau, edges, seed, metric, ablation, level, qkv, reference)
    search.check()
    if resume is not None:
        search.check_resumable()
        check_folder_writable(resume)
    judge = Judge.of(images, right_for)
    tasks = _tasks(images, classes, count=count, seed=seed, judge=judge)
    settings = {**search.settings(), "count": PAIRS if count is None else count, "seed": seed}
    settings |= {"images": images.fingerprint(), "right_for": judge.name}
    store = None if resume is None else Store.resumed(resume, settings)
    found: dict[str, Circuit] = {}
    with progress("Class circuits", len(tasks)) as advance:
        for name, (clean, corrupt) in tasks.items():
            pairs = Pairs.by_class(
                images, clean=clean, corrupt=corrupt, count=count, seed=seed, right_for=judge
            )
            found[name] = search.resumed(name, pairs, store)
            advance(f"{name}: {len(found[name])} edges")
    return ClassCircuits(found, settings=settings)


@dataclass(frozen=True)
class Search:
    """The options of each search; fields as of `class_circuits`."""

    vit: ViT
    find: Find
    tau: float
    edges: int | None
    seed: int
    metric: Metric | None
    ablation: Ablation
    level: Level
    qkv: Qkv
    reference: Tensor | None

    def check(self) -> None:
        """Refuse options that exclude each other.

        Raises:
            CircuitError: as it says.
        """
        if not callable(self.find) and self.find not in ("acdc", *METHODS):
            raise CircuitError(
                f"find is {self.find!r}, expected 'acdc', one of {METHODS}, or a callable from a "
                "model and pairs to a circuit."
            )
        if callable(self.find) and self.metric is not None:
            raise CircuitError(
                "metric is for acdc and the methods of eap; a callable as find decides for itself. "
                "Leave metric out, or use it in the callable."
            )
        if self.find in METHODS:
            if self.edges is None or whole(self.edges, "edges") < 1:
                raise CircuitError(
                    f"edges is {self.edges}, expected how many of the edges that {self.find!r} "
                    "scores best to take, ≥ 1."
                )
        elif self.edges is not None:
            raise CircuitError(
                "edges is for methods of eap, such as find='eap'. With acdc, tau decides how many "
                "edges there are; a callable decides for itself."
            )

    def check_resumable(self) -> None:
        """Refuse a custom method or metric that another run can't recognise.

        Raises:
            CircuitError: as it says.
        """
        checked_name(self.find, "find")
        if isinstance(self.find, str):
            checked_name(self._metric, "metric")

    def settings(self) -> dict[str, Any]:
        """The settings that are recorded, and must agree for stored circuits to be kept."""
        told: dict[str, Any] = {"find": self.find, "model": self.vit.fingerprint()}
        if not isinstance(self.find, str):
            name = getattr(self.find, "__name__", type(self.find).__name__)
            return told | {"find": lasting_name(self.find) or name}
        amount = {"tau": self.tau} if self.find == "acdc" else {"edges": self.edges}
        mean = self.ablation == "mean" and self.reference is not None
        return told | amount | {
            "metric": lasting_name(self._metric) or metric_name(self._metric),
            "ablation": self.ablation,
            "level": self.level,
            "qkv": self.qkv,
            "reference": fingerprint(self.reference) if mean else None,
        }  # fmt: skip

    @property
    def _metric(self) -> Metric:
        if self.metric is not None:
            return self.metric
        return "kl" if self.find == "acdc" else "logit_difference"

    def resumed(self, name: str, pairs: Pairs, store: Store | None) -> Circuit:
        """The circuit of some pairs: the one in the store, else searched for and put there."""
        if store is None:
            return self.circuit(pairs)
        known = store.kept(name, pairs, self.vit.fingerprint())
        if known is not None:
            return known
        notes = inside(store.folder, store.place(name)).with_name(SEARCH)
        circuit = self.circuit(pairs, notes)
        store.keep(name, circuit)
        notes.unlink(missing_ok=True)
        return circuit

    def circuit(self, pairs: Pairs, notes: Path | None = None) -> Circuit:
        """The circuit of some pairs; ACDC takes notes in a file."""
        if callable(self.find):
            return self._own(self.find, pairs)
        options: dict[str, Any] = {
            "metric": self._metric, "ablation": self.ablation, "level": self.level,
            "qkv": self.qkv, "reference": self.reference,
        }  # fmt: skip
        if self.find == "acdc":
            return acdc(self.vit, pairs, tau=self.tau, resume=notes, **options)
        scores = eap(self.vit, pairs, method=self.find, seed=self.seed, **options)
        assert self.edges is not None
        return scores.top(self.edges)

    def _own(self, find: Callable[[ViT, Pairs], Circuit], pairs: Pairs) -> Circuit:
        """The circuit of the caller's own method, with the pairs that it was found on."""
        circuit = find(self.vit, pairs)
        check_circuit(self.vit, circuit)
        data, recipe = pairs.fingerprint(), pairs.recipe
        origin = replace(circuit.provenance, data=data, pairs=recipe, images=len(pairs))
        return Circuit(
            circuit.config, circuit.edges, qkv=circuit.qkv, scores=circuit.scores, provenance=origin
        )


Task = tuple[str | int, str | int | None]
"""The class of the clean images, and that of the corrupt ones, if it is one alone."""


def _tasks(
    images: ImageSet, classes: Any, *, count: int | None, seed: int, judge: Judge
) -> dict[str, Task]:
    """The searches to do, by name; all problems are reported together."""
    tasks, problems = dict[str, Task](), list[str]()
    for asked in _each(images, classes):
        try:
            name, task = _task(images, asked)
            if name in tasks:
                raise CircuitError(f"{name!r} is asked for twice.")
            clean, corrupt = tasks[name] = task
            places_by_class(
                images, clean=clean, corrupt=corrupt, count=count, seed=seed, judge=judge
            )
        except CircuitError as cause:
            problems.append(f"{asked!r}: {str(cause).rstrip('.')}")
    if problems:
        rest = len(problems) - PROBLEMS_TOLD
        more = [f"and {rest} more such problems"] if rest > 0 else []
        raise CircuitError(
            "there can't be a circuit for each of these classes: "
            + "; ".join([*problems[:PROBLEMS_TOLD], *more])
            + "."
        )
    if not tasks:
        raise CircuitError("no class is asked for. Name one or more, or leave classes out for all.")
    return tasks


def _each(images: ImageSet, classes: Any) -> Iterator[Any]:
    if classes is None:
        counts = Counter(images.class_names)
        yield from (
            name if counts[name] == 1 else index for index, name in enumerate(images.class_names)
        )
    elif isinstance(classes, str | int | tuple) or not isinstance(classes, Iterable):
        yield classes
    else:
        yield from classes


def _task(images: ImageSet, asked: Any) -> tuple[str, Task]:
    """The name and the classes of a requested circuit.

    Raises:
        CircuitError: it is neither a class nor a pair of classes.
    """
    if not isinstance(asked, tuple):
        index = class_index(images, asked, "the class")
        return _name(images, index), (_key(images, index), None)
    if len(asked) != 2:
        raise CircuitError(
            f"a tuple of {len(asked)} is no pair (clean, corrupt) of classes. Give a list for "
            "several classes."
        )
    clean = class_index(images, asked[0], "clean")
    corrupt = class_index(images, asked[1], "corrupt")
    name = f"{_name(images, clean)} → {_name(images, corrupt)}"
    return name, (_key(images, clean), _key(images, corrupt))


def _key(images: ImageSet, index: int) -> str | int:
    """The class's name, or its number where two classes are called the same."""
    name = images.class_names[index]
    return name if images.class_names.count(name) == 1 else index


def _name(images: ImageSet, index: int) -> str:
    """The name of its circuit."""
    key = _key(images, index)
    return key if isinstance(key, str) else f"{images.class_names[index]} ({index})"
