"""The official TRAK software (package traker) as an engine, with our projections plugged in.

It is the reference that `lib.attribution.trak` is tested against, and what the lecture shows. Its
scores have a scale of their own: features are divided by the root of the number of weights and
the inverse by its mean absolute entry, so each network enters an average with its own unit. Ranks
within a target are those of `trak` where there is one network, and nearly so where there are more.

Facts about version 0.3.2 that this file takes care of (specification section 4.4): the device is
the string "cpu", or a projection for GPUs is chosen that fails at the end; half precision is its
default; its folder must be fresh, or rows are skipped in silence; results are memory maps into
that folder; and the model that it is given is overwritten with each checkpoint.

Public names: `traker`, `traker_concept`, `fresh_folder`.
"""

from __future__ import annotations

import copy
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib import features, gradients
from lib.attribution.concepts import ConceptData, Readout, check_belongs
from lib.attribution.prefixes import depends
from lib.attribution.trak import Data, Loss, logistic

Functional = Callable[..., Tensor]  # (module, weights, buffers, x, ...) -> scalar, one example


def traker(
    models: Sequence[nn.Module],
    train: Data,
    targets: Data,
    *,
    k: int = 512,
    projector: gradients.Projector | None = None,
    output: gradients.Output = gradients.margin,
    loss: Loss = logistic,
    lambda_reg: float = 0.0,
    seed: int = 0,
    chunk: int = 50,
    block: Sequence[str] | None = None,
    functional: Callable[[int], Functional] | None = None,
) -> Tensor:
    """Scores `[n, T]` of the official software, positive where an example raises the output.

    Args:
        models: networks of one architecture.
        train, targets: inputs, labels and whatever else `output` takes.
        k: size of its own projection, where `projector` is None.
        projector: one of `lib.gradients` for these networks, whose k counts then.
        output, loss: as for `trak`.
        lambda_reg: its ridge, absolute and on features divided by the root of the number of
            weights; 0 is its default, with which scores are noise for k near the number of
            examples.
        seed: of its own projection.
        chunk: examples a pass.
        block: full names of the parameters whose gradients count; None for all.
        functional: gives for each checkpoint what is attributed at its targets in place of
            `output`: a function of (module, weights, buffers, one target's tensors).

    Raises:
        ImportError: the package is not installed.
        ValueError: no network, or more numbers than examples and no ridge.
    """
    try:
        from trak import TRAKer
        from trak.modelout_functions import AbstractModelOutput
    except ImportError as error:
        raise ImportError(
            "this engine needs the package traker (`pip install traker`); "
            "lib.attribution.trak computes the same scores without it"
        ) from error
    if not models:
        raise ValueError("want at least one network, got none; train some with truth.checkpoints")
    k = projector.k if projector else k
    if k > len(train[0]) and lambda_reg == 0:
        raise ValueError(
            f"{k} numbers a gradient and {len(train[0])} examples without a ridge give noise, of "
            "which this software does not warn; choose lambda_reg > 0 or a smaller k"
        )

    class Task(AbstractModelOutput):
        """Our output and the slope of our loss, in the form that the package calls."""

        def __init__(self) -> None:
            super().__init__()
            self.functional: Functional | None = None

        def get_output(
            self,
            model: nn.Module,
            weights: dict[str, Tensor],
            buffers: dict[str, Tensor],
            x: Tensor,
            *rest: Tensor,
        ) -> Tensor:
            if self.functional:
                return self.functional(model, weights, buffers, x, *rest)
            return output(functional_call(model, (weights, buffers), (x[None],))[0], *rest)

        def get_out_to_loss_grad(
            self,
            model: nn.Module,
            weights: dict[str, Tensor],
            buffers: dict[str, Tensor],
            batch: Data,
        ) -> Tensor:
            with torch.no_grad():
                value = output(functional_call(model, (weights, buffers), (batch[0],)), *batch[1:])
            slope = torch.func.grad(lambda f: loss(f).sum())(value)
            return -slope[:, None]

    task = Task()
    with fresh_folder() as folder:
        engine = TRAKer(
            model=copy.deepcopy(models[0]),
            task=task,
            train_set_size=len(train[0]),
            save_dir=folder,
            device=str(next(models[0].parameters()).device),
            projector=projector,
            proj_dim=k,
            projector_seed=seed,
            use_half_precision=False,
            lambda_reg=lambda_reg,
            logging_level=logging.ERROR,
            grad_wrt=None if block is None else list(block),
        )
        for index, model in enumerate(models):
            engine.load_checkpoint(model.state_dict(), model_id=index)
            for rows in _batches(train, chunk):
                engine.featurize(rows, num_samples=len(rows[0]))
        engine.finalize_features()
        for index, model in enumerate(models):
            task.functional = functional(index) if functional else None
            engine.start_scoring_checkpoint("targets", model.state_dict(), index, len(targets[0]))
            for rows in _batches(targets, chunk):
                engine.score(rows, num_samples=len(rows[0]))
        found = engine.finalize_scores("targets")
        return torch.from_numpy(found.copy())  # the folder goes away


def traker_concept(
    models: Sequence[nn.Module],
    train: Data,
    data: ConceptData,
    readouts: Sequence[Readout],
    *,
    k: int = 512,
    projector: gradients.Projector | None = None,
    lambda_reg: float = 0.0,
    seed: int = 0,
    chunk: int = 50,
) -> Tensor:
    """Scores `[n, T]` of a concept's signed logits at one layer, by the official software.

    The package knows one output; here it changes between featurising and scoring. Its features
    depend on the layer, so that every layer is a run of its own.

    Args:
        models, train: as for `traker`.
        data: concept images; `data.x` are the targets.
        readouts: the probe of every checkpoint, all of one layer.
        k, projector, lambda_reg, seed, chunk: as for `traker`; a projector is one of the
            parameters that the layer depends on.

    Source: document 1, method; specification of document 1, section 5.3.
    """
    if len(readouts) != len(models) or len({r.layer for r in readouts}) != 1:
        raise ValueError(
            f"want one probe a checkpoint, all of one layer, got {len(readouts)} for "
            f"{len(models)} checkpoints at {', '.join(sorted({r.layer for r in readouts}))}"
        )
    for index, (model, readout) in enumerate(zip(models, readouts, strict=True)):
        check_belongs(readout, model, index)
    layer = readouts[0].layer

    def functional(index: int) -> Functional:
        readout = readouts[index]

        def logit(
            model: nn.Module,
            weights: dict[str, Tensor],
            buffers: dict[str, Tensor],
            x: Tensor,
            sign: Tensor,
        ) -> Tensor:
            with features.recorded(model, [layer]) as seen:
                functional_call(model, (weights, buffers), (x[None],))
            h = seen[layer][0]
            return sign * readout.score(h.mean(dim=(1, 2)) if h.ndim == 3 else h)

        return logit

    return traker(
        models,
        train,
        (data.x, data.sign),
        k=k,
        projector=projector,
        lambda_reg=lambda_reg,
        seed=seed,
        chunk=chunk,
        block=depends(models[0], train[0][:2], layer),
        functional=functional,
    )


@contextmanager
def fresh_folder() -> Iterator[str]:
    """A folder for the package's files that goes away after use, its progress bars with it."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        yield folder


def _batches(data: Data, chunk: int) -> list[Data]:
    return list(zip(*(part.split(chunk) for part in data), strict=True))
