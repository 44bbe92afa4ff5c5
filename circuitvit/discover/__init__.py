"""Which edges carry the behaviour: ACDC, EAP and its variants, exact and random scores."""

from circuitvit.discover.acdc import acdc
from circuitvit.discover.eap import METHODS, eap
from circuitvit.discover.scores import EdgeScores

__all__ = ["METHODS", "EdgeScores", "acdc", "eap"]
