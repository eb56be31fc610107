"""The places of our files: in a checkout, and where prunebench is installed.

The wheel has the packages harness/, methods/ and tasks/ beside one another, and the other files of a checkout that
commands read as prunebench/_data/, under the same names.
"""

from __future__ import annotations

from pathlib import Path

from harness.core.errors import PrunebenchError
from harness.core.spelling import given

#: the folder in which harness/, methods/ and tasks/ lie: the top level of a checkout, or a folder of installed packages
TOP = Path(__file__).resolve().parents[2]
_PACKED = TOP / "prunebench" / "_data"
#: the checkout that this code runs from; None where prunebench is installed
CHECKOUT: Path | None = None if _PACKED.is_dir() else TOP
#: holds configs/ and results/published.csv
DATA = CHECKOUT or _PACKED


def checkout(needs: str) -> Path:
    """The checkout's top level. Raises PrunebenchError where prunebench is installed; `needs` says for which purpose a
    checkout is needed."""
    if CHECKOUT is None:
        raise PrunebenchError(
            f"{needs} needs a checkout of prunebench's repository, found an installed package ({TOP}): clone the"
            " repository and run the command there"
        )
    return CHECKOUT


def make_folder(folder: Path, option: str = "out") -> None:
    """Create the folder that a command writes into, and that `option` names. Raises PrunebenchError if it
    cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise PrunebenchError(
            f"{given(option, folder)}: expected a folder, or a place where one can be made: {why}; give another"
        ) from None


def resolved(file: Path) -> Path:
    """A file as a user names it: in the working directory, else ours of that name, as in configs/mini.yaml.

    Where neither exists the path comes back as it was given.
    """
    return file if file.exists() or not (DATA / file).exists() else DATA / file
