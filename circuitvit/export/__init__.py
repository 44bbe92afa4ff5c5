"""Models for others: ONNX and pt2 files, folders for timm and transformers, model cards."""

from circuitvit.export.card import write_card
from circuitvit.export.exporting import export
from circuitvit.export.into_timm import to_timm
from circuitvit.export.into_transformers import to_transformers
from circuitvit.export.onnx_model import OnnxModel

__all__ = ["OnnxModel", "export", "to_timm", "to_transformers", "write_card"]
