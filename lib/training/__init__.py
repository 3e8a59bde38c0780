"""Training: one loop, for one network or for a stack of them.

`loop.py`     `Recipe`, `train`, `predict`, `accuracy`: one network, any module.
`stacked.py`  `train_stacked`, `forward_stacked`: N networks of one architecture as one batched
              computation, each with its own seed and its own subset of the data.
`stored.py`   `fetch_model`, `fetch_stack`: the same through the cache, one entry a unit.
"""

from lib.training.loop import Recipe, accuracy, predict, train
from lib.training.stacked import forward_stacked, initial_stack, train_stacked, unstack
from lib.training.stored import fetch_model, fetch_stack

__all__ = [
    "Recipe",
    "accuracy",
    "fetch_model",
    "fetch_stack",
    "forward_stacked",
    "initial_stack",
    "predict",
    "train",
    "train_stacked",
    "unstack",
]
