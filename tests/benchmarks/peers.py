"""Peers of data attribution, each behind one function: (networks, train, targets) -> tau [n, T].

All are called as their documents say, at the fastest setting we found, with this project's sign:
positive where a training example raises the output of a target. Where a package lets one choose
the output, it is the margin; where it does not, it is minus the loss.

Facts found by running them with the pinned torch: dattri's EK-FAC takes its Fisher matrix of the
target function and joins weights and biases in another order than it takes them apart, which its
scores show; its LiSSA hands labels on as real numbers; captum's Arnoldi wants losses that are
summed.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lib import gradients
from lib.attribution.concepts import ConceptData, Readout
from lib.attribution.prefixes import depends
from lib.attribution.traker import traker as official
from lib.attribution.traker import traker_concept as official_concept

Data = tuple[Tensor, Tensor]
Models = Sequence[nn.Module]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines: they cost time and hide the table."""
    logging.disable(logging.ERROR)
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def basic_projector(p: int, k: int, *, seed: int, block: int = 100) -> gradients.Projector:
    """traker's projection for the CPU; it draws its matrix again for every batch if k > block."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(
        grad_dim=p,
        proj_dim=k,
        seed=seed,
        proj_type=ProjectionType.normal,
        device="cpu",
        block_size=block,
        dtype=torch.float32,
    )
    projector.k = k
    return projector


def traker(models: Models, train: Data, targets: Data, *, k: int, ridge: float) -> Tensor:
    """TRAK of the traker package with its own projection, the whole matrix kept (its best)."""
    # one block and one network: the package frees the matrix and then wants it (version 0.3.2)
    block = k if len(models) > 1 else k // 2
    projector = basic_projector(gradients_size(models[0]), k, seed=0, block=block)
    with quiet():
        return official(models, train, targets, projector=projector, lambda_reg=ridge, chunk=250)


def traker_concept(
    models: Models,
    train: Data,
    data: ConceptData,
    readouts: Sequence[Readout],
    *,
    k: int,
    ridge: float,
) -> Tensor:
    """A concept's logits at one layer by the traker package, with its own projection, whole."""
    block = depends(models[0], train[0][:2], readouts[0].layer)
    p = gradients.size(gradients.select(models[0], block))
    projector = basic_projector(p, k, seed=0, block=k)
    with quiet():
        return official_concept(
            models, train, data, readouts, projector=projector, lambda_reg=ridge, chunk=250
        )


def gradients_size(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())


def dattri_trak(models: Models, train: Data, targets: Data, *, k: int, ridge: float) -> Tensor:
    """TRAK of dattri, with the stable form of the margin instead of its document's log-odds."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = copy.deepcopy(models[0])

    def margin(params: dict[str, Tensor], data: Data) -> Tensor:
        return gradients.margin(functional_call(model, params, (data[0],)), data[1])

    def chance(params: dict[str, Tensor], data: Data) -> Tensor:
        return gradients.correct_probability(functional_call(model, params, (data[0],)), data[1])

    attributor = TRAKAttributor(
        task=AttributionTask(
            loss_func=margin, model=model, checkpoints=[m.state_dict() for m in models]
        ),
        correct_probability_func=chance,
        projector_kwargs={"proj_dim": k},
        regularization=ridge,
    )
    with quiet():
        attributor.cache(_loader(train, 250))
        return attributor.attribute(_loader(targets, 250)).detach()


def _dattri_task(models: Models, *, margin: bool) -> object:
    from dattri.task import AttributionTask

    model = copy.deepcopy(models[0])

    def loss(params: dict[str, Tensor], data: Data) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (data[0],)), data[1].long())

    def minus_margin(params: dict[str, Tensor], data: Data) -> Tensor:
        return -gradients.margin(functional_call(model, params, (data[0],)), data[1]).sum()

    return AttributionTask(
        loss_func=loss,
        target_func=minus_margin if margin else None,
        model=model,
        checkpoints=[m.state_dict() for m in models],
    )


def dattri_influence(
    models: Models, train: Data, targets: Data, *, solver: str, **options: object
) -> Tensor:
    """Influence functions of dattri: CG, LiSSA or Arnoldi; margin at the targets."""
    from dattri.algorithm import influence_function

    attributor = getattr(influence_function, f"IFAttributor{solver}")(
        task=_dattri_task(models, margin=solver != "EKFAC"), **options
    )
    with quiet():
        attributor.cache(_loader(train, len(train[0])))
        found = attributor.attribute(_loader(train, 250), _loader(targets, 250))
    return found.detach()


def dattri_ekfac(models: Models, train: Data, targets: Data, *, damping: float) -> Tensor:
    """EK-FAC of dattri, which takes one network at a time and the loss alone."""
    parts = [dattri_influence([m], train, targets, solver="EKFAC", damping=damping) for m in models]
    return torch.stack(parts).mean(0)


def dattri_tracin(models: Models, train: Data, targets: Data) -> Tensor:
    """TracIn of dattri with equal rates, in its default projection to 512 numbers."""
    from dattri.algorithm.tracin import TracInAttributor

    attributor = TracInAttributor(
        task=_dattri_task(models, margin=False),
        weight_list=torch.ones(len(models)),
        normalized_grad=False,
    )
    with quiet():
        return attributor.attribute(_loader(train, 500), _loader(targets, 500)).detach()


def kronfluence(
    models: Models,
    train: Data,
    targets: Data,
    *,
    damping: float | None = None,
    empirical: bool = False,
) -> Tensor:
    """EK-FAC of kronfluence, mean over networks.

    Args:
        damping: absolute; None for a tenth of each layer's mean eigenvalue, which is ours too.
        empirical: true labels in the Fisher matrix instead of sampled ones.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Data, model: nn.Module, sample: bool = False) -> Tensor:
            logits, labels = model(batch[0]), batch[1]
            if sample:
                labels = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Data, model: nn.Module) -> Tensor:
            return -gradients.margin(model(batch[0]), batch[1]).sum()

    task, parts = Classification(), []
    rows, wanted = TensorDataset(*train), TensorDataset(*targets)
    for model in models:
        with quiet(), torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)  # it draws labels from the global generator
            analyzer = Analyzer(
                analysis_name="bench",
                model=prepare_model(copy.deepcopy(model), task),
                task=task,
                cpu=True,
                output_dir=folder,
                disable_tqdm=True,
            )
            analyzer.fit_all_factors(
                "factors",
                rows,
                per_device_batch_size=500,
                factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=empirical),
            )
            analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                wanted,
                rows,
                per_device_query_batch_size=len(wanted),
                per_device_train_batch_size=500,
                score_args=ScoreArguments(damping_factor=damping),
            )
            parts.append(analyzer.load_pairwise_scores("scores")["all_modules"].T.clone())
    return torch.stack(parts).mean(0)


def captum_tracin(models: Models, train: Data, targets: Data) -> Tensor:
    """TracInCP of captum over the networks, all at one rate."""
    from captum.influence import TracInCP

    model, names, load = _checkpoints(models)
    engine = TracInCP(
        model,
        DataLoader(TensorDataset(*train), batch_size=500),
        names,
        load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
    )
    with quiet():
        return engine.influence(targets).T.detach()


def captum_tracin_last(models: Models, train: Data, targets: Data) -> Tensor:
    """TracInCPFast of captum: the last layer alone."""
    from captum.influence import TracInCPFast

    model, names, load = _checkpoints(models)
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    engine = TracInCPFast(
        model,
        last,
        DataLoader(TensorDataset(*train), batch_size=500),
        names,
        load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        vectorize=True,
    )
    with quiet():
        return engine.influence(targets).T.detach()


def captum_arnoldi(
    models: Models, train: Data, targets: Data, *, rank: int = 50, steps: int = 200
) -> Tensor:
    """Arnoldi influence of captum, one network; loss at the targets."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    parts = []
    for one in models:
        model, names, load = _checkpoints([one])
        with quiet():
            engine = ArnoldiInfluenceFunction(
                model,
                DataLoader(TensorDataset(*train), batch_size=500),
                names[0],
                load,
                loss_fn=nn.CrossEntropyLoss(reduction="sum"),
                sample_wise_grads_per_batch=True,
                projection_dim=rank,
                arnoldi_dim=steps,
            )
            parts.append(engine.influence(targets).T.detach())
    return torch.stack(parts).mean(0)


def _checkpoints(
    models: Models,
) -> tuple[nn.Module, list[str], Callable[[nn.Module, str], float]]:
    """captum reads checkpoints by name: here the name is an index, and the rate is 1."""

    def load(model: nn.Module, name: str) -> float:
        model.load_state_dict(models[int(name)].state_dict())
        model.eval()
        return 1.0

    return copy.deepcopy(models[0]), [str(k) for k in range(len(models))], load


def _loader(data: Data, batch: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data), batch_size=batch, shuffle=False)
