"""The rows of `make bench`: a job, our way, a peer's way, and how their results must agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lib import models, probes, training
from tests.benchmarks import rows_attribution, rows_monitor, rows_npeff
from tests.benchmarks.row import Row


def stacked_training() -> Row:
    """100 MLPs on 1,000 digits: one stack against one network after the other.

    The peer is the loop that one writes in plain torch, with the fused optimiser, which is its
    fastest setting here. Same recipe, other seeds; the two sets of test accuracies must look
    like draws of one distribution.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pixels / 16 - 0.3, dtype=torch.float32)[order]
    y = torch.tensor(labels)[order]
    n, n_models, epochs, batch, lr = 1000, 100, 30, 50, 0.1
    x_test, y_test = x[n:], y[n:]
    x, y = x[:n].contiguous(), y[:n].contiguous()
    spec = {"widths": (64, 32, 32, 10)}
    recipe = training.Recipe(epochs, batch, lr, weight_decay=5e-4)

    def ours() -> Tensor:
        state = training.train_stacked("mlp", spec, x, y, recipe, seeds=range(n_models))
        out, _ = training.forward_stacked("mlp", spec, state, x_test)
        return (out.argmax(-1) == y_test).double().mean(1)

    def peer() -> Tensor:
        accuracies = []
        for seed in range(1000, 1000 + n_models):
            generator = torch.Generator().manual_seed(seed)
            model = models.build("mlp", generator, **spec)
            optimizer = torch.optim.SGD(
                model.parameters(), lr, momentum=0.9, weight_decay=5e-4, fused=True
            )
            loss_function = nn.CrossEntropyLoss()
            step, total = 0, epochs * n // batch
            for _ in range(epochs):
                for rows in torch.randperm(n, generator=generator).split(batch):
                    optimizer.param_groups[0]["lr"] = lr * (1 - (step + 0.5) / total)
                    optimizer.zero_grad()
                    loss_function(model(x[rows]), y[rows]).backward()
                    optimizer.step()
                    step += 1
            with torch.no_grad():
                accuracies.append((model(x_test).argmax(1) == y_test).double().mean())
        return torch.stack(accuracies)

    def agree(a: Tensor, b: Tensor) -> tuple[bool, str]:
        from scipy.stats import ks_2samp

        p = ks_2samp(a.numpy(), b.numpy()).pvalue
        words = f"test accuracy {a.mean():.4f} and {b.mean():.4f}, same distribution at p = {p:.2f}"
        return bool(p > 0.01), words

    return Row(ours, peer, agree, "plain torch loop", 10.0, "100 MLPs, 1,000 rows, 600 steps")


def ridge_probes() -> Row:
    """Ridge probes on the activations of 100 networks: one batch against a loop of fits.

    The peer standardises and solves network by network with the Cholesky solver, scikit-learn's
    fastest here. Both read float32 activations, as a network gives them.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_models, n, d, l2 = 100, 400, 32, 1.0
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n_models, n, d, generator=generator).relu()
    y = (z[0, :, :4].sum(1) > 1.5).long()
    activations, target = z.numpy(), 2.0 * y.numpy() - 1.0

    def ours() -> Tensor:
        return probes.fit_ridge(z, y, l2=l2).weight

    def peer() -> np.ndarray:
        found = []
        for one in activations:
            fit = make_pipeline(StandardScaler(), Ridge(alpha=l2, solver="cholesky"))
            fit.fit(one, target)
            found.append(fit[-1].coef_ / fit[0].scale_)
        return np.stack(found)

    def agree(a: Tensor, b: np.ndarray) -> tuple[bool, str]:
        worst = float(np.abs(a.numpy() - b).max() / np.abs(b).max())
        return worst < 1e-4, f"weights agree to {worst:.0e} of the largest"

    return Row(ours, peer, agree, "scikit-learn loop", 10.0, f"{n_models} x {n} rows x {d} units")


ROWS: dict[str, Callable[[], Row]] = {
    "stacked-training/digits-mlp-100": stacked_training,
    "batched-ridge-probes": ridge_probes,
    **rows_attribution.ROWS,
    **rows_npeff.ROWS,
    **rows_monitor.ROWS,
}
