"""Gradients of any output of any model: per example, as products, projected.

Shared code of the documents on attribution. In reading order:

- ``flat``: the flat order of weights that every vector and matrix here is in.
- ``outputs``: `margin`, `cross_entropy`, `correct_probability`.
- ``per_example``: `stream`, `per_example`, `functional_gradients`, `functional_gradient`.
- ``hooks``: `per_example_hooks`, the fast way to both.
- ``factored``: `factors` of layers' gradients, and the exact `kernel`.
- ``products``: `hessian_product` and `ggn_product`; `ggn_rows`, the latter's square root.
- ``projections``: `projected` features by `SJLT`, `CachedSigns` or `RandomFactors`.
"""

from lib.gradients.factored import Factor, factored_layers, factors, kernel
from lib.gradients.flat import flatten, select, size, slices, unflatten
from lib.gradients.hooks import UnsupportedLayer, per_example_hooks
from lib.gradients.outputs import (
    CentredLogit,
    Output,
    correct_probability,
    cross_entropy,
    margin,
)
from lib.gradients.per_example import (
    functional_gradient,
    functional_gradients,
    per_example,
    per_example_vmap,
    stream,
)
from lib.gradients.products import Product, ggn_product, ggn_rows, hessian_product
from lib.gradients.projections import SJLT, CachedSigns, Projector, RandomFactors, projected

__all__ = [
    "SJLT",
    "CachedSigns",
    "CentredLogit",
    "Factor",
    "Output",
    "Product",
    "Projector",
    "RandomFactors",
    "UnsupportedLayer",
    "correct_probability",
    "cross_entropy",
    "factored_layers",
    "factors",
    "flatten",
    "functional_gradient",
    "functional_gradients",
    "ggn_product",
    "ggn_rows",
    "hessian_product",
    "kernel",
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
