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
  ``brittleness``: how many rows carry a prediction; ``embedding``: weights as vectors, and two
  algorithms compared; ``planted``: a training set with secrets that these are to find.
* ``trak``: TRAK for any functional and parameter block; ``surrogate``, the linear model behind it;
  ``traker``, the same through the published software.
* ``baselines`` (gradient and representation similarity, TracIn, representer points, random) and
  ``valuation`` (nearest-neighbour Shapley values, sampled Data Shapley).
* ``concepts`` (a probe's logit as TRAK's output, on ``prefixes`` of the network),
  ``concept_eigenpairs`` (the same sooner, in the strongest ``eigenpairs`` of linear modules),
  ``concept_retraining`` (removal, with controls) and ``concept_cases``: document 1.
* ``mislabels``, ``mismatch``, ``poisoning``: influence at work, on the rows of ``pools``: wrong
  labels found, a biased subgroup traced, training images changed unseen.
* Features rather than data, the lecture's recap: ``feature_methods`` (captum's, behind one call),
  judged by ``coalitions`` (exact Shapley values), ``feature_axioms``, ``known_answer`` (images
  with planted pixels) and ``feature_checks`` (randomised weights, deletion); ``counterfactuals``
  (smallest changes); ``tcav`` (concept vectors); ``feature_subjects``, what is explained.
* ``retrieval``: BM25, candidate sets and scores of retrieval, for tracing facts to sentences.
* ``cost``: floating-point operations of each method, by formula.
* ``*_studies``, ``feature_contrasts`` and ``*_pictures``: what the notebooks compute and draw.

Import these modules by name; the package itself imports none of them.
"""
