"""Images: loading them, splitting them, and pairing clean with corrupt ones."""

from circuitvit.images.animals import ANIMALS, Animal, categories
from circuitvit.images.image_set import ImageSet, Splits
from circuitvit.images.loading import load_splits
from circuitvit.images.pairs import Pairs
from circuitvit.images.tensors import fingerprint

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
