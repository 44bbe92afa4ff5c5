"""Class names and labels: coding, order, and matching by name."""
