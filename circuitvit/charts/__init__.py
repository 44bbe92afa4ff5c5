"""Charts and tables of measurements. Imports neither circuits nor torch."""
