"""The ViT, its hooked form, and compiled circuits; saved and loaded."""
