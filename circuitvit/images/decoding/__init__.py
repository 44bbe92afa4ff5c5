"""From encoded pictures to pixel tensors of one size."""
