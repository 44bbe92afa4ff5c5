"""Charts and tables of measurements; they know neither circuits nor torch."""
