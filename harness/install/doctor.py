"""`prunebench doctor`: is this installation fit to measure with, and what mends it if not.

Every kind of problem has a function of its own, which says a line for what is well and yields what is not.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from harness.core.errors import PrunebenchError
from harness.core.paths import CHECKOUT
from harness.core.tested import untested

PINNED = (
    "torch",
    "torchvision",
    "transformers",
    "huggingface-hub",
    "lmms-eval",
    "datasets",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "scipy",
    "tokenizers",
    "safetensors",
)
REINSTALL = "make clean-venv && make venv" if CHECKOUT else "pip install --force-reinstall prunebench"
#: restores the embedded models and their data
RESTORE = "git checkout -- tasks/mini" if CHECKOUT else "pip install --force-reinstall --no-deps prunebench"
PROGRAM = ".venv/bin/prunebench" if CHECKOUT else "prunebench"
#: below this much free disk a sweep may end before its answers are written
FREE_GB = 1.0
#: while one of these is on, the libraries of the hub fetch nothing
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
NOT_INSTALLED, NOT_LOADED = " is not installed", "a package does not load: "
Say = Callable[[str], None]


class Problem(NamedTuple):
    """What is wrong, and the command that mends it."""

    text: str
    mend: str


def torchvision_problem() -> str | None:
    """Why torchvision does not load, or None. A wheel for another torch breaks transformers' whole image stack."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        found = []
        for name in ("torch", "torchvision"):
            try:
                found.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                found.append(f"{name} (not installed)")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"{' and '.join(found)} do not fit together ({reason})"
    return None


def report(say: Say = print, results: Path = Path("results/local")) -> bool:
    """Print versions, device, folders and what is wrong; True if everything is well.

    The last line is `all well`, or the number of problems with the command that mends them. Nothing is written but a
    file without a name, for a moment, where results and caches go.
    """
    say(f"python         {sys.version.split()[0]} ({sys.executable})")
    problems = [*versions(say), *python()]
    mismatch = torchvision_problem()
    say(f"torch pair     {'torch and torchvision do not match' if mismatch else 'torch and torchvision match'}")
    if mismatch:
        problems.append(Problem(mismatch, REINSTALL))
    else:
        problems += [*_loading(devices(say)), *_loading(embedded(say)), *_loading(plugins(say))]
    problems += [*place(say, results), *_loading(caches(say))]
    lacking = {problem.text for problem in problems if problem.text.endswith(NOT_INSTALLED)}
    # what does not load for want of a package that is named already is no problem more
    problems = [one for one in dict.fromkeys(problems) if not (lacking and one.text.startswith(NOT_LOADED))]
    for name in OFFLINE:
        if os.environ.get(name, "").lower() in ("1", "on", "yes", "true"):
            say(f"note           {name}={os.environ[name]}: nothing is fetched from the hub until `unset {name}`")
    extras(say)
    for problem in problems:
        say(f"PROBLEM        {problem.text}; mend it with: {problem.mend}")
    say(verdict(problems))
    return not problems


def verdict(problems: list[Problem]) -> str:
    """One line: `all well`, or how many problems there are and the one command that mends them.

    A command that several problems need is named once. The choice of another Python sets the environment up as well.
    """
    if not problems:
        return "all well"
    mends = list(dict.fromkeys(problem.mend for problem in problems))
    if any(mend.startswith(f"{REINSTALL} ") for mend in mends):
        mends = [mend for mend in mends if mend != REINSTALL]
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}, mended by: {' && '.join(mends)}"


def versions(say: Say) -> Iterator[Problem]:
    """Packages that lack, or whose version the declared range excludes."""
    for name in PINNED:
        try:
            say(f"{name:<14} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Problem(f"{name}{NOT_INSTALLED}", REINSTALL)
    for outside in untested():
        if outside.refused:
            yield Problem(outside.text, REINSTALL)
        else:
            say(f"note           {outside.text}")


def python() -> Iterator[Problem]:
    """A Python that nobody tested."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = f"expected Python 3.11 to 3.13, found {sys.version.split()[0]}"
        yield Problem(found, f"{REINSTALL} PYTHON=python3.12" if CHECKOUT else "python3.12 -m pip install prunebench")


def _loading(found: Iterable[Problem]) -> Iterator[Problem]:
    """The problems, and one more where a package does not load on the way to them."""
    try:
        yield from found
    except ImportError as error:
        yield Problem(f"{NOT_LOADED}{' '.join(str(error).split())}", REINSTALL)


def devices(say: Say) -> Iterator[Problem]:
    """Say which device, kernels and image processor a run would use: no problem of its own."""
    yield from ()
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            say(
                f"device         cuda:{i} {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of"
                f" {total / 2**30:.1f} GiB free"
            )
    else:
        say(f"device         cpu, {torch.get_num_threads()} threads (no CUDA device; torch {torch.__version__})")
    from harness.models.device import kernels, pick_device

    say(f"kernels        {kernels(pick_device('auto'))}")
    from transformers import CLIPImageProcessor

    backend = (
        "torchvision"
        if "Torchvision" in str(CLIPImageProcessor.__mro__) or "Fast" in CLIPImageProcessor.__name__
        else "PIL"
    )
    say(f"images         {CLIPImageProcessor.__name__} ({backend} backend)")


def embedded(say: Say) -> Iterator[Problem]:
    """Files of an embedded model or of its data that lack or differ."""
    from harness.models.config import EMBEDDED
    from harness.models.load import locate_model

    for name in EMBEDDED:
        try:
            located = locate_model(name, "cpu")
        except PrunebenchError as error:
            yield Problem(str(error), RESTORE)
            continue
        most = f"{'' if located.one_size else 'at most '}{located.usual.n_visual}"
        title = "mini model" if name == "mini" else name
        say(f"{title:<14} {located.shape.depth} layers, {most} visual tokens an image, in {located.folder.name}/")
    from tasks.mini import data
    from tasks.mini.qwen.data import state

    try:
        data.verify()
        say("mini data      complete")
        say(f"mini-qwen data {state()}")
    except PrunebenchError as error:
        yield Problem(str(error), RESTORE)


def plugins(say: Say) -> Iterator[Problem]:
    """Methods of other packages that do not load."""
    from harness.method.registry import BROKEN, ENTRY_POINT_GROUP, registered

    registered()
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if fine := sorted({point.name for point in points} - BROKEN.keys()):
        say(f"plug-ins       {', '.join(fine)}")
    for name, why in sorted(BROKEN.items()):
        package = next((point.dist.name for point in points if point.name == name and point.dist), name)
        yield Problem(why, f"{shlex.quote(sys.executable)} -m pip uninstall -y {shlex.quote(package)}")


def place(say: Say, results: Path) -> Iterator[Problem]:
    """A results folder that takes no files or no locks, or lies on a full disk."""
    from harness.store.lease import ONE_RUNNER, NoLocks, check_locks

    folder = _nearest(results)
    if refusal := _refusal(folder):
        found = f"expected a results folder that takes files, found {folder}: {refusal.strerror or refusal}"
        yield Problem(*_opened(found, folder, refusal, results))
        return
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_GB:
        found = f"expected {FREE_GB:g} GB of free disk for results, found {free:.2f} GB in {folder}"
        yield Problem(found, _tidied(results))
    try:
        check_locks(folder)
    except NoLocks as error:
        found = str(error).partition(": choose")[0]
        yield Problem(f"{found}; if no other runner uses the folder, say so", f"export {ONE_RUNNER}=1")
        return
    say(f"results        {results}, {free:.1f} GB free, locks hold")


def caches(say: Say) -> Iterator[Problem]:
    """Folders for files of the hub and for data that are drawn, which take no files."""
    from huggingface_hub import constants

    from tasks.mini.qwen.data import folder as drawn

    used = {"the data of mini-qwen": (drawn().parent, "XDG_CACHE_HOME")}
    if not constants.HF_HUB_OFFLINE:  # a cache that is only read may be anybody's
        used["files of the hub"] = (Path(constants.HF_HUB_CACHE), "HF_HOME")
    for what, (cache, variable) in used.items():
        if (refusal := _refusal(_nearest(cache))) and not (variable == "XDG_CACHE_HOME" and drawn().exists()):
            found = f"expected a cache for {what} that takes files, found {cache}: {refusal.strerror or refusal}"
            yield Problem(found, f"export {variable}={shlex.quote(str(Path.cwd() / 'results' / 'local' / 'cache'))}")


def extras(say: Say) -> None:
    """Say which programs lack that only the checkout's own pages and tests need."""
    if CHECKOUT is None:
        return
    if importlib.util.find_spec("mkdocs") is None:
        say("note           no mkdocs: `make docs` adds it, and nothing else needs it")
    if lacking := [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]:
        say(f"note           no {' and no '.join(lacking)}: for tests of the page and `prunebench dev screenshots`")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    folder = Path(os.path.abspath(folder))
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _refusal(folder: Path) -> OSError | None:
    """Why a folder takes no files, by trying one without a name; None where it takes some."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        return error
    return None


def _opened(found: str, folder: Path, refusal: OSError, results: Path) -> tuple[str, str]:
    """What is wrong with a folder for results, and the command that mends it."""
    quoted = shlex.quote(str(folder))
    if not folder.is_dir():
        return found, f"mv {quoted} {shlex.quote(f'{folder}.old')}"
    if refusal.errno in (errno.ENOSPC, errno.EDQUOT):
        return found, _tidied(results)
    if refusal.errno in (errno.EACCES, errno.EPERM) and folder.stat().st_uid == os.geteuid():
        return found, f"chmod u+rwx {quoted}"
    # the folder of another person, or of a disk that is only read
    other = shlex.quote(str(Path.home() / "prunebench-results"))
    return f"{found}; name another folder as RESULTS= or --results", f"mkdir -p {other}"


def _tidied(results: Path) -> str:
    return f"{PROGRAM} results gc --yes --results {shlex.quote(str(results))}"
