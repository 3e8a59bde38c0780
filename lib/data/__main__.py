"""``python -m lib.data`` (`make data`): fetch the public data sets into DATA_ROOT.

One line per set. Exit code 0, 1 if a set failed, 130 if interrupted. DATA_MIRROR names a server
that has the files in the layout of DATA_ROOT.
"""

from __future__ import annotations

import os
import sys

from lib import config


def main() -> int:
    """Fetch what is missing and say, set by set, what happened."""
    root, failed = config.data_root(), 0
    mirror = os.environ.get("DATA_MIRROR", "")
    try:
        from lib.data import download  # loads torch: seconds in which one may press Ctrl-C

        for outcome in download.fetch_sets(root, download.public_sets(), mirror=mirror):
            word = "ok  " if outcome.ok else "FAIL"
            print(f"{word}  {outcome.name}: {outcome.text}", flush=True)
            failed += not outcome.ok
    except KeyboardInterrupt:
        print("interrupted; what was whole is kept, run it again for the rest", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
