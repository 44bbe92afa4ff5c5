"""How well a circuit explains its model: faithfulness, completeness, minimality."""
