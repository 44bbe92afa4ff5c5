"""Finds the edges that carry a behaviour: ACDC, EAP and its variants; also class by class."""

from circuitvit.discover.acdc.acdc import acdc, acdc_sweep
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.class_circuits import ClassCircuits, class_circuits
from circuitvit.discover.eap.eap import METHODS, eap
from circuitvit.discover.scores import EdgeScores

__all__ = [
    "METHODS", "ClassCircuits", "EdgeScores", "Speedups", "acdc", "acdc_sweep", "class_circuits",
    "eap",
]  # fmt: skip
