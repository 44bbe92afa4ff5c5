"""Measures of models and circuits: accuracy, faithfulness, parameters, MACs, latency."""

from circuitvit.measure.bootstrap import Estimate
from circuitvit.measure.circuits.across_ablations import AcrossAblations, across_ablations
from circuitvit.measure.circuits.completeness import Completeness, completeness
from circuitvit.measure.circuits.faithfulness import SHARES, Curve, faithfulness, faithfulness_curve
from circuitvit.measure.circuits.minimality import Minimality, minimality
from circuitvit.measure.models.accuracy import Accuracy, Classification, accuracy, classification
from circuitvit.measure.models.cost import Cost, Costs, macs, measure_costs, parameters
from circuitvit.measure.models.evaluation import Evaluation, evaluate
from circuitvit.measure.models.latency import Latency, latency
from circuitvit.measure.models.report import Report, measure
from circuitvit.measure.models.savings import Saving, Savings, savings

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
