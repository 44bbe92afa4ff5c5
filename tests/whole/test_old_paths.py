"""Modules at their paths of version 0.1.0, which pickles and scripts of that version name."""

import importlib
import subprocess
import sys

import pytest

from circuitvit.old_paths import PATHS


@pytest.mark.parametrize("old", PATHS)
def test_a_module_is_found_at_its_old_path_and_says_where_it_is_now(old):
    new = importlib.import_module("circuitvit." + PATHS[old])
    sys.modules.pop("circuitvit." + old, None)
    with pytest.warns(DeprecationWarning, match=f"circuitvit.{old} is now circuitvit.{PATHS[old]}"):
        found = importlib.import_module("circuitvit." + old)
    names = [name for name in vars(new) if not name.startswith("__")]
    assert names
    assert all(getattr(found, name) is getattr(new, name) for name in names)


def test_names_that_are_functions_too_stay_functions():
    script = """
import warnings, circuitvit as cv
warnings.simplefilter("ignore")
import circuitvit.measure.latency, circuitvit.circuit, circuitvit.edge_graph
assert callable(cv.measure) and callable(cv.export) and callable(cv.train) and callable(cv.edge_graph)
from circuitvit.images.pairs import Pairs
from circuitvit.measure import latency
assert Pairs is cv.Pairs and callable(latency)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_path_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("circuitvit.nowhere")
