"""Training: one loop, for one network or for a stack of them.

`loop.py`     `Recipe`, `train`, `predict`, `accuracy`: one network, any module.
`stacked.py`  `train_stacked`, `forward_stacked`: N networks of one architecture as one batched
              computation, each with its own seed and its own subset of the data.
`stored.py`   `fetch_model`, `fetch_stack`: the same through the cache, one entry a unit.
`checkpoints.py`  `fetch_checkpoints`: the network after chosen epochs, with masks or under attack;
              `tickets`: iterative magnitude pruning; `with_new_head`: the start of fine-tuning.
`pruning.py`  masks, rewinding and their controls; `adversarial.py`  the attack and its measure.
"""

from lib.training.checkpoints import (
    fetch_checkpoints,
    network_of,
    tickets,
    tickets_together,
    train_checkpointed,
    with_new_head,
)
from lib.training.loop import Recipe, accuracy, predict, train
from lib.training.stacked import forward_stacked, initial_stack, train_stacked, unstack
from lib.training.stored import fetch_model, fetch_stack

__all__ = [
    "Recipe",
    "accuracy",
    "fetch_checkpoints",
    "fetch_model",
    "fetch_stack",
    "forward_stacked",
    "initial_stack",
    "network_of",
    "predict",
    "tickets",
    "tickets_together",
    "train",
    "train_checkpointed",
    "train_stacked",
    "unstack",
    "with_new_head",
]
