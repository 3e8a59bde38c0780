"""Non-negative factorisation of per-example Fishers (document 3)."""
