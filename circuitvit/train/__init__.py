"""Training: the recipe, the loop, and the checkpoints that it resumes from."""

from circuitvit.train.adapter import AdaptedViT, Adapter, with_new_head
from circuitvit.train.recipe import Recipe
from circuitvit.train.result import Training
from circuitvit.train.training import train

__all__ = ["AdaptedViT", "Adapter", "Recipe", "Training", "train", "with_new_head"]
