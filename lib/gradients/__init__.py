"""Gradients of any output of any model: per example, as products, projected.

Shared code of the documents on attribution. In reading order:

- ``outputs``: `margin`, `cross_entropy`, `correct_probability`.
- ``per_example``: `stream`, `per_example`, `projected`, `functional_gradients`.
- ``factored``: the hooks behind `stream`; `factors`, exact `kernel`.
- ``products``: products with the Hessian and the Gauss-Newton matrix.
- ``projections``: `SJLT` and its dense and factored relatives.
- ``flat``: the flat order of weights.
"""

from lib.gradients.factored import Factor, UnsupportedLayer, factors, per_example_hooks
from lib.gradients.flat import flatten, select, size, slices, unflatten
from lib.gradients.outputs import Output, correct_probability, cross_entropy, margin
from lib.gradients.per_example import (
    Projector,
    functional_gradient,
    functional_gradients,
    per_example,
    per_example_vmap,
    projected,
    stream,
)
from lib.gradients.products import Product, ggn_product, hessian_product
from lib.gradients.projections import SJLT, CachedSigns, RandomFactors

__all__ = [
    "SJLT",
    "CachedSigns",
    "Factor",
    "Output",
    "Product",
    "Projector",
    "RandomFactors",
    "UnsupportedLayer",
    "correct_probability",
    "cross_entropy",
    "factors",
    "flatten",
    "functional_gradient",
    "functional_gradients",
    "ggn_product",
    "hessian_product",
    "margin",
    "per_example",
    "per_example_hooks",
    "per_example_vmap",
    "projected",
    "select",
    "size",
    "slices",
    "stream",
    "unflatten",
]
