"""Sizes of document 3's notebooks. Read them through `lib.config`.

Text and images are factorised once and shared by 31, 32, 34 and 35: same testbed, examples, K, r
and steps give the same cache entries.
"""

from __future__ import annotations

NO_PAPER: dict[str, str] = {
    "33_known_ground_truth": "the document's task and program are in no public file",
    "35_baselines": "it reads layers of this project's own networks; the document's are in no file",
    "36_flawed_heuristics": "its flaw is planted, the document's are read off by eye",
}

# The document's networks and data, from folders below DATA_ROOT (`lib.npeff.testbeds_paper`); K of
# the main runs and the numbers of steps but one are not public.
BERT: dict[str, object] = {
    "text": "bert-mnli",
    "n_train": 0,
    "n_fit": 50_000,
    "n_held_out": 50_000,
    "k": 65_536,
    "r": 512,
    "steps": 1500,
}
RESNET50: dict[str, object] = {
    "vision": "resnet50",
    "n_fit_images": 20_000,
    "n_held_out_images": 30_000,
    "k_images": 65_536,
    "r_images": 512,
    "steps_images": 1500,
}

GRAMMAR: dict[str, object] = {
    "text": "grammar",
    "n_train": 10_000,
    "n_fit": 1500,
    "n_held_out": 1500,
    "k": 4096,
    "r": 32,
    "steps": 200,
}
SNLI: dict[str, object] = {
    "text": "snli",
    "n_train": 0,
    "n_fit": 1000,
    "n_held_out": 1000,
    "k": 4096,
    "r": 24,
    "steps": 200,
}
DIGITS: dict[str, object] = {
    "vision": "digits",
    "n_fit_images": 400,
    "n_held_out_images": 397,
    "k_images": 512,
    "r_images": 20,
    "steps_images": 200,
}
CIFAR: dict[str, object] = {
    "vision": "cifar10-cnn",
    "n_fit_images": 800,
    "n_held_out_images": 500,
    "k_images": 4096,
    "r_images": 20,
    "steps_images": 200,
}
# an example has at most 24,501 non-zeros at this coldness: k cuts nothing off
PROGRAM: dict[str, object] = {
    "n": 1616,
    "k": 32_768,
    "cold": 20.0,
    "steps": 200,
    "n_top": 128,
    "n_draws": 200,
}

SIZES: dict[str, dict[str, dict[str, object]]] = {
    "31_components": {
        "quick": GRAMMAR | DIGITS | {"recovery_starts": 3},
        "full": SNLI | CIFAR | {"recovery_starts": 5},
        "paper": BERT | RESNET50 | {"recovery_starts": 5},
    },
    "32_perturbations": {
        "quick": GRAMMAR | DIGITS | {"n_draws": 19},
        "full": SNLI | CIFAR | {"n_draws": 19},
        "paper": BERT | RESNET50 | {"n_draws": 19},
    },
    "33_known_ground_truth": {
        "quick": PROGRAM | {"rs": (32,)},
        "full": PROGRAM | {"rs": (32, 128)},
    },
    "34_hyperparameters": {
        # K and the descent on two fifths of the examples and fewer components, as the document
        "quick": GRAMMAR
        | {"ks": (1024, 4096, 16_384), "rs": (8, 32, 64)}
        | {"n_part": 600, "r_part": 16, "n_starts": 2, "descent_steps": 600},
        "full": SNLI
        | {"ks": (1024, 4096, 16_384), "rs": (8, 24, 48)}
        | {"n_part": 600, "r_part": 16, "n_starts": 2, "descent_steps": 600},
        "paper": BERT
        | {"ks": (16_384, 65_536, 262_144), "rs": (32, 128, 512)}
        | {"n_part": 20_000, "r_part": 128, "n_starts": 2, "descent_steps": 1500},
    },
    "35_baselines": {
        "quick": GRAMMAR
        | {"n_clusters": 32, "n_runs": 20, "n_random": 30}
        | {"n_seeds": 3, "test_layer": "block1", "factor_layer": "block2.hidden"},
        "full": SNLI
        | {"n_clusters": 24, "n_runs": 20, "n_random": 30}
        | {"n_seeds": 3, "test_layer": "mix", "factor_layer": "pooled"},
    },
    "36_flawed_heuristics": {
        "quick": GRAMMAR
        | {"n_fit": 3000, "n_held_out": 3200, "without": ("negation",)}
        | {"r_more": 16, "n_candidates": 12},
        "full": SNLI
        | {"text": "snli-challenges", "n_fit": 1200, "n_held_out": 1600}
        | {"without": ("Breaking NLI",), "r_more": 16, "n_candidates": 12},
    },
}
