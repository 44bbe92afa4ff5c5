"""What the published experiments share: settings, stages, and a folder that remembers what is done.

Not an experiment itself. Each part of a study (a trained model, a sweep, a table) is noted in
`results.json` as soon as it is there, with its date, seconds, command and hardware; a study that was
stopped goes on behind the last part, a training behind its last epoch.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.files import read_json, write_json, write_text
from circuitvit.images import Splits
from circuitvit.measure.models.latency import machine_of
from circuitvit.pretrained import load_saved

HOUSE = Path(__file__).parents[1]
STAGES = ("train", "optimize", "evaluate")
OTHER = {"model": "another model", "data": "other image pairs"}
SPLITS = ("train", "validation", "test")
SHARED = {
    "animals": "tiny_imagenet_animals_*.parquet",
    "cifar10": "cifar10_*.parquet",
}
"""The files of each data set in a folder such as `shared/data`."""


class Study:
    """One run of an experiment.

    Attributes:
        folder: gets `results.json`, `models/`, `circuits/` and pages.
        settings: every number that decides the results; plain JSON values.
        stages: those that may be worked on.
        device: where models compute; images are moved there. Parts are noted with it.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], folder: Path, stages: Sequence[str]
    ) -> None:
        self.folder, self.settings, self.stages = folder, dict(settings), tuple(stages)
        self.file = folder / "results.json"
        self.results: dict[str, Any] = {"settings": self.settings, "parts": {}}
        if self.file.exists():
            self.results = read_json(self.file, what="a study")
            self._check_settings(name)
            for part in self.results["parts"].values():  # once, only the last run's were noted
                for key in ("command", "hardware"):
                    part.setdefault(key, self.results[key])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.origin = {"command": command(), "hardware": hardware(self.device)}
        self.results |= {"experiment": name, "settings": self.settings}
        self.results = self.origin | self.results  # of a run that makes nothing, nothing is noted

    def _check_settings(self, name: str) -> None:
        other = self.results.get("experiment", name)
        if other != name:
            raise CircuitError(
                f"{self.folder} holds another experiment, {other}. Give another --out, or remove "
                "the folder."
            )
        before = dict(self.results.get("settings", {}))
        before.pop("data", None)  # once the path of the images, whatever it led to
        changed = [
            f"{name} was {before.get(name)!r} and is {self.settings.get(name)!r}"
            for name in sorted({*before, *self.settings})
            if before.get(name) != self.settings.get(name)
        ]
        if changed:
            raise CircuitError(
                f"{self.folder} holds this experiment with other settings: {'; '.join(changed)}. "
                "Give another --out, or remove the folder."
            )

    def check_images(self, splits: Splits) -> None:
        """Note which images these are; later runs must have the same.

        Raises:
            CircuitError: they are others than before.
        """
        found = {name: getattr(splits, name).fingerprint() for name in SPLITS}
        known = self.results.setdefault("images", found)
        changed = [
            f"those of {name} had the fingerprint {known[name]} and have {found[name]}"
            for name in SPLITS
            if known[name] != found[name]
        ]
        if changed:
            raise CircuitError(
                f"{self.folder} holds this experiment with other images: {'; '.join(changed)}. "
                "Give --data the images of before, or another --out, or remove the folder."
            )

    def part(self, name: str, stage: str, make: Callable[[], Any]) -> Any:
        """What a part gave: noted before, or made now; plain JSON values.

        Raises:
            CircuitError: it isn't there and its stage is switched off.
        """
        parts = self.results["parts"]
        if name not in parts:
            if stage not in self.stages:
                raise CircuitError(
                    f"{self.file} has no {name!r} yet, which the stage {stage!r} makes. "
                    "Run that stage first."
                )
            print(f"{self.results['experiment']}: {name}", flush=True)
            start = time.perf_counter()
            value = make()
            self._note(name, stage, value, time.perf_counter() - start)
        return parts[name]["result"]

    def has(self, *names: str) -> bool:
        """Whether these parts are all there."""
        return all(name in self.results["parts"] for name in names)

    def _note(self, name: str, stage: str, value: Any, seconds: float) -> None:
        self.results["parts"][name] = {
            "stage": stage,
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": round(seconds, 1),
            **self.origin,
            "result": value,
        }
        self.results |= self.origin
        self.save()

    def trained(
        self,
        name: str,
        start: Callable[[], Any],
        splits: Any,
        recipe: cv.Recipe,
        *,
        teacher: nn.Module | None = None,
        stage: str = "train",
    ) -> Any:
        """The model after the last epoch, on `device`, trained now or before; its history is noted.

        Its seconds are those of its epochs, over all runs it took.
        """
        folder = self.folder / "models" / name

        def make() -> list[dict[str, Any]]:
            training = cv.train(
                start(),
                splits.train,
                splits.validation,
                recipe,
                folder=self.folder / "checkpoints" / name,
                teacher=teacher,
                log=lambda line: print(f"{name}: {line}", flush=True),
            )
            training.vit.save_pretrained(folder)
            return list(training.history)

        history = self.part(f"train {name}", stage, make)
        entry = self.results["parts"][f"train {name}"]
        spent = round(sum(epoch["seconds"] for epoch in history), 1)
        if entry["seconds"] != spent:
            entry["seconds"] = spent
            self.save()
        return load_saved(folder).to(self.device)

    def save(self) -> None:
        """Write `results.json`."""
        write_json(self.file, self.results)

    def publish(self, report: str, results: Path | None) -> None:
        """Write `report.md`; and the results to a file of their own, the report beside it as `.md`."""
        write_text(self.folder / "report.md", report)
        if results is not None:
            write_json(results, self.results)
            write_text(results.with_suffix(".md"), report)
        print(f"Wrote {self.folder}.\n{report}")


def circuit_of(path: Path, vit: cv.ViT) -> cv.Circuit:
    """A circuit from its file, which was found on this very model.

    Raises:
        CircuitError: it was found on another, or its file can't be read.
    """
    circuit = cv.Circuit.load(path)
    check_origin(path, {"model": circuit.provenance.model}, {"model": vit.fingerprint()})
    return circuit


def check_origin(
    path: Path, noted: Mapping[str, str | None], here: Mapping[str, str | None]
) -> None:
    """Refuse a file of what was found on another `model` or other `data`.

    Args:
        path: the file.
        noted: the fingerprints in it.
        here: those of this study.

    Raises:
        CircuitError: they differ.
    """
    unlike = [
        f"{OTHER[what]} (fingerprint {noted.get(what)}, here {own})"
        for what, own in here.items()
        if noted.get(what) != own
    ]
    if unlike:
        raise CircuitError(
            f"{path} was found on {' and '.join(unlike)}. Give another --out; or, to search anew "
            f"here, remove {path.parent} and every part of the stages optimize and evaluate from "
            "results.json."
        )


def evaluated_rows(found: cv.Evaluation) -> list[dict[str, Any]]:
    """What a study notes of each evaluated model.

    `change` is of top-1 and `time_ratio` of time, to the baseline, and each has its 95% interval;
    `seconds` are those of all images at the largest batch that was timed.
    """
    front, rows = set(found.pareto()), []
    for name in found.names:
        one, cost, ratio = found[name], found.report[name], found.ratio(name)
        change, speed = found.difference(name, found.report.baseline), found.images_per_second(name)
        rows.append(
            {
                "name": name,
                "top1": one.accuracy.top1,
                "interval": [one.interval.low, one.interval.high],
                "change": [change.value, change.low, change.high],
                "loss": one.accuracy.loss,
                "parameters": cost.parameters,
                "macs": cost.macs,
                "time_ratio": ratio.value,
                "time_interval": [ratio.low, ratio.high],
                "milliseconds": found.cost(name),
                "seconds": None if speed is None else one.accuracy.images / speed,
                "pareto": name in front,
            }
        )
    return rows


def command() -> str:
    """How this experiment was called; places beside the project are named from its folder."""
    near = f"{HOUSE.parent}{os.sep}"
    words = [os.path.relpath(w, HOUSE) if w.startswith(near) else w for w in sys.argv[1:]]
    return " ".join(["python", f"experiments/{Path(sys.argv[0]).name}", *words])


def hardware(device: torch.device) -> dict[str, str]:
    """The processor or GPU that figures come from, threads and versions."""
    return {**machine_of(device), "processor": processor()}


def origins(results: Mapping[str, Any]) -> str:
    """How the parts were made, as Markdown: a line for each command and hardware."""
    groups = dict[str, list[str]]()
    for name, part in results["parts"].items():
        machine = ", ".join(f"{key} {value}" for key, value in part["hardware"].items())
        groups.setdefault(f"`{part['command']}`; {machine}", []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "\n".join(f"* {how}: {', '.join(names)}" for how, names in groups.items())


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else "unknown"


def options(about: str, name: str) -> argparse.ArgumentParser:
    """The options that all studies have."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument(
        "--data", help="a folder of parquet files, such as ../shared/data, or the id of a hub"
    )
    parser.add_argument("--out", type=Path, help=f"default: runs/{name}, or runs/{name}_toy")
    parser.add_argument(
        "--results", type=Path, help="where finished results and their report (.md) go too"
    )
    parser.add_argument("--toy", action="store_true", help="a minute-long check on few images")
    parser.add_argument("--epochs", type=at_least(1), help="instead of the full schedule's")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--skip-training",
        action="store_true",
        help="not the stage `train`, the dense models; whatever is trained of pruned ones belongs "
        "to `optimize`",
    )
    parser.add_argument("--threads", type=at_least(1), help="of the processor, at most")
    return parser


def at_least(low: int) -> Callable[[str], int]:
    """A type of option: whole numbers from `low` on."""

    def whole_number(text: str) -> int:  # argparse tells this name where the text is none
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}")
        return int(text)

    return whole_number


def stages_of(given: argparse.Namespace) -> tuple[str, ...]:
    """The stages that the options leave.

    Raises:
        CircuitError: none.
    """
    left = tuple(s for s in given.stages if not (given.skip_training and s == "train"))
    if not left:
        raise CircuitError("--stages train and --skip-training leave no stage. Give one of them.")
    return left


def folder_of(given: argparse.Namespace, name: str) -> Path:
    """Where the study keeps its things."""
    return given.out or HOUSE / "runs" / (f"{name}_toy" if given.toy else name)


def set_of(given: argparse.Namespace, name: str) -> str:
    """The data set that the options mean: of a toy without `--data`, the digits."""
    return "digits" if given.toy and not given.data else name


def images_of(study: Study, data: str | None, name: str) -> Splits:
    """The images of a data set (`digits`, or of `SHARED`), as the study's settings want them.

    Raises:
        CircuitError: there are none, or they are others than the study had before.
    """
    digits, settings = name == "digits", study.settings
    splits = cv.load_splits(
        "digits" if digits else source_of(data, name),
        image_size=settings["image_size"],
        classes="animals" if name == "animals" else None,
        validation=settings["validation"],
        seed=settings["seed"],
        limit=settings["limit"],
        cache=None if digits else study.folder / "cache",
    )
    study.check_images(splits)
    return splits


def dense_shape(study: Study, images: cv.ImageSet) -> cv.ViTConfig:
    """The shape of the dense model of a study."""
    return cv.ViTConfig(
        image_size=study.settings["image_size"],
        channels=images.images.shape[1],
        classes=len(images.class_names),
        **study.settings["shape"],
    )


def source_of(data: str | None, name: str) -> str:
    """The source of images for `cv.load_splits`: of a folder, the files of one data set.

    Raises:
        CircuitError: no data was given.
    """
    if data is None:
        raise CircuitError(
            "no images were given. Say --data ../shared/data, another folder of parquet files or "
            "the id of a hub; or --toy, which takes scikit-learn's digits."
        )
    folder = Path(data)
    return str(folder / SHARED[name]) if list(folder.glob(SHARED[name])) else data


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run a study; a mistake of the user becomes one line and exit code 2."""
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        main(given)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except CircuitError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
