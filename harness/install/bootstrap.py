"""Create the virtual environment: standard library only, run by the system's Python before anything is installed.

`python3 harness/install/bootstrap.py .venv [--locked]`. What would fail later is said in one line before anything is
downloaded. With --locked pip takes no file whose hash requirements.lock does not have.
"""

import os
import shutil
import subprocess
import sys
import tempfile

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


def locked_parts(lock):  # type: (str) -> list[str]
    """The text of requirements.lock in the parts that are installed one after the other.

    Some packages come as source and are built with setuptools. pip keeps every wheel of a call until its end: torch's
    gigabytes are gone before the rest comes.
    """
    builders, torch, rest = "", "", ""
    wanted = None
    for line in lock.splitlines(True):
        if line[:1].isalnum():
            wanted = line.split("==")[0]
        if wanted == "setuptools":
            builders += line
        elif wanted in ("torch", "triton") or (wanted or "").startswith(("cuda-", "nvidia-")):
            torch += line
        else:
            rest += line
    return [builders, torch, rest]


def locked_commands(root, folder):  # type: (str, str) -> list[list[str]]
    """What pip is asked for, in order; the parts of requirements.lock are written into `folder`."""
    commands = []
    with open(os.path.join(root, "requirements.lock")) as f:
        parts = locked_parts(f.read())
    for number, part in enumerate(parts):
        file = os.path.join(folder, "part-%d.txt" % number)
        with open(file, "w") as f:
            f.write(part)
        # the lock is whole, so nothing else is looked for
        commands.append(["--require-hashes", "--no-deps", "--no-build-isolation", "-r", file])
    return [*commands, ["--no-deps", "--no-build-isolation", "-e", "."]]


def main():  # type: () -> None
    venv, locked = sys.argv[1], sys.argv[2:] == ["--locked"]
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
    commands = [["-c", "constraints.txt", "torch"], ["-c", "constraints.txt", "-e", ".[dev]"]]
    with tempfile.TemporaryDirectory() as folder:
        for wanted in locked_commands(root, folder) if locked else commands:
            done = subprocess.run([*pip, "install", *wanted], cwd=root)
            if done.returncode:
                sys.exit(
                    "prunebench: the installation failed (pip exit code %d, its message is above); the same command"
                    " tries again" % done.returncode
                )
    with open(stamp, "w") as f:
        f.write("ok\n")
    if locked:  # with the packages of the documentation, as the Makefile marks them
        with open(os.path.join(venv, ".docs"), "w") as f:
            f.write("ok\n")


if __name__ == "__main__":
    main()
