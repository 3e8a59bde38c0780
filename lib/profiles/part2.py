"""Sizes of document 2's notebooks. Read them through `lib.config`."""

from __future__ import annotations

NO_PAPER: dict[str, str] = dict.fromkeys(
    (
        "21_concept_detectors",
        "22_standard_training",
        "23_lottery_ticket",
        "24_adversarial_training",
    ),
    "Places365, CIFAR-10 at the document's length and CLIP's weights are not at hand",
)

# few images need small batches: at 128 the robust network had not learned after 160 steps
SMALL = {"batch_size": 32, "lr": 0.05, "weight_decay": 1e-4, "schedule": "triangular"}
RECIPE = {"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4, "schedule": "triangular"}

# CIFAR-10's ResNet-20 on two cores: a fifth of the images, a quarter of the document's epochs
CIFAR = {"batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "augment": "flip_crop"}
REAL_TICKETS: dict[str, object] = {
    "n_train": 10_000,
    "n_test": 1000,
    "recipe": {"epochs": 4, "schedule": "triangular", **CIFAR},
    "rewinds": (0, 1, 2),
    "n_stages": 8,
    "amount": 0.4,
    "n_random": 3,
    "n_batches": 50,
    "fewest": 20,
}
REAL_PAIR: dict[str, object] = {
    "n_train": 10_000,
    "n_test": 1000,
    "recipe": {"epochs": 10, "schedule": "triangular", **CIFAR},
    "attack": {"n_steps": 3, "step": 4 / 255},
    "evaluation": {"n_steps": 20, "n_restarts": 2},
    "keep": (1, 4, 10),
    "fewest": 20,
}

SIZES: dict[str, dict[str, dict[str, object]]] = {
    "21_concept_detectors": {
        # the network of 22, and a second one of few epochs to compare spaces on
        "quick": {
            "n_train": 4096,
            "n_probe": 2048,
            "n_sets": 3,
            "n_rounds": 10,
            "recipe": {"epochs": 8, **RECIPE},
            "keep": (0, 1, 2, 3, 4, 6, 8),
            "second": {"epochs": 2, **RECIPE},
            "real": {},  # needs photographs: not run
        },
        "full": {
            "n_train": 8192,
            "n_probe": 4096,
            "n_sets": 5,
            "n_rounds": 20,
            "recipe": {"epochs": 8, **RECIPE},
            "keep": (0, 1, 2, 3, 4, 6, 8),
            "second": {"epochs": 8, **RECIPE},
            "real": {"side": 128, "n_each": 650, "fewest": 20, "n_rounds": 5},
        },
    },
    "22_standard_training": {
        "quick": {
            "n_seeds": 1,
            "n_train": 4096,
            "n_test": 1024,
            "n_probe": 2048,
            "recipe": {"epochs": 8, **RECIPE},
            "keep": (0, 1, 2, 3, 4, 6, 8),
            "watched": {"n_images": 1024, "recipe": {"epochs": 4, **SMALL}},
            "n_draws": 1000,
        },
        "full": {
            "n_seeds": 3,
            "n_train": 8192,
            "n_test": 2048,
            "n_probe": 4096,
            "recipe": {"epochs": 8, **RECIPE},
            "keep": (0, 1, 2, 3, 4, 6, 8),
            "watched": {"n_images": 1024, "recipe": {"epochs": 4, **SMALL}},
            "n_draws": 1000,
        },
    },
    "23_lottery_ticket": {
        "quick": {
            "n_seeds": 1,
            "task": "scenes",  # learned in three epochs; objects, the document's role, are not
            "n_train": 4096,
            "n_test": 512,
            "n_probe": 1024,
            "recipe": {"epochs": 3, **SMALL},
            "rewinds": (0, 1, 2),
            "n_stages": 8,
            "amount": 0.4,
            "n_random": 3,
            "n_batches": 16,
            "n_draws": 1000,
            "real": (),  # the data are not embedded
        },
        "full": {
            "n_seeds": 3,
            "task": "objects",
            "n_train": 4096,
            "n_test": 1024,
            "n_probe": 2048,
            "recipe": {"epochs": 6, **SMALL},
            "rewinds": (0, 1, 3),
            "n_stages": 8,
            "amount": 0.4,
            "n_random": 5,
            "n_batches": 50,
            "n_draws": 1000,
            "real": (REAL_TICKETS,),
        },
    },
    "24_adversarial_training": {
        "quick": {
            "n_seeds": 1,
            "n_train": 8192,
            "n_test": 512,
            "n_probe": 2048,
            "recipe": {"epochs": 5, **SMALL},
            "attack": {"n_steps": 2, "step": 5 / 255},
            "evaluation": {"n_steps": 10, "n_restarts": 2},
            "keep": (1, 3, 5),
            "n_draws": 1000,
            "real": (),  # the data are not embedded
        },
        "full": {
            "n_seeds": 3,
            "n_train": 8192,
            "n_test": 1024,
            "n_probe": 4096,
            "recipe": {"epochs": 8, **SMALL},
            "attack": {"n_steps": 3, "step": 4 / 255},
            "evaluation": {"n_steps": 20, "n_restarts": 3},
            "keep": (1, 4, 8),
            "n_draws": 1000,
            "real": (REAL_PAIR,),
        },
    },
    "25_fine_tuning": {
        "quick": {
            "n_seeds": 1,
            "n_before": 4096,  # objects
            "before": {"epochs": 5, **SMALL},
            "before_keep": (0, 1, 3, 5),
            "n_train": 3072,
            "n_test": 512,
            "n_probe": 2048,
            "recipe": {
                "epochs": 8,
                "batch_size": 32,
                "lr": 1e-3,
                "optimizer": "adam",
                "schedule": "linear",
            },
            "keep": (0, 1, 2, 4, 8),
            "n_draws": 1000,
            "real": {},  # needs photographs: not run
        },
        "full": {
            "n_seeds": 3,
            "n_before": 8192,
            "before": {"epochs": 8, **SMALL},
            "before_keep": (0, 1, 4, 8),
            "n_train": 8192,
            "n_test": 1024,
            "n_probe": 4096,
            "recipe": {
                "epochs": 8,
                "batch_size": 32,
                "lr": 1e-3,
                "optimizer": "adam",
                "schedule": "linear",
            },
            "keep": (0, 1, 2, 4, 8),
            "n_draws": 1000,
            "real": {  # photographs below DATA_ROOT
                "side": 128,
                "n_train": 60,  # of 120 images of each texture; the last 40 probe
                "n_test": 20,
                "n_each": 650,  # street scenes, and as many of clothing
                "fewest": 20,
                "n_rounds": 5,
                "recipe": {
                    "epochs": 8,
                    "batch_size": 32,
                    "lr": 3e-4,
                    "optimizer": "adam",
                    "schedule": "linear",
                    "augment": "flip_crop",
                },
                "keep": (0, 1, 2, 4, 8),
            },
        },
    },
}
