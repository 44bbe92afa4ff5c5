"""How charts are read: two sentences for each kind, shown above it."""

CURVE = (
    "f is how much of the model's behaviour a circuit keeps: 1 is the full model, 0 is no edge at "
    "all. A good ranking comes near 1 with few edges (k is on a logarithmic scale), and lies far "
    "above random circuits of the same size."
)
COMPLETENESS = (
    "Each dot is a random set K that was removed from the circuit and from the full model. A "
    "complete circuit suffers as the model does, so its dots lie on the diagonal; dots below it "
    "tell of parts that stand in for K in the model and are missing from the circuit."
)
MINIMALITY = (
    "Each dot is one kept edge, and its height is the faithfulness that goes with it when it alone "
    "is removed. Edges whose bar reaches 0 are not clearly of use."
)
ABLATIONS = (
    "f is how much of the model's behaviour a circuit keeps: 1 is the full model, 0 is none of it. "
    "A circuit whose dots lie at one height does not depend on what removed edges carry."
)
OVERLAP = (
    "Each cell is the share of two circuits' edges that both have (Jaccard): 1 where they are the "
    "same, 0 where they share none. Compare it with what circuits of these sizes share by chance."
)
PANELS = (
    "Bars and dots further right are more accurate, more confident or larger, as each axis says; "
    "against cost, better models lie further up and left. Models whose intervals overlap may not "
    "differ at all."
)
GRADIENT_FLOW = (
    "Each row is a part of the model and each column an epoch; the darker, the larger the gradient "
    "that reached it. A row that stays far lighter than the others hardly learns."
)
