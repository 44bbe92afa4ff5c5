"""Circuits of several classes of one model: a mapping, its folder, and what they have in common."""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files import held, inside, writing_folder
from circuitvit.files.records import CLASS_CIRCUITS
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.overlap import Overlap, checked, shared_circuit
from circuitvit.images import ImageSet, Pairs
from circuitvit.preprocessing import class_name

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
        """What the circuits have in common, two by two."""
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
        """Where a circuit's file goes: a folder named after it, as far as file systems allow."""
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
