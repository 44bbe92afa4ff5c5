"""Turns a circuit into a physically smaller plain-PyTorch ViT; one pass a file."""

from circuitvit.compiler.compiling import compile  # noqa: A004
from circuitvit.compiler.ranking import measures_effects
from circuitvit.compiler.validating import compiled_under

__all__ = ["compile", "compiled_under", "measures_effects"]
