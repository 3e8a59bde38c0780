"""The networks that document 3's notebooks take apart, by name.

`lib.npeff.testbed` says what a testbed is; the two on SNLI are in `lib.npeff.testbeds_snli`, the
document's own in `lib.npeff.testbeds_paper`.

Public names: `load`, `TESTBEDS`, and of `testbed` `judged`, `Testbed`, `Examples`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from lib import models
from lib.config import Run
from lib.data import cifar10, digits, inference
from lib.data.base import sha256_of
from lib.npeff.testbed import Examples, Testbed, assemble, first, hypothesis_only, judged
from lib.npeff.testbeds_paper import bert_pairs, resnet50_images
from lib.npeff.testbeds_snli import snli_and_challenges, snli_pairs
from lib.probes.testbeds import fetch_cifar_network
from lib.training import Recipe, fetch_model

__all__ = ["TESTBEDS", "Examples", "Testbed", "judged", "load"]

RECIPES: Mapping[str, Recipe] = {
    "grammar": Recipe(15, 100, 0.005, optimizer="adam", schedule="triangular"),
    "digits": Recipe(20, 50, 0.01, optimizer="adam", schedule="triangular"),
    "cifar10-cnn": Recipe(5, 100, 0.005, optimizer="adam", schedule="triangular"),
}


def load(
    name: str,
    run: Run,
    *,
    n_fit: int,
    n_held_out: int,
    n_train: int = 0,
    without: tuple[str, ...] = (),
) -> Testbed:
    """A testbed by name, its network trained once and cached.

    Args:
        name: of `TESTBEDS`.
        run: for the seed of the network and the folder of the data.
        n_fit, n_held_out: examples of each set, none of which the network was trained on.
        n_train: training examples of "grammar"; the others have a fixed number.
        without: rules of "grammar", or sets of "snli-challenges", that training leaves out (not
            the two sets of examples): what they would have corrected becomes a flawed heuristic.

    Raises:
        ValueError: an unknown name, or more examples than there are.
        MissingData: real data that are not there.
    """
    if name not in TESTBEDS:
        raise ValueError(f"want a testbed of {', '.join(TESTBEDS)}, got {name!r}")
    if min(n_fit, n_held_out) < 1:
        raise ValueError(f"want n_fit and n_held_out >= 1, got {n_fit} and {n_held_out}")
    if name == "grammar":
        return grammar(run.seed, n_train, n_fit, n_held_out, without)
    if name == "snli-challenges" and not n_train:
        return snli_and_challenges(run, n_fit, n_held_out, without)
    if without or n_train:
        raise ValueError(
            "only the grammar has a size to choose, and only it and snli-challenges parts to "
            "leave out"
        )
    return TESTBEDS[name](run, n_fit, n_held_out)


def grammar(
    seed: int, n_train: int, n_fit: int, n_held_out: int, without: tuple[str, ...] = ()
) -> Testbed:
    """A transformer of 18,627 weights on the inference grammar; concepts are its 13 rules."""
    whole = inference.load(seed, n_train=n_train, n_test=n_fit + n_held_out)
    left_out = torch.tensor([inference.RULES.index(rule) for rule in without])
    keep = ~torch.isin(whole.train.rule, left_out)
    x, y = whole.train.x[keep], whole.train.y[keep]
    spec = {"n_words": len(whole.vocabulary), "length": inference.LENGTH, "n_blocks": 2}
    model = fetch_model(
        "transformer",
        spec,
        lambda: (x, y),
        RECIPES["grammar"],
        seed=seed,
        data_hash=sha256_of(x, y),
    )
    text = tuple(whole.vocabulary.decode(row) for row in whole.test.x)
    both = Examples(whole.test.x, whole.test.y, whole.test.rule, text)
    return assemble(
        "inference grammar",
        model,
        both,
        n_fit,
        inference.LABELS,
        inference.RULES,
        "norm",
        whole.provenance,
        baselines={"hypothesis only": hypothesis_only(x, y, both.x[n_fit:], both.y[n_fit:])},
    )


def digit_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A small convolutional network on the 8x8 digits."""
    whole = digits.load(run.seed)
    model = fetch_model(
        "cnn",
        {},
        lambda: (whole.train.x.view(-1, 1, 8, 8), whole.train.y),
        RECIPES["digits"],
        seed=run.seed,
        data_hash=whole.provenance.sha256,
    )
    rest = torch.cat([whole.probe.x, whole.test.x]).view(-1, 1, 8, 8)
    x, y = first(rest, n_fit + n_held_out), torch.cat([whole.probe.y, whole.test.y])
    both = Examples(x, y[: len(x)], y[: len(x)])
    return assemble(
        "digits", model, both, n_fit, whole.names, whole.names, "flatten", whole.provenance
    )


def small_cifar_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A convolutional network of three layers on test images of CIFAR-10, at a processor's size."""
    whole = cifar10.load(run.data_root)
    model = fetch_model(
        "cnn",
        {"in_channels": 3, "size": 32, "channels": (16, 32, 64)},
        lambda: (whole.train.x, whole.train.y),
        RECIPES["cifar10-cnn"],
        seed=run.seed,
        data_hash=whole.provenance.sha256,
        prepare=cifar10.standardise,
        device=run.device,
    )
    x = cifar10.standardise(first(whole.test.x, n_fit + n_held_out))
    both = Examples(x.to(run.device), whole.test.y[: len(x)], whole.test.y[: len(x)])
    return assemble(
        "CIFAR-10", model, both, n_fit, whole.names, whole.names, "flatten", whole.provenance
    )


def cifar_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """Notebook 11's ResNet-20 on test images of CIFAR-10."""
    whole = cifar10.load(run.data_root)
    recipe = Recipe(
        4,
        128,
        0.1,
        weight_decay=5e-4,
        schedule="triangular",
        augment="flip_crop",
        precision="bfloat16",
    )
    state = fetch_cifar_network("resnet20", recipe, whole.provenance.sha256, run.device, run.seed)
    model = models.build("resnet20", torch.Generator(), run.device)
    model.load_state_dict(state)
    x = cifar10.standardise(first(whole.test.x, n_fit + n_held_out))
    both = Examples(x.to(run.device), whole.test.y[: len(x)], whole.test.y[: len(x)])
    return assemble(
        "CIFAR-10", model, both, n_fit, whole.names, whole.names, "layer3", whole.provenance
    )


def published_cifar_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A published ResNet-20 on the CIFAR-10 images whose lossless pixels are at hand.

    They are training images: the accuracy is no test, which the name says.
    """
    whole = cifar10.load_lossless(run.data_root)
    model = cifar10.load_network(run.data_root).to(run.device)
    x = cifar10.published_inputs(first(whole.x, n_fit + n_held_out))
    both = Examples(x.to(run.device), whole.y[: len(x)], whole.y[: len(x)])
    name = "CIFAR-10, training images of a published ResNet-20"
    return assemble(name, model, both, n_fit, whole.names, whole.names, "layer3", whole.provenance)


TESTBEDS: Mapping[str, Callable[..., Testbed]] = {
    "grammar": grammar,
    "digits": digit_images,
    "snli": snli_pairs,
    "snli-challenges": snli_and_challenges,
    "cifar10": cifar_images,
    "cifar10-cnn": small_cifar_images,
    "cifar10-published": published_cifar_images,
    "bert-mnli": partial(bert_pairs, folder="bert_mnli"),
    "bert-qqp": partial(bert_pairs, folder="bert_qqp"),
    "resnet50": resnet50_images,
}
