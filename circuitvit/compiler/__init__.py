"""Turns a circuit into a physically smaller plain-PyTorch ViT; one pass a file."""

from circuitvit.compiler.check import compiled_under
from circuitvit.compiler.compiling import compile  # noqa: A004

__all__ = ["compile", "compiled_under"]
