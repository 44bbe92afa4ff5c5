"""Edge attribution patching: scores of all edges from gradients."""
