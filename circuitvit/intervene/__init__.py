"""Interventions: runs with edges ablated, what writers write, and surgery that removes units."""
