"""The edge graph of a ViT, and circuits in it: files, overlaps, random controls. Knows no torch."""
