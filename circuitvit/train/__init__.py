"""Training: the recipe, the loop, and checkpoints that it resumes from."""

from circuitvit.train.adapter import AdaptedViT, Adapter
from circuitvit.train.recipe import Recipe
from circuitvit.train.result import Training
from circuitvit.train.training import train

__all__ = ["AdaptedViT", "Adapter", "Recipe", "Training", "train"]
