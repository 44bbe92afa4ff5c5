"""What a model can do and what it costs: accuracy, faithfulness, parameters, MACs, latency."""

from circuitvit.measure.accuracy import Accuracy, accuracy
from circuitvit.measure.cost import macs, parameters
from circuitvit.measure.faithfulness import faithfulness
from circuitvit.measure.latency import Latency, latency
from circuitvit.measure.report import Report, measure

__all__ = [
    "Accuracy",
    "Latency",
    "Report",
    "accuracy",
    "faithfulness",
    "latency",
    "macs",
    "measure",
    "parameters",
]
