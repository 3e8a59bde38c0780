"""The training loop: minibatches in an order drawn from a generator, a schedule, an optimiser.

`optimise` is the loop itself; `train` runs it on one network and `lib.training.stacked` on many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.features import evaluating

Prepare = Callable[[Tensor], Tensor]
Progress = Callable[[range], Iterator[int]]


def constant(done: float, peak: float) -> float:
    """Factor 1 on the learning rate."""
    return 1.0


def linear(done: float, peak: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - done


def cosine(done: float, peak: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def triangular(done: float, peak: float) -> float:
    """Up to 1 at the fraction `peak` of the steps, then down to 0."""
    return done / peak if done < peak else (1.0 - done) / (1.0 - peak)


def milestones(done: float, peak: float) -> float:
    """1, a tenth from half of the steps, a hundredth from three quarters (80 and 120 of 160)."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-probability of the labels `[n]` under logits `[n, k]`."""
    return F.cross_entropy(out, y)


def mse(out: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of outputs `[n, 1]` against targets `[n]`."""
    return F.mse_loss(out.squeeze(-1), y)


def bce(out: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-probability of targets in [0, 1] under logits of the same shape."""
    return F.binary_cross_entropy_with_logits(out, y)


SCHEDULES = {f.__name__: f for f in (constant, linear, cosine, triangular, milestones)}
LOSSES = {f.__name__: f for f in (cross_entropy, mse, bce)}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; with a seed and the data it determines the weights."""

    epochs: int
    batch_size: int
    lr: float  # the highest that the schedule reaches
    optimizer: str = "sgd"  # sgd | adam
    momentum: float = 0.9  # sgd only
    weight_decay: float = 0.0
    schedule: str = "linear"  # factor on lr over all steps: a name in SCHEDULES
    peak: float = 0.2  # where "triangular" peaks, as a fraction of the steps
    loss: str = "cross_entropy"  # (labels) | mse (real targets) | bce (targets in [0, 1])
    augment: str = "none"  # none | flip_crop (images: mirror, shift by up to 4 pixels)
    precision: str = "float32"  # float32 | bfloat16 (autocast; the weights stay float32)

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", ("sgd", "adam")),
            ("schedule", SCHEDULES),
            ("loss", LOSSES),
            ("augment", ("none", "flip_crop")),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0 or not 0 < self.peak < 1:
            raise ValueError(f"want epochs and batch_size >= 1, lr > 0, 0 < peak < 1; got {self}")


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    prepare: Prepare | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Train `model` in place and return it in evaluation mode.

    Args:
        model: on the device to train on.
        x: inputs `[n, ...]`, y: labels or targets `[n]`; on the model's device, or on the CPU.
        generator: on the CPU; gives the order of the rows and the augmentation.
        prepare: applied to each batch, for instance normalisation of raw pixels.
        progress: wraps the range of epochs, for instance `tqdm.auto.tqdm`.

    Raises:
        ValueError: x and y differ in length, or a loss became NaN or infinite.
    """
    check_rows(x, y)
    device = next(model.parameters()).device
    if x.ndim == 4:  # convolutions read and write this layout fastest, on CPU and GPU
        model = model.to(memory_format=torch.channels_last)

    def loss_of(rows: Tensor) -> Tensor:
        rows = rows.to(x.device)
        batch, target = x[rows].to(device), y[rows].to(device)
        batch = prepare(batch) if prepare else batch
        if recipe.augment == "flip_crop":
            batch = flip_crop(batch, generator)
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            return LOSSES[recipe.loss](model(batch).float(), target)

    def batches() -> Iterator[Tensor]:
        yield from torch.randperm(len(x), generator=generator).split(recipe.batch_size)

    model.train()
    optimise(list(model.parameters()), len(x), recipe, batches, loss_of, progress)
    return model.eval()


def optimise(
    parameters: Sequence[Tensor],
    n: int,
    recipe: Recipe,
    batches: Callable[[], Iterator[Tensor]],
    loss_of: Callable[[Tensor], Tensor],
    progress: Progress | None = None,
) -> None:
    """The loop: per epoch the batches of row indices, per batch one step on `loss_of(rows)`."""
    fused = {"fused": True} if all(p.is_floating_point() for p in parameters) else {}
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            parameters,
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            **fused,
        )
    else:
        optimizer = torch.optim.Adam(
            parameters,
            recipe.lr,
            weight_decay=recipe.weight_decay,
            **fused,  # type: ignore[arg-type]
        )
    total = recipe.epochs * math.ceil(n / recipe.batch_size)
    step = 0
    epochs = range(recipe.epochs)
    for epoch in progress(epochs) if progress else epochs:
        for rows in batches():
            # half a step ahead, so that "linear" neither idles at 0 nor skips its first value
            factor = SCHEDULES[recipe.schedule]((step + 0.5) / total, recipe.peak)
            optimizer.param_groups[0]["lr"] = recipe.lr * factor
            optimizer.zero_grad()
            loss = loss_of(rows)
            loss.backward()
            optimizer.step()
            step += 1
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} after epoch {epoch + 1}; lower the lr")


def flip_crop(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Mirror each image `[n, c, h, w]` with chance 1/2 and shift it by up to `pad` pixels."""
    n, _, height, width = x.shape
    shift = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator).to(x.device)
    mirror = (torch.rand(n, 1, generator=generator) < 0.5).to(x.device)
    down = torch.arange(height, device=x.device) + shift[0]  # [n, h]
    right = torch.arange(width, device=x.device)
    right = torch.where(mirror, right.flip(0), right) + shift[1]  # [n, w]
    # rows first, then columns: one advanced index would give [n, h, w, c], the same pixels
    padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def predict(
    model: nn.Module, x: Tensor, *, prepare: Prepare | None = None, chunk: int = 1024
) -> Tensor:
    """Outputs `[n, k]` in evaluation mode, on the model's device."""
    device = next(model.parameters()).device
    with evaluating(model):
        parts = [part.to(device) for part in x.split(chunk)]
        return torch.cat([model(prepare(part) if prepare else part) for part in parts])


def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, prepare: Prepare | None = None) -> float:
    """Share of rows whose largest output is the label."""
    return (predict(model, x, prepare=prepare).argmax(1) == y.to(x.device)).float().mean().item()


def check_rows(x: Tensor, y: Tensor) -> None:
    """Refuse data that cannot be trained on."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"want as many rows as labels and at least one, got {len(x)}, {len(y)}")
    if x.is_floating_point() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x.flatten(1))).any(1).nonzero()[0])
        raise ValueError(f"x holds NaN or infinity, first in row {bad}; clean or drop such rows")
