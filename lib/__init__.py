"""Code of the companion, one file or package per idea.

Shared: `config` (profiles, sizes, folders), `data`, `models`, `training`, `features`, `cache`,
`parallel`, `figures`, `claims`, `widgets`. Topics: `probes`, `attribution`, `monitoring`, `npeff`,
`backprop`. `engine` is what `make` runs. Topics import shared files, never the other way round.
"""
