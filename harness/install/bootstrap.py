"""Create the virtual environment: standard library only, run by the system's Python before anything is installed.

`python3 harness/install/bootstrap.py .venv`. What would fail later is said in one line before anything is downloaded.
"""

import os
import shutil
import subprocess
import sys

NEWEST = (3, 13)
OLDEST = (3, 11)
#: 6.8 GB stay and 7.2 GB are the most at one time (Linux, torch with CUDA); results need the rest
FREE_GB = 8


def suitable(version):  # type: (tuple[int, ...]) -> bool
    return OLDEST <= tuple(version[:2]) <= NEWEST


def find_python():  # type: () -> str
    """The running Python if it fits, else a fitting one on the PATH, else an exit with one line."""
    if suitable(sys.version_info[:2]):
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which("python3.%d" % minor)
        if found and subprocess.run([found, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return found
    sys.exit(
        "prunebench needs Python 3.11 to 3.13, found %d.%d: install one, then `make venv PYTHON=python3.12`"
        % sys.version_info[:2]
    )


def main():  # type: () -> None
    venv = sys.argv[1]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = find_python()
    if subprocess.run([python, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL).returncode:
        sys.exit(
            "prunebench needs Python's venv module, which %s lacks: install it (Debian: apt install python3-venv)"
            % python
        )
    free = shutil.disk_usage(root).free / 1e9
    if free < FREE_GB and not os.path.isdir(venv):
        said = (
            "prunebench needs %d GB of free disk for its environment, found %.1f GB in %s: free some, or clone to a"
            " larger disk"
        )
        sys.exit(said % (FREE_GB, free, root))
    stamp = os.path.join(venv, ".installed")
    if os.path.exists(stamp):
        os.remove(stamp)
    print("prunebench: setting up %s with %s (once; a few GB to download)" % (venv, python), flush=True)
    subprocess.run([python, "-m", "venv", venv], check=True)
    pip = [os.path.join(venv, "bin", "python"), "-m", "pip", "--disable-pip-version-check"]
    # pip keeps every wheel of a call until its end: torch's gigabytes are gone before the rest comes
    for wanted in (["torch"], ["-e", ".[dev]"]):
        done = subprocess.run([*pip, "install", "-c", "constraints.txt", *wanted], cwd=root)
        if done.returncode:
            sys.exit(
                "prunebench: the installation failed (pip exit code %d, its message is above); the same command tries"
                " again" % done.returncode
            )
    with open(stamp, "w") as f:
        f.write("ok\n")


if __name__ == "__main__":
    main()
