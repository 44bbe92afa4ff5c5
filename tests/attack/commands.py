"""The commands that are attacked, a workplace for them, and a check that its results load."""

from pathlib import Path

from attack.saves import NEW, OLD

DATA = ("--data", "digits", "--limit", "60")
PAIRS = ("--pairs", "4", "--tau", "0.05")
SMALL = ("--width", "8", "--depth", "2", "--heads", "2", "--mlp-width", "6", "--epochs", "12",
         "--batch", "8")  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "trained", *SMALL, *DATA),
    "discover": ("discover", "nameless", "found.json", "--resume", "search.json", *PAIRS, *DATA),
    "class-circuits": ("class-circuits", "nameless", "classes", "--only", "1", "--only", "2", *PAIRS, *DATA),
    "compile": ("compile", "nameless", "circuit.json", "small", *DATA),
    "compile --fresh": ("compile", "nameless", "circuit.json", "small", "--fresh"),
    "evaluate": ("evaluate", "nameless", "other", "--out", "evaluated", *DATA),
    "draw": ("draw", "circuit.json", "page.html"),
    "inspect": ("inspect", "exported", "--out", "copied"),
    "export to timm": ("export", "nameless", "exported", "--to", "timm"),
    "export to transformers": ("export", "nameless", "hf", "--to", "transformers"),
    "export to onnx": ("export", "nameless", "model.onnx"),
    "export to pt2": ("export", "nameless", "model.pt2"),
    "demo": ("demo", "--out", "demo", "--epochs", "20"),
}  # fmt: skip
READERS = {
    "trained": "cv.load_vit", "found.json": "cv.Circuit.load", "classes": "cv.ClassCircuits.load",
    "small": "cv.load_vit", "evaluated": "cv.Evaluation.load", "copied": "cv.load_vit",
    "exported": "cv.load_vit", "hf": "cv.load_vit", "demo/dense": "cv.load_vit",
    "demo/compiled": "cv.load_vit", "demo/retrained": "cv.load_vit", "demo/circuit.json": "cv.Circuit.load",
}  # fmt: skip


def prepare(folder: str) -> None:
    """A workplace: models without names, a circuit, and older results under the same names."""
    from attack import specimens as own

    import circuitvit as cv

    room = Path(folder)
    for name, seed in (("nameless", NEW), ("other", OLD), ("small", 5), ("copied", 6)):
        model = own.vit(seed)
        model.preprocessing = None
        model.save_pretrained(room / name)
    made = cv.eap(model := cv.load_vit(room / "nameless"), own.pairs()).top(20)
    made.save(room / "circuit.json")
    own.circuit(OLD).save(room / "found.json")
    cv.export(own.vit(5), room / "exported", to="timm")
    cv.export(own.vit(5), room / "hf", to="transformers")
    cv.export(model, room / "model.onnx")
    (room / "page.html").write_text("<!doctype html><title>old</title>")


def unreadable(room: str) -> list[str]:
    """The results in a room that can't be read, though they were begun."""
    import circuitvit as cv

    told = []
    for name, reader in READERS.items():
        path = Path(room) / name
        others = {"checkpoint.safetensors"}  # of a training that isn't over
        begun = path.is_file() or (
            path.is_dir() and {p.name for p in path.iterdir() if p.name[0] != "."} - others
        )
        if begun:
            try:
                getter = cv
                for part in reader.split(".")[1:]:
                    getter = getattr(getter, part)
                getter(path)  # type: ignore
            except Exception as cause:
                told.append(f"{name}: {type(cause).__name__}: {cause}")
    page = Path(room) / "page.html"
    if page.exists() and "<title>old" not in page.read_text():
        told += [] if page.read_text().rstrip().endswith("</html>") else ["page.html: cut short"]
    return told
