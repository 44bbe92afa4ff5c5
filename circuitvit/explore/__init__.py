"""Draws a networkx graph of a ViT's edges. Imports neither circuits nor torch.

`figure` gives a plotly figure, `page` an interactive page that works offline, `notebook_html` the
still picture that a notebook shows. All three read the graph in `drawing.py`; what the graph's
nodes and edges have to carry is described there.
"""

from circuitvit.explore.notebook import notebook_html
from circuitvit.explore.page import page
from circuitvit.explore.plotly_figure import figure

__all__ = ["figure", "notebook_html", "page"]
