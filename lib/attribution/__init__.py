"""Which training data made this prediction? Document 4, and the base of document 1.

Everywhere ``tau [n, T]``: positive where training example i raises the output of target t, so that
the sum of ``tau[S, t]`` predicts the output of a network trained on S. Map, in reading order:

* ``truth``: what networks trained on known subsets really output; ``settings`` and
  ``settings_language``: the data, networks and recipes that notebooks compare methods on.
* ``metrics``: the linear datamodeling score with its ceiling and intervals; leave-one-out
  correlation, mislabel AUC, retrieval.
* ``convex``, ``subsets``, ``refits``: exact influence of ridge and logistic models, of rows and
  groups, and the refits that prove it.
* ``influence``: networks, through an inverse-Hessian product of ``solvers`` (conjugate gradients,
  LiSSA, Arnoldi) or of ``kfac`` (K-FAC, EK-FAC).
* ``datamodels``: LASSO (by ``proximal`` steps) and ridge datamodels, empirical influence;
  ``brittleness``: how many rows carry a prediction.
* ``trak``: TRAK for any functional and parameter block; ``surrogate``, the linear model behind it;
  ``traker``, the same through the published software.
* ``baselines`` (gradient and representation similarity, TracIn, representer points, random) and
  ``valuation`` (nearest-neighbour Shapley values, sampled Data Shapley).
* ``retrieval``: BM25, candidate sets and scores of retrieval, for tracing facts to sentences.
* ``cost``: floating-point operations of each method, by formula.
* ``*_studies`` and ``*_pictures``: what the notebooks compute and draw.

Import these modules by name; the package itself imports none of them.
"""
