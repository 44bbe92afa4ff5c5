"""Measures of a circuit: faithfulness, completeness, minimality."""
