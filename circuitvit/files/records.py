"""Results as JSON files: their kinds, reading, writing and checks.

A record is a JSON object with its kind (`format`), the version of that kind (`schema`) and its
fields, and a checksum of these. `circuitvit.files.restoring` makes values of them.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError, in_short
from circuitvit.files import finish_save, plain_json, read_json, readable_path, write_json
from circuitvit.files.reading import parsed
from circuitvit.files.troubles import bad_path


@dataclass(frozen=True)
class RecordKind:
    """A kind of file.

    Attributes:
        mark: the `format` of its files.
        named: what one is called, with its article.
        reader: what reads it, as a user writes it.
        again: how to come by another file.
        schema: the version that this circuitvit writes and reads.
        short: its name before the word `schema`, where `named` is long.
        sealed: whether its files always had a checksum; those of other kinds came to it later.
        file: its file's name, where `save` writes a folder.
        fields: what files of before there were marks are known by.
    """

    mark: str
    named: str
    reader: str
    again: str
    schema: int = 1
    short: str | None = None
    sealed: bool = False
    file: str | None = None
    fields: frozenset[str] | None = None

    @property
    def noun(self) -> str:
        """The name of the kind, without the article."""
        return self.named.removeprefix("a ").removeprefix("an ")

    def marked(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields with the mark and the schema in front of them, and their checksum behind."""
        body = self._body(fields)
        try:
            return body | {"checksum": checksum(plain_json(body))}
        except CircuitError:  # values that no file can hold
            return body

    def _body(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in fields.items() if name != "checksum"}
        return {"format": self.mark, "schema": self.schema, **own}

    def place(self, path: str | os.PathLike[str]) -> Path:
        """The file itself, where the folder that `save` wrote is named."""
        if not isinstance(path, str | os.PathLike):
            raise CircuitError(
                f"path is a {type(path).__name__}, expected the path of {self.named}."
            )
        given = readable_path(path, self.noun)
        return given / self.file if self.file and given.is_dir() else given

    def write(self, path: str | os.PathLike[str], fields: Mapping[str, Any]) -> Path:
        """Write a record in one step and return its path.

        Raises:
            CircuitError: the file can't be written, or a value is none of JSON's.
        """
        body = plain_json(self._body(fields))
        return write_json(path, {**body, "checksum": checksum(body)})

    def read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Read a record's fields, without mark, schema and checksum.

        Raises:
            CircuitError: the file is missing, cut short, altered, of another kind or of a newer
                version.
        """
        fields, check = self.opened(path)
        check(())
        return fields

    def opened(
        self, path: str | os.PathLike[str]
    ) -> tuple[dict[str, Any], Callable[[Collection[str]], None]]:
        """Read a record's fields, and what checks them: called with the fields not understood.

        Where nothing but fields that this version doesn't know was added, the rest is as it was.

        Raises:
            CircuitError: as `read` does, and the check does where fields were altered.
        """
        source = self.place(path)
        finish_save(source.parent)
        body = self._json(source)
        if record_kind(body) is not self:
            told = recognised(source)
            raise CircuitError(
                f"{source} is not {self.named}: it lacks the mark {self.mark!r}. "
                + (f"It is {told}." if told else f"Name another file, or {self.again}.")
            )
        schema = body.get("schema", self.schema if self.fields else None)
        if type(schema) is not int or schema != self.schema:
            raise CircuitError(
                f"{source} has {self.short or self.noun} schema {in_short(schema, most=60)}, this "
                f"version reads {self.schema}. Update circuitvit, or {self.again}."
            )
        seal = body.pop("checksum", None)
        marked = self._body(body)

        def check(surplus: Collection[str]) -> None:
            if seal is None and not self.sealed:  # of a version that wrote none
                return
            added = () if self.sealed else surplus
            if seal not in (checksum(marked), checksum(without(marked, added))):
                raise CircuitError(
                    f"{source} was altered after it was saved: its checksum does not match. "
                    "Take the file from its source again."
                )

        return {n: value for n, value in body.items() if n not in ("format", "schema")}, check

    def _json(self, source: Path) -> Any:
        try:
            return read_json(source, what=self.noun)
        except CircuitError as cause:
            if isinstance(cause.__cause__, FileNotFoundError):
                names = _records_in(source.parent)
                held = f" Its folder holds {names}." if names else ""
                if (source.parent / "config.json").is_file():
                    held = f" {source.parent} is {_MODEL}."
                raise CircuitError(f"{cause}{held}") from cause
            told = recognised(source)
            if told is None:
                raise
            raise CircuitError(f"cannot read the {self.noun} at {source}: it is {told}.") from cause


CIRCUIT = RecordKind(
    "circuitvit.circuit", "a circuit", "Circuit.load", "find the circuit again", sealed=True
)
SCORES = RecordKind(
    "circuitvit.scores", "a table of scores", "EdgeScores.load", "score the edges again",
    short="score", sealed=True,
)  # fmt: skip
CLASS_CIRCUITS = RecordKind(
    "circuitvit.class_circuits", "a list of circuits by class", "ClassCircuits.load",
    "find the circuits again", short="list", file="classes.json",
)  # fmt: skip
OVERLAP = RecordKind(
    "circuitvit.overlap", "an overlap of circuits", "Overlap.load",
    "compare the circuits again", short="overlap", file="overlap.json",
)  # fmt: skip
CURVE = RecordKind(
    "circuitvit.faithfulness_curve", "a faithfulness curve", "Curve.load", "draw the curve again",
    short="curve",
)  # fmt: skip
COMPLETENESS = RecordKind(
    "circuitvit.completeness", "a test of completeness", "Completeness.load",
    "test the circuit again", short="completeness",
)  # fmt: skip
MINIMALITY = RecordKind(
    "circuitvit.minimality", "a test of minimality", "Minimality.load", "test the circuit again",
    short="minimality",
)  # fmt: skip
ACROSS_ABLATIONS = RecordKind(
    "circuitvit.across_ablations", "a comparison of ablations", "AcrossAblations.load",
    "compare the ablations again", short="comparison",
)  # fmt: skip
REPORT = RecordKind(
    "circuitvit.report", "a report", "Report.load", "measure the models again",
    file="report.json", fields=frozenset({"rows", "baseline", "null", "machine"}),
)  # fmt: skip
EVALUATION = RecordKind(
    "circuitvit.evaluation", "an evaluation", "Evaluation.load", "evaluate the models again",
    file="report.json",
)  # fmt: skip
COSTS = RecordKind(
    "circuitvit.costs", "a table of costs", "Costs.load", "measure again", short="cost"
)  # fmt: skip
SAVINGS = RecordKind(
    "circuitvit.savings", "a table of savings", "Savings.load", "compute the savings again",
    short="savings", file="savings.json", fields=frozenset({"rows", "dense", "left", "batch"}),
)  # fmt: skip
SEARCH = RecordKind(
    "circuitvit.acdc", "a record of a search", "acdc(…, resume=path)",
    "remove the file to start anew", short="search",
)  # fmt: skip
KINDS = (
    CIRCUIT, SCORES, CLASS_CIRCUITS, OVERLAP, CURVE, COMPLETENESS, MINIMALITY, ACROSS_ABLATIONS,
    REPORT, EVALUATION, COSTS, SAVINGS, SEARCH,
)  # fmt: skip

_SAFETENSORS = {
    "circuitvit.pairs": "pairs of images, which circuitvit.Pairs.load reads",
    "circuitvit.adapter": "an adapter, which circuitvit.Adapter.load reads",
    "circuitvit.training": "a checkpoint of a training, which circuitvit.train(…, folder=) reads",
}
_MODEL = "the folder of a model, which circuitvit.load_vit reads"
_LONGEST_HEADER = 10**8  # as safetensors itself has it
_FIRST_BYTES = {
    b"PK\x03\x04": "a zip archive, such as PyTorch writes",
    b"\x89PNG": "a picture",
    b"<": "a page of HTML or XML",
    b"version https://git-lfs": "a pointer of git-lfs, for which `git lfs pull` fetches the file",
}


def checksum(body: Mapping[str, Any]) -> str:
    """The SHA-256 of plain JSON values, in hexadecimal digits."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def without(value: Any, places: Collection[str]) -> Any:
    """Plain JSON values without some fields, which are named as `lines[0].colour`."""

    def kept(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [kept(item, f"{where}[{place}]") for place, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        inside = {name: f"{where}.{name}" if where else name for name in value}
        return {n: kept(v, inside[n]) for n, v in value.items() if inside[n] not in places}

    return kept(value, "") if places else value


def record_kind(body: object) -> RecordKind | None:
    """The kind of a record, by its mark; by its fields where it was written before marks were."""
    if not isinstance(body, dict):
        return None
    if "format" in body:
        return next((kind for kind in KINDS if kind.mark == body["format"]), None)
    return next((kind for kind in KINDS if kind.fields and kind.fields <= set(body)), None)


def recognised(path: str | os.PathLike[str]) -> str | None:
    """The kind of a file or folder, with the function that reads it; None if unknown."""
    source = Path(path)
    if bad_path(path) is not None:
        return None
    try:
        if source.is_dir():
            return _folder(source)
        if not source.is_file():
            return None
        with source.open("rb") as file:
            start = file.read(512)
            size = int.from_bytes(start[:8], "little")
            file.seek(8)
            is_whole = start[8:9] == b"{" and size <= source.stat().st_size - 8
            header = file.read(size) if is_whole and size <= _LONGEST_HEADER else b""
        if header:
            return _weights(parsed(header))
        beginning = start.removeprefix(codecs.BOM_UTF8).lstrip()
        if beginning[:1] in (b"{", b"["):
            return _record(read_json(source, what="record"))
    except (OSError, ValueError):
        return None
    return next((told for first, told in _FIRST_BYTES.items() if beginning.startswith(first)), None)


def another_kind(path: str | os.PathLike[str], *, than: str) -> str:
    """A sentence about what a file is, if it is not what `than` reads and can be told; else none.

    Args:
        path: the file.
        than: what reads the files that were expected, such as `Pairs.load`.
    """
    told = recognised(path)
    return "" if told is None or than in told else f" It is {told}."


def _folder(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return _MODEL
    names = _records_in(folder)
    return f"a folder. Name a file in it, such as {names}" if names else "a folder"


def _records_in(folder: Path) -> str:
    """The records in a folder, by name and kind."""
    found = []
    for path in sorted(folder.glob("*.json"))[:20]:
        told = recognised(path)
        found += [f"{path.name} ({told.partition(',')[0]})"] if told else []
    return ", ".join(found[:5])


def _record(body: object) -> str | None:
    kind = record_kind(body)
    if kind is not None:
        return f"{kind.named}, which circuitvit.{kind.reader} reads"
    if not isinstance(body, dict):
        return None
    mark = str(body.get("format", ""))
    if {"heads", "mlp_width", "width"} <= set(body) or mark == "circuitvit.CircuitViT":
        return "the config of a model, whose folder circuitvit.load_vit reads"
    return f"marked {in_short(mark, most=60)}, which this version doesn't know" if mark else None


def _weights(header: dict[str, Any]) -> str:
    marks = header.get("__metadata__") or {}
    told = next((told for mark, told in _SAFETENSORS.items() if mark in marks), None)
    return told or "a file of weights, whose folder circuitvit.load_vit reads"
