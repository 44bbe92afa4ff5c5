"""Images: loading them, splitting them, and pairing clean with corrupt ones."""

from circuitvit.images.classes.imagenet import ANIMALS, Animal, categories
from circuitvit.images.image_set import ImageSet, Splits
from circuitvit.images.loading import load_splits
from circuitvit.images.pairs.pairs import Pairs
from circuitvit.images.tensor_checks import fingerprint

__all__ = [
    "ANIMALS",
    "Animal",
    "ImageSet",
    "Pairs",
    "Splits",
    "categories",
    "fingerprint",
    "load_splits",
]
