"""Sizes of document 5's notebooks. Read them through `lib.config`."""

from __future__ import annotations

NO_PAPER: dict[str, str] = {
    "51_tabular": "`full` already is the document's table at the document's size",
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
}
