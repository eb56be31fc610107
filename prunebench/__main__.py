"""`python -m prunebench`: the command `prunebench`."""

from harness.cli import main

if __name__ == "__main__":
    main()
