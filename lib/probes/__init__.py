"""Linear concept probes: is a concept in the activations, where, and in how many channels?

Documents 1 (attributing learned concepts) and 5 (concept backpropagation). Map, in reading order:

* ``linear``: ``Probe``, ``fit_logistic`` (batched Newton), ``fit_ridge`` (closed form),
  ``balanced_weights``, ``concept_direction``. Its solver is in ``newton``, its checks in
  ``inputs``.
* ``wide``: ``fit_wide``, the same probe for layers of thousands of units.
* ``sparse``: ``rank_channels`` (four rules), ``fit_sparse`` (refit on k channels),
  ``selection_stability`` and ``chance_jaccard``.
* ``evaluate``: ``accuracy``, ``detection_score`` (S = 2 accuracy - 1), ``roc_auc``, ``r2``,
  ``reliability_curve``, ``ece``, ``bootstrap_interval``, ``bootstrap_r2``, ``score_agreement``.
* ``controls``: ``shuffled_labels``, ``control_task``, ``even_seed``, ``selectivity``.
* ``protocol``: ``validate_penalty`` and ``validate_ridge``: split, penalty, test, controls,
  verdict (``ProbeReport``); ``split_by_group``.
* ``testbeds``, ``presence``, ``pictures``: notebook 11, the networks and concepts, what is measured
  on them, the figures. Import these by name; they bring data sets and trainings with them.

Activations are ``z [n, d]`` or ``[m, n, d]`` (m networks or fits at once), labels ``y [n]`` or
``[m, n]``. Probes read raw activations: standardisation is folded into their weights.
"""

from __future__ import annotations

from lib.probes.controls import control_task, even_seed, selectivity, shuffled_labels
from lib.probes.evaluate import (
    Reliability,
    accuracy,
    bootstrap_interval,
    bootstrap_r2,
    detection_score,
    ece,
    r2,
    reliability_curve,
    roc_auc,
    score_agreement,
)
from lib.probes.linear import (
    Probe,
    balanced_weights,
    concept_direction,
    fit_logistic,
    fit_ridge,
)
from lib.probes.protocol import (
    PENALTIES,
    ProbeReport,
    split_by_group,
    validate_penalty,
    validate_ridge,
)
from lib.probes.sparse import (
    Stability,
    chance_jaccard,
    fit_sparse,
    rank_channels,
    selection_stability,
)
from lib.probes.wide import fit_wide

__all__ = [
    "PENALTIES",
    "Probe",
    "ProbeReport",
    "Reliability",
    "Stability",
    "accuracy",
    "balanced_weights",
    "bootstrap_interval",
    "bootstrap_r2",
    "chance_jaccard",
    "concept_direction",
    "control_task",
    "detection_score",
    "ece",
    "even_seed",
    "fit_logistic",
    "fit_ridge",
    "fit_sparse",
    "fit_wide",
    "r2",
    "rank_channels",
    "reliability_curve",
    "roc_auc",
    "score_agreement",
    "selection_stability",
    "selectivity",
    "shuffled_labels",
    "split_by_group",
    "validate_penalty",
    "validate_ridge",
]
