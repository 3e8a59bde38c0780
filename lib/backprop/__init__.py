"""Concept backpropagation (document 5): what does the network think the concept looks like?

A frozen model part, a frozen probe on its activations, and an input that may move: find the
smallest move that makes the probe read the concept. The package, in reading order:

- `distances`: what "smallest" means; L1, L2, Hamming with exact zeros, and smooth ones;
- `objective`: the objective, the ways a perturbation acts, the checks at the boundary;
- `descent`: the solver, all rows at once and each on its own;
- `maximisation`: sound, constrained and faithful maximisation, and their result;
- `stacked`: many networks at once; `recipe_probes`: the probes of the document's notebooks;
- `chess`: the same question for boards, where only legal positions count.

The experiments, to be imported by name: `tabular` and `entanglement`; `autoencoders`, `images`,
`image_edits` and `picture_measures`; the open questions in `weight_studies`, `language_studies`,
`specificity_studies`, `probe_quality_studies` and `scaling_studies`.

A high probe value is not the concept: measure the concept itself on `Maximisation.result`.
"""

from __future__ import annotations

from lib.backprop.distances import (
    L1,
    L2,
    DecodedMSE,
    Distance,
    GroupL2,
    Hamming,
    L2Sq,
    Mahalanobis,
)
from lib.backprop.maximisation import (
    HOUSING_RECIPE,
    FaithfulRecipe,
    Maximisation,
    maximise,
    maximise_faithful,
    maximise_to,
)
from lib.backprop.objective import (
    Objective,
    Operator,
    Prefix,
    Term,
    add,
    decoding,
    weights_hash,
)

__all__ = [
    "HOUSING_RECIPE",
    "L1",
    "L2",
    "DecodedMSE",
    "Distance",
    "FaithfulRecipe",
    "GroupL2",
    "Hamming",
    "L2Sq",
    "Mahalanobis",
    "Maximisation",
    "Objective",
    "Operator",
    "Prefix",
    "Term",
    "add",
    "decoding",
    "maximise",
    "maximise_faithful",
    "maximise_to",
    "weights_hash",
]
