"""The house keeps its shape: floors, file lengths, names, tests, README."""

import ast
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path

import grimp
import networkx as nx
import pytest

HOUSE = Path(__file__).parents[2]
SOURCES = sorted((HOUSE / "circuitvit").rglob("*.py"))
EXPERIMENTS = sorted((HOUSE / "experiments").glob("*.py"))
TESTS = sorted((HOUSE / "tests").rglob("*.py"))
README = (HOUSE / "README.md").read_text()


def tracked():
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=HOUSE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a git checkout")
    return [HOUSE / name for name in done.stdout.splitlines()]


def test_the_top_level_is_the_cards():
    names = {path.relative_to(HOUSE).parts[0] for path in tracked()}
    card = {"circuitvit", "graphs", "experiments", "tests", "pyproject.toml", "README.md"}
    around = {
        "LICENSE",
        "Makefile",
        "constraints.txt",
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
        "docs",
    }
    assert card <= names
    assert names <= card | around


def test_arrows_point_down_only():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [linter, "--no-cache"], cwd=HOUSE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_floors_would_notice_a_stray_file(tmp_path):
    """The contract is exhaustive, so a `utils.py` without a floor fails."""
    import shutil

    copy = tmp_path / "house"
    shutil.copytree(HOUSE / "circuitvit", copy / "circuitvit")
    shutil.copy(HOUSE / "pyproject.toml", copy)
    (copy / "circuitvit" / "utils.py").write_text("")
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [linter, "--no-cache"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "circuitvit.utils" in done.stdout


def test_there_are_no_circles():
    """Neither among modules nor among rooms, imports inside functions and for types included."""
    imported = nx.DiGraph()
    graph = grimp.build_graph("circuitvit", cache_dir=None)
    for module in graph.modules - {"circuitvit"}:
        for other in graph.find_modules_directly_imported_by(module) - {"circuitvit"}:
            imported.add_edge(module, other)
            here, there = (name.split(".")[1] for name in (module, other))
            if here != there:
                imported.add_edge(f"room {here}", f"room {there}")
    circles = [group for group in nx.strongly_connected_components(imported) if len(group) > 1]
    assert circles == []


SAME_INTERFACE = {"knows", "preprocessing_of", "problems", "read", "resize"}
"""What each module of `pretrained.libraries` defines for its library."""
COMMANDS = {"class_circuits", "compile", "demo", "evaluate", "export", "train"}
"""Functions of the command line that are named like public ones."""


def test_no_name_stands_for_two_things():
    """Classes, functions and aliases of modules have names of their own in the whole package."""
    homes = {}
    for path in SOURCES:
        for item in ast.parse(path.read_text()).body:
            names = [getattr(item, "name", None)]
            if isinstance(item, ast.Assign):
                names = [target.id for target in item.targets if isinstance(target, ast.Name)]
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                names = [item.target.id]
            for name in names:
                if name and not name.startswith("_") and not name.isupper():
                    homes.setdefault(name, set()).add(path.relative_to(HOUSE / "circuitvit"))
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    for name, places in twice.items():
        rooms = {place.parts[0] for place in places}
        libraries = all(place.parts[:2] == ("pretrained", "libraries") for place in places)
        assert (name in SAME_INTERFACE and libraries) or (
            name in COMMANDS and "cli" in rooms and len(places) == 2
        ), f"{name} is in {sorted(map(str, places))}"


def test_tests_mirror_the_rooms():
    rooms = {path.parent.name for path in (HOUSE / "circuitvit").glob("*/__init__.py")}
    extra = {"attack", "demo", "experiments", "ground", "whole"}
    found = {path.parent.name for path in TESTS if path.name.startswith("test_")}
    assert rooms <= found <= rooms | extra


def test_functions_stay_near_40_lines():
    long = []
    for path in SOURCES:
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.end_lineno:
                body = item.body[1:] if ast.get_docstring(item) else item.body
                length = item.end_lineno - body[0].lineno + 1 if body else 0
                if length > 45:
                    long.append(f"{path.name}:{item.name} has {length} lines")
    assert long == []


def test_no_file_is_called_utils_helpers_misc_or_common():
    stems = {path.stem for path in [*SOURCES, *TESTS]}
    assert not stems & {"utils", "helpers", "misc", "common", "util", "helper"}


def test_each_kind_of_library_stays_in_its_room():
    """transformer_lens is imported by `hooked` alone, datasets by `images` alone."""
    homes = {"transformer_lens": "models/hooked.py", "datasets": "images", "accelerate": "train"}
    homes |= {"plotly": "explore charts", "kaleido": "charts", "sklearn": "images measure"}
    for path in SOURCES:
        for item in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(item, ast.Import):
                names = [alias.name for alias in item.names]
            elif isinstance(item, ast.ImportFrom) and item.module:
                names = [item.module]
            for name in names:
                home = homes.get(name.split(".")[0])
                place = path.relative_to(HOUSE / "circuitvit")
                inside = home is None or {place.parts[0], place.as_posix()} & set(home.split())
                assert inside, f"{path} imports {name}"


def test_nothing_is_pickled():
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"\bpickle\b|torch\.save", text), path
        assert "torch.load" not in text or "weights_only=True" in text, path


FLAGS = {
    "torch.load": "weights_only=True", "np.load": "allow_pickle=False",
    "NpzFile": "allow_pickle=False",
}  # fmt: skip
NEVER = ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.hub.load")


def test_nothing_from_outside_is_run():
    for path in (*SOURCES, *EXPERIMENTS):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func)
            given = {f"{item.arg}={ast.unparse(item.value)}" for item in call.keywords}
            assert name not in NEVER, f"{path}: {name}"
            wanted = next((flag for end, flag in FLAGS.items() if name.endswith(end)), None)
            receiver, _, method = name.rpartition(".")
            if method == "from_pretrained" and not receiver.endswith(("ViT", "__class__")):
                wanted = "trust_remote_code=False"
            assert wanted is None or wanted in given, f"{path}: {name}(…) without {wanted}"
    # Its version 5 knows no scripts of data sets, and so no flag that would keep it from them.
    assert '"datasets>=5,<6"' in (HOUSE / "pyproject.toml").read_text()


def test_the_readme_is_short_and_its_pictures_and_links_exist():
    assert 120 <= len(README.splitlines()) <= 220
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (HOUSE / target).exists(), target


def command_lines():
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", README, flags=re.S)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readmes_commands_exist_with_their_options():
    import typer

    from circuitvit.cli import app

    commands = typer.main.get_command(app).commands
    makefile = (HOUSE / "Makefile").read_text()
    seen = 0
    for line in command_lines():
        words = shlex.split(line.split("#")[0])
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, flags=re.M), line
            seen += 1
        if words and words[0].endswith("circuitvit"):
            options = {opt for p in commands[words[1]].params for opt in p.opts}
            assert {word for word in words if word.startswith("--")} <= options, line
            seen += 1
        if words and words[0].endswith("python") and words[1].endswith(".py"):
            assert (HOUSE / words[1]).exists(), line
            seen += 1
    assert seen >= 6


def test_the_readmes_python_example_runs(tmp_path):
    """The first Python block, in a folder of its own."""
    code = re.search(r"```python\n(.*?)```", README, flags=re.S)
    assert code
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code[1]],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


NUMBER = re.compile(r"[\d.,]*[eEfFgG%]$")


def shown_numbers(text):
    """The format of every number that an f-string or a `format` of some code shows, by line."""
    for item in ast.walk(ast.parse(text)):
        if isinstance(item, ast.FormattedValue) and isinstance(item.format_spec, ast.JoinedStr):
            parts = [
                part.value for part in item.format_spec.values if isinstance(part, ast.Constant)
            ]
            yield item.lineno, "".join(map(str, parts))
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute):
            template = getattr(item.func.value, "value", None)
            if item.func.attr == "format" and isinstance(template, str):
                for _, _, form, _ in string.Formatter().parse(template):
                    yield item.lineno, form or ""


SHOWN = [path for path in (*SOURCES, *EXPERIMENTS) if path.name != "notebook.py"]  # coordinates


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_no_number_is_shown_as_minus_zero(path):
    """`z` in a format shows what rounds to zero without a sign (PEP 682)."""
    wrong = [
        f"{path.name}:{line} :{form}"
        for line, form in shown_numbers(path.read_text())
        if NUMBER.search(form) and "z" not in form
    ]
    assert wrong == []
