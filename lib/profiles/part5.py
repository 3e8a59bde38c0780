"""Sizes of document 5's notebooks. Read them through `lib.config`."""

from __future__ import annotations

NO_PAPER: dict[str, str] = {
    "52_images": "`full` already is the document's data and architecture; a GPU may take more rows",
    "54_open_questions": "the document proposes these experiments and states no sizes",
    "51_tabular": "`full` already is the document's table at the document's size",
}

# the autoencoder of the embedded digits: the document's architecture, narrow
_DIGITS: dict[str, object] = {
    "n_train": 1000,
    "channels": 8,
    "latent": 32,
    "epochs": 20,
    "batch": 32,
    "lr": 2e-3,
}

SIZES: dict[str, dict[str, dict[str, object]]] = {
    "51_tabular": {
        "quick": {
            "worlds": ("shared", "independent"),
            "n_models": 4,
            "epochs": 20,
            "n_table": 6000,
            "rho": 0.7,
            "n_rows": 100,
            "lambdas": (0.01, 0.05, 0.25),
            "n_path_rows": 20,
            "study": {
                "rhos": (0.0, 0.3, 0.6, 0.9),
                "alpha": 0.5,
                "n_seeds": 3,
                "n": 800,
                "n_rows": 32,
                "epochs": 20,
            },
        },
        "full": {
            "worlds": ("real", "shared", "independent"),
            "n_models": 10,
            "epochs": 12,
            "n_table": 20640,
            "rho": 0.7,
            "n_rows": 200,
            "lambdas": (0.01, 0.05, 0.25),
            "n_path_rows": 40,
            "study": {
                "rhos": (0.0, 0.3, 0.6, 0.9),
                "alpha": 0.5,
                "n_seeds": 10,
                "n": 2000,
                "n_rows": 64,
                "epochs": 40,
            },
        },
    },
    "52_images": {
        "quick": {
            "beds": {
                "digits": _DIGITS,
            },
            "loop_set": "digits",
            "bright_set": "digits",
            "shown_loop": 13,
            "shown_bright": (3, 5, 20, 24),
            "n_loop": 120,
            "n_bright": 32,
            "n_faithful": 60,
            "n_through": 16,
            "targets": (0.5, 0.9, 0.99, 0.999),
        },
        "full": {
            "beds": {
                "mnist": {
                    "n_train": 12000,
                    "channels": 32,
                    "latent": 64,
                    "epochs": 6,
                    "batch": 64,
                    "lr": 1e-3,
                },
                "fashion": {
                    "n_train": 2500,
                    "channels": 64,
                    "latent": 128,
                    "epochs": 6,
                    "batch": 32,
                    "lr": 1e-3,
                },
            },
            "loop_set": "mnist",
            "bright_set": "fashion",
            "shown_loop": 73,
            "shown_bright": (41, 95, 150, 777),
            "n_loop": 120,
            "n_bright": 12,
            "n_faithful": 30,
            "n_through": 8,
            "targets": (0.5, 0.9, 0.99, 0.999),
        },
    },
    "54_open_questions": {
        "quick": {
            "table": {"n_models": 1, "epochs": 20, "n_rows": 6000, "rho": 0.7},
            "digits": _DIGITS,
            "n_inputs": 24,
            "n_weights": 41,
            "fixed": 0.25,
            "layers": (1, 2, 4),
            "language": {"width": 32, "n": 3000, "epochs": 6, "lr": 3e-3},
            "n_probe": 1000,
            "n_prefixes": 24,
            "quality": {
                "n_rows": (50, 200, 1000),
                "noises": (0.0, 0.2, 0.4),
                "n_seeds": 3,
                "n_train": 1000,
                "n_explained": 8,
                "epochs": 10,
            },
            "networks": {
                "mlp": tuple({"widths": (256, w, w // 2, 2)} for w in (32, 128, 512)),
                "cnn": tuple(
                    {"size": 16, "channels": c, "n_out": 2} for c in ((4, 8), (12, 24), (24, 48))
                ),
            },
            "sizes": {"n_train": 800, "n_probe": 400, "n": 24, "epochs": 4},
            "study": {
                "rhos": (0.0, 0.3, 0.6, 0.9),
                "alpha": 0.5,
                "n_seeds": 3,
                "n": 2000,
                "n_rows": 16,
                "epochs": 10,
            },
        },
        "full": {
            "table": {"n_models": 1, "epochs": 20, "n_rows": 20640, "rho": 0.7},
            "digits": _DIGITS,
            "n_inputs": 100,
            "n_weights": 41,
            "fixed": 0.25,
            "layers": (1, 2, 4),
            "language": {"width": 64, "n": 12000, "epochs": 10, "lr": 2e-3},
            "n_probe": 4000,
            "n_prefixes": 100,
            "quality": {
                "n_rows": (50, 200, 1000, 5000),
                "noises": (0.0, 0.1, 0.2, 0.3, 0.4),
                "n_seeds": 10,
                "n_train": 4000,
                "n_explained": 16,
                "epochs": 20,
            },
            "networks": {
                "mlp": tuple({"widths": (256, w, w // 2, 2)} for w in (32, 256, 1024)),
                "cnn": tuple(
                    {"size": 16, "channels": c, "n_out": 2} for c in ((8, 16), (32, 64), (96, 192))
                ),
            },
            "sizes": {"n_train": 4000, "n_probe": 1000, "n": 100, "epochs": 6},
            "study": {
                "rhos": (0.0, 0.3, 0.6, 0.9),
                "alpha": 0.5,
                "n_seeds": 10,
                "n": 2000,
                "n_rows": 64,
                "epochs": 40,
            },
        },
    },
}
