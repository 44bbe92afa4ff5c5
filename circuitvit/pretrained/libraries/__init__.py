"""Readers of timm, transformers and torchvision models."""
