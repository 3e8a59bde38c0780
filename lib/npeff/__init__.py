"""Document 3, NPEFF: per-example Fishers, their non-negative factorisation, and what it shows.

In the order of the method:

- ``fisher``: per-example Fishers of any classifier; ``terms``: which classes take part;
  ``archive`` keeps them, ``store`` prunes, normalises and chooses, ``rows`` is its arithmetic.
- ``factorise``: low-rank decomposition; ``diagonal``: the diagonal one; ``decomposition``: their
  result; ``coefficients``: new examples and expansion; ``alternating``, ``products``,
  ``nonnegative``: the parts that these share; ``factors``, ``out_of_core``: the data, in memory or
  in files; ``distributed``: columns over processes.
- ``perturb``, ``perturb_diagonal``: changes of the parameters along a component; ``divergence``,
  ``selectivity``: what they do to predictions; ``repair``: mending a flawed heuristic.
- ``matching``: decompositions side by side; ``concept_search``: what top examples share;
  ``baselines``: clusters and factors of activations, concept tests.
- ``program``: transformers compiled from small programs, whose variables are known.
- ``testbeds``, ``components``: networks and examples of the notebooks, factorised once for all
  (``testbeds_snli``; ``testbeds_paper``: the document's own networks, from local folders);
  ``*_studies`` measure, ``*_pictures`` draw.
"""
