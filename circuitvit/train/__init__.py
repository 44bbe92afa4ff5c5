"""Training: the recipe, the loop, and checkpoints that it resumes from."""

from circuitvit.train.recipe import Recipe
from circuitvit.train.training import Training, train

__all__ = ["Recipe", "Training", "train"]
