"""ACDC (Conmy et al. 2023): removes edge after edge as long as the metric hardly changes."""
