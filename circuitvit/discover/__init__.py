"""Which edges carry the behaviour: ACDC, EAP and its variants, exact and random scores."""

from circuitvit.discover.acdc import acdc, acdc_sweep
from circuitvit.discover.eap import METHODS, eap
from circuitvit.discover.scores import EdgeScores
from circuitvit.discover.state import Speedups

__all__ = ["METHODS", "EdgeScores", "Speedups", "acdc", "acdc_sweep", "eap"]
