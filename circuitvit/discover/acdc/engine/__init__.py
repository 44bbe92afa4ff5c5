"""The incremental engine of ACDC: the same decisions as whole ablated runs, faster."""
