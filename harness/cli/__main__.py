"""`python -m harness.cli`: the command `prunebench`."""

import prunebench  # noqa: F401  # refuses where a folder of the user's hides a package of ours
from harness.cli import main

if __name__ == "__main__":
    main()
