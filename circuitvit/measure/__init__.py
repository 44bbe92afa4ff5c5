"""What a model can do and what it costs: accuracy, faithfulness, parameters, MACs, latency."""

from circuitvit.measure.ablations import AcrossAblations, across_ablations
from circuitvit.measure.accuracy import Accuracy, accuracy
from circuitvit.measure.bootstrap import Estimate
from circuitvit.measure.classification import Classification, classification
from circuitvit.measure.completeness import Completeness, completeness
from circuitvit.measure.cost import macs, parameters
from circuitvit.measure.cost_table import Cost, Costs, measure_costs
from circuitvit.measure.curve import Curve
from circuitvit.measure.evaluation import Evaluation, evaluate
from circuitvit.measure.faithfulness import faithfulness
from circuitvit.measure.faithfulness_curve import SHARES, faithfulness_curve
from circuitvit.measure.latency import Latency, latency
from circuitvit.measure.minimality import Minimality, minimality
from circuitvit.measure.report import Report, measure
from circuitvit.measure.savings import Saving, Savings, savings

__all__ = [
    "SHARES",
    "Accuracy",
    "AcrossAblations",
    "Classification",
    "Completeness",
    "Cost",
    "Costs",
    "Curve",
    "Estimate",
    "Evaluation",
    "Latency",
    "Minimality",
    "Report",
    "Saving",
    "Savings",
    "accuracy",
    "across_ablations",
    "classification",
    "completeness",
    "evaluate",
    "faithfulness",
    "faithfulness_curve",
    "latency",
    "macs",
    "measure",
    "measure_costs",
    "minimality",
    "parameters",
    "savings",
]
