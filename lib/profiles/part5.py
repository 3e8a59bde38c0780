"""Sizes of document 5's notebooks. Read them through `lib.config`."""

from __future__ import annotations

NO_PAPER: dict[str, str] = {
    "52_images": "`full` already is the document's data and architecture; a GPU may take more rows",
    "54_open_questions": "the document proposes these experiments and states no sizes",
    "51_tabular": "`full` already is the document's table at the document's size",
    "53_chess": "the authors' 50,000 labelled positions are in no public file",
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

# about 1e4, 1e5 and 1e6 weights on rings of 16x16 pixels
_RING_NETWORKS: dict[str, tuple[dict[str, object], ...]] = {
    "mlp": tuple({"widths": (256, w, w // 2, 2)} for w in (36, 256, 1180)),
    "cnn": tuple(
        {"size": 16, "channels": c, "n_out": 2} for c in ((20, 44), (72, 144), (232, 464))
    ),
    "residual": tuple({"size": 16, "width": w, "n_out": 2} for w in (16, 52, 166)),
    "vit": tuple(
        {"size": 16, "width": w, "n_layers": k, "n_out": 2} for w, k in ((20, 2), (52, 3), (144, 4))
    ),
}
# about 3e4
_BETWEEN: dict[str, dict[str, object]] = {
    "mlp": {"widths": (256, 100, 50, 2)},
    "cnn": {"size": 16, "channels": (36, 72), "n_out": 2},
    "residual": {"size": 16, "width": 28, "n_out": 2},
    "vit": {"size": 16, "width": 32, "n_layers": 2, "n_out": 2},
}


def _ring_training(epochs: int) -> dict[str, dict[str, float]]:
    """A transformer has no convolution's prior: twice the epochs at half the rate."""
    usual = {"epochs": epochs, "lr": 2e-3}
    return dict.fromkeys(_RING_NETWORKS, usual) | {"vit": {"epochs": 2 * epochs, "lr": 1e-3}}


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
            "layers": (1, 4),
            "language": {"width": 32, "n": 3000, "epochs": 6, "lr": 3e-3},
            "language_seeds": {"trained": 2, "random": 1},
            "clauses_of": ("trained",),
            "n_probe": 1000,
            "n_prefixes": 24,
            "n_clauses": 12,
            "quality": {
                "n_rows": (50, 200, 1000),
                "noises": (0.0, 0.2, 0.4),
                "n_seeds": 3,
                "n_train": 1000,
                "n_explained": 8,
                "epochs": 10,
            },
            "networks": {
                name: (specs[0], _BETWEEN[name]) for name, specs in _RING_NETWORKS.items()
            },
            "sizes": {"n_train": 800, "n_probe": 400, "n": 24, "training": _ring_training(4)},
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
            "language_seeds": {"trained": 3, "random": 3},
            "clauses_of": ("trained", "random"),
            "n_probe": 4000,
            "n_prefixes": 100,
            "n_clauses": 24,
            "quality": {
                "n_rows": (50, 200, 1000, 5000),
                "noises": (0.0, 0.1, 0.2, 0.3, 0.4),
                "n_seeds": 10,
                "n_train": 4000,
                "n_explained": 16,
                "epochs": 20,
            },
            "networks": _RING_NETWORKS,
            "sizes": {"n_train": 4000, "n_probe": 1000, "n": 100, "training": _ring_training(6)},
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
    "53_chess": {
        "quick": {
            "network": "own",
            "n_positions": 40_000,
            "n_train": 16_000,
            "width": 32,
            "epochs": 4,
            "n_checker": 4000,
            "checkpoints": (1, 4),
            "n_detect": 2000,
            "concepts": (
                "threat_opp_queen",
                "threat_my_queen",
                "in_check",
                "material_advantage",
                "random",
            ),
            "n_probe": 4000,
            "raw_layer": "blocks.block2.first",
            "guard": {
                "layers": ("stem", "blocks.block1.first", "blocks.block2.second"),
                "n_edited": 2500,
            },
            "mined": {"n_mined": 12, "rounds": 2},
            "n_boards": 30,
            "n_relaxed": 30,
            "bop_steps": 1000,
            "ste_steps": 200,
            "weights": (0.0, 0.3, 1.0, 3.0, 10.0),
            "n_sweep": 12,
            "sweep_steps": 300,
            "n_faults": 300,
            "modes": {"names": (), "n": 30},
            "certified": {"n": 4, "budget": 2000, "further": 0},
            "depths": {
                "blocks": (3,),  # the tower of above: others take minutes to train
                "width": 32,
                "n_train": 16_000,
                "epochs": 4,
                "n_probe": 4000,
                "n_edited": 2500,
                "n_boards": 4,
            },
            "large": {
                "bed": {
                    "n_games": 200,
                    "ratings": (),
                    "layers": ("stem", "blocks.block1.first", "blocks.block6.first", "policy1"),
                    "width": 16,
                },
                "concepts": ("threat_opp_queen", "threat_my_queen", "in_check", "random"),
                "n_detect": 800,
                "n_probe": 1000,
                "guards": {
                    "raw": {"layers": ("blocks.block1.first",)},
                    "guarded": {"layers": ("stem", "blocks.block1.first"), "n_edited": 1000},
                },
                "n_boards": 4,
            },
        },
        "full": {
            "network": "official",
            "n_positions": 60_000,
            "n_train": 0,
            "width": 0,
            "epochs": 0,
            "n_checker": 0,
            "checkpoints": (1, 50, 400),
            "n_detect": 3000,
            "concepts": (
                "threat_opp_queen",
                "threat_my_queen",
                "in_check",
                "material_advantage",
                "random",
                "has_mate_threat",
            ),
            "n_probe": 8000,
            "raw_layer": "blocks.block2.first",
            "guard": {
                "layers": ("stem", "blocks.block1.first", "blocks.block2.first"),
                "n_edited": 5000,
            },
            "mined": {"n_mined": 60, "rounds": 3},
            "n_boards": 100,
            "n_relaxed": 20,
            "bop_steps": 1000,
            "ste_steps": 200,
            "weights": (0.0, 0.3, 1.0, 3.0, 10.0),
            "n_sweep": 10,
            "sweep_steps": 300,
            "n_faults": 500,
            "modes": {
                "names": ("with recolouring", "typical", "with a move before it"),
                "n": 100,
            },
            "certified": {"n": 30, "budget": 20_000, "further": 2000},
            "depths": {
                "blocks": (1, 3, 6),
                "width": 32,
                "n_train": 40_000,
                "epochs": 4,
                "n_probe": 8000,
                "n_edited": 5000,
                "n_boards": 100,
            },
            "large": {
                "bed": {
                    "n_games": 1500,
                    "ratings": (1100, 1500, 1900),
                    "layers": (
                        "stem",
                        *(f"blocks.block{k}.first" for k in range(1, 7)),
                        "policy1",
                    ),
                    "width": 64,
                },
                "concepts": (
                    "threat_opp_queen",
                    "threat_my_queen",
                    "in_check",
                    "material_advantage",
                    "random",
                ),
                "n_detect": 3000,
                "n_probe": 4000,
                "guards": {
                    "raw": {"layers": ("blocks.block3.first",)},
                    "guarded": {
                        "layers": ("stem", "blocks.block1.first", "blocks.block3.first"),
                        "n_edited": 3000,
                    },
                },
                "n_boards": 30,
            },
        },
    },
}
