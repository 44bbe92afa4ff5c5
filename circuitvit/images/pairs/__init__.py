"""Pairs of clean and corrupt images."""

from circuitvit.images.pairs.pairs import Pairs

__all__ = ["Pairs"]
