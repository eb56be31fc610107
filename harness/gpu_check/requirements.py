"""Which packages the check needs beside torch, and versions known to compute otherwise. Python's own library only: it
runs before all else."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: what a machine with torch usually lacks, as constraints.txt has it, and what it often has; torch and numpy are
#: expected
LACKING = {
    "transformers": "==5.23.0",
    "pydantic": "==2.14.3",
    "pydantic_core": "==2.50.4",
    "annotated-types": "==0.8.0",
    "typing-inspection": "==0.4.5",
}
OFTEN_THERE = {
    "tokenizers": ">=0.23.1,<0.24",
    "safetensors": ">=0.8",
    "huggingface_hub": ">=1.31,<3",
    "httpx2": ">=2,<3",
    "httpcore2": ">=2",
    "h11": ">=0.16",
    "anyio": ">=4",
    "idna": ">=3",
    "truststore": ">=0.10",
    "pillow": ">=11",
    "regex": ">=2025.10.22",
    "packaging": ">=20",
    "PyYAML": ">=6",
    "tqdm": ">=4.66",
    "tabulate": ">=0.9",
}
WHEELS = LACKING | OFTEN_THERE
#: what only huggingface_hub 2 imports; version 1 has httpx in their place
OF_HUB_2 = {"httpx2", "httpcore2", "h11", "anyio", "idna", "truststore"}
#: what is recorded with every result
RECORDED = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow", "pydantic", "triton")


def wheel_list() -> str:
    """The requirements, one a line, as pip reads them."""
    groups = (
        ("beside torch and numpy, with pip's --no-deps", LACKING),
        ("often there already: leave out what is", OFTEN_THERE),
    )
    return "\n".join(
        line for said, group in groups for line in (f"# {said}", *(f"{name}{spec}" for name, spec in group.items()))
    )


class Known(NamedTuple):
    """A version that is no good: `fails` versions of `package`; `refused` where nothing can run, otherwise the numbers
    are in doubt."""

    package: str
    fails: Callable[[tuple[int, ...]], bool]
    why: str
    refused: bool


KNOWN = (
    Known("python", lambda v: not (3, 11) <= v[:2] <= (3, 13), "expected Python 3.11 to 3.13", True),
    Known("torch", lambda v: v < (2, 11), "expected torch 2.11 or later", True),
    Known(
        "torch",
        lambda v: v == (2, 13, 0),
        "torch 2.13.0 is a CPU-only build that no torchvision fits: take 2.12.0 or 2.14",
        True,
    ),
    Known(
        "transformers",
        lambda v: v < (5, 18),
        "before 5.18 LLaVA ignores image features that are given, so every answer is blind",
        True,
    ),
    Known("transformers", lambda v: v >= (6,), "expected transformers 5", True),
    Known(
        "tokenizers",
        lambda v: not (0, 23, 1) <= v < (0, 24),
        "expected tokenizers 0.23.1 or later and before 0.24, as transformers asks",
        True,
    ),
    Known("torch", lambda v: v >= (2, 13), "nothing was measured with torch 2.13 or later yet", False),
)


def installed() -> dict[str, str]:
    """Version by package; what is not installed is left out."""
    found = {"python": sys.version.split()[0]}
    for name in dict.fromkeys((*RECORDED, *WHEELS)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def numbers(version: str) -> tuple[int, ...]:
    """2.12.0+cu130 -> (2, 12, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def problems(found: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(why nothing can run, what puts the numbers in doubt), one line each."""
    hub = numbers(found.get("huggingface_hub", "2"))
    needed = [name for name in ("torch", "numpy", *WHEELS) if hub >= (2,) or name not in OF_HUB_2]
    lacking = [name for name in needed if name not in found]
    refused = (
        [f"not installed: {', '.join(lacking)}; `make gpu-check WHEELS=1` lists what is needed"] if lacking else []
    )
    doubtful: list[str] = []
    for known in KNOWN:
        if known.package in found and known.fails(numbers(found[known.package])):
            said = f"{known.package} {found[known.package]}: {known.why}"
            (refused if known.refused else doubtful).append(said)
    return refused, doubtful
