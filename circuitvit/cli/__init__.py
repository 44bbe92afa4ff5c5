"""The command line: each command is a thin layer over the public names."""

from circuitvit.cli import circuits, evaluation, models, training
from circuitvit.cli.app import app, main

__all__ = ["app", "circuits", "evaluation", "main", "models", "training"]
