"""Sizes of the tour and of document 1's notebooks. Read them through `lib.config`."""

from __future__ import annotations

NO_IMAGENET = (
    "the document's networks, its 10% of ImageNet (ILSVRC 2012, by agreement with its owners) "
    "and its concept images are not published as files that could be loaded"
)
NO_PAPER: dict[str, str] = {
    "11_concept_presence": NO_IMAGENET,
    "12_concept_attribution": NO_IMAGENET,
    "13_concept_removal": NO_IMAGENET,
}

SIZES: dict[str, dict[str, dict[str, object]]] = {
    "00_start_here": {"quick": {}, "full": {}, "paper": {}},
    "11_concept_presence": {
        "quick": {
            "data": "digits",
            "network": "mlp",
            "n_models": 20,
            "epochs": 30,
            "batch_size": 50,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "linear",
            "augment": "none",
            "precision": "float32",
            "layers": ("hidden1", "hidden2"),
            "concepts": ("round", "hilo-synthetic"),
            "grid": (1, 2, 4, 8, 16, 32),
            "n_control_seeds": 5,
            "n_resamples": 20,
        },
        "full": {
            "data": "cifar10",
            "network": "resnet20",
            "n_models": 5,
            "epochs": 4,
            "batch_size": 128,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "triangular",
            "augment": "flip_crop",
            "precision": "bfloat16",
            "layers": ("layer1.0.conv2", "layer1", "layer2", "layer3"),
            "concepts": ("animal", "unseen-classes", "hilo-natural"),
            "grid": (1, 2, 4, 8, 16, 32, 64),
            "n_control_seeds": 5,
            "n_resamples": 20,
        },
    },
    "12_concept_attribution": {
        "quick": {
            "data": "digits",
            "concepts": ("round", "hilo-synthetic"),
            "layers": ("hidden1", "hidden2"),
            "n_fit": 400,
            "n_attributed": 200,
            "n_eval": 197,
            "n_models": 20,
            "k": 512,
            "ridge": 0.3,  # of .1, .3, 1, 3, on other halves: best frozen, near best following
            "m_truth": 100,
            "repeats": 10,
            "n_splits": 50,
        },
        "full": {
            "data": "cifar10",
            "concepts": ("animal", "hilo-natural"),
            "layers": ("conv1", "conv2", "conv3"),
            "n_fit": 1000,
            "n_attributed": 200,
            "n_eval": 1000,
            "n_models": 5,
            "k": 512,
            "ridge": 0.3,
            "m_truth": 40,
            "repeats": 3,
            "n_splits": 50,
        },
    },
    "13_concept_removal": {
        "quick": {
            "data": "digits",
            "concepts": ("round", "hilo-synthetic"),
            "layers": ("hidden1", "hidden2"),
            "n_fit": 400,
            "n_attributed": 200,
            "n_eval": 197,
            "n_models": 20,
            "k": 512,
            "ridge": 0.3,
            "counts": (50, 100, 300, 500),
            "n_retrained": 20,
            "grid": (1, 2, 4, 8, 16, 32),
        },
        "full": {
            "data": "cifar10",
            "concepts": ("animal",),
            "layers": ("conv1", "conv2", "conv3"),
            "n_fit": 1000,
            "n_attributed": 200,
            "n_eval": 1000,
            "n_models": 5,
            "k": 512,
            "ridge": 0.3,
            "counts": (50, 500, 2500),
            "n_retrained": 8,
            "grid": (1, 2, 4, 8, 16, 32),
        },
    },
}
