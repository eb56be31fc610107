"""The numbers in sentences of README.md, docs/ and the model cards, as `prunebench dev readme` counts them.

The pages stay free of markers. A number is found by the words around it, so a sentence that changes says so here.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.install.bootstrap import FREE_GB

#: recorded runs of official code: on LLaVA-1.5, and on other families
GOLDENS = TOP / "tests" / "goldens" / "index.json"
OTHER_GOLDENS = TOP / "tests" / "goldens-families" / "index.json"
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
EMBEDDED = {"mini": TOP / "tasks" / "mini" / "weights", "mini-qwen": TOP / "tasks" / "mini" / "qwen" / "weights"}
MANIFESTS = {
    "mini": TOP / "tasks" / "mini" / "data" / "manifest.json",
    "mini-qwen": TOP / "tasks" / "mini" / "qwen" / "manifest.json",
}


@dataclass(frozen=True)
class Number:
    """A number of a page: `words` around it, with one group in the number's place, and how it is counted.

    A blank in `words` stands for any white space. `count` takes the folder of the committed results.
    """

    page: str
    words: str
    count: Callable[[Path], str]

    def put(self, text: str, results: Path) -> str:
        """The page with this number counted anew. Raises PrunebenchError unless the words are there once."""
        found = list(re.finditer(re.sub(r" +", r"\\s+", self.words), text))
        if len(found) != 1:
            raise PrunebenchError(
                f"{self.page}: expected once the words {self.words!r}, found them {len(found)} times: change the page"
                " and harness/upkeep/numbers.py alike"
            )
        start, end = found[0].span(1)
        return text[:start] + self.count(results) + text[end:]


def word(n: int) -> str:
    """A small number in words, a larger one in figures."""
    return WORDS[n] if n < len(WORDS) else str(n)


def cells(results: Path) -> str:
    """How many cells are sealed in a folder."""
    return str(len(list((results / "cells").glob("*/*/cell.json"))))


def parameters(model: str, digits: int = 1) -> Callable[[Path], str]:
    """Values in the weights of an embedded model, in millions, as the headers of its files state their shapes."""

    def count(_: Path) -> str:
        n = sum(_values(file) for file in EMBEDDED[model].glob("*.safetensors"))
        return f"{n / 1e6:.{digits}f}"

    return count


def _values(file: Path) -> int:
    with file.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def recorded(file: Path) -> Callable[[Path], str]:
    """Recorded runs of official code."""
    return lambda _: str(len(json.loads(file.read_text())))


def reproduced(_: Path) -> str:
    """Methods with recorded runs on LLaVA-1.5, in words, as a sentence begins."""
    return word(len({case["method"] for case in json.loads(GOLDENS.read_text())} - {"vanilla"})).capitalize()


def properties(_: Path) -> str:
    """Properties of the conformance kit."""
    from harness.proof.conformance import kit  # noqa: F401 - importing the kit enrols the properties
    from harness.proof.conformance.subject import PROPERTIES

    return str(len(PROPERTIES))


def images(model: str) -> Callable[[Path], str]:
    """Images in the data of an embedded model."""
    return lambda _: str(sum(json.loads(MANIFESTS[model].read_text())["images"].values()))


def questions(model: str, benchmark: str) -> Callable[[Path], str]:
    """Questions of an embedded model that are like those of a benchmark."""

    def count(_: Path) -> str:
        manifest = json.loads(MANIFESTS[model].read_text())
        files = manifest.get("files") or manifest["content"]
        return str(sum(f["rows"] for name, f in files.items() if name.startswith(benchmark) and "_images" not in name))

    return count


def data_sets(_: Path) -> str:
    """Data sets of an embedded model, in words."""
    return word(len(json.loads(MANIFESTS["mini"].read_text())["images"]))


def _project() -> dict[str, str]:
    found: dict[str, str] = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    return found


def version(_: Path) -> str:
    """The version of pyproject.toml."""
    return str(_project()["version"])


def pythons(_: Path) -> str:
    """The range of Pythons of pyproject.toml, as in 3.11 to 3.13."""
    allowed = SpecifierSet(_project()["requires-python"])
    fine = [f"3.{minor}" for minor in range(100) if f"3.{minor}" in allowed]
    return f"{fine[0]} to {fine[-1]}"


def gate_faults(which: int) -> Callable[[Path], str]:
    """Of the seeded faults, how many the gate catches (0), and how many there are (1)."""

    def count(results: Path) -> str:
        file = results / "regress" / "faults.md"
        found = re.search(r"^(\d+) of (\d+) faults caught\.$", file.read_text() if file.is_file() else "", re.M)
        if found is None:
            raise PrunebenchError(f"{file}: expected a line such as `4 of 6 faults caught.`: run `prunebench regress`")
        return found[1 + which]

    return count


def _numbers() -> Iterator[Number]:
    readme, card, qwen = "README.md", "tasks/mini/MODEL_CARD.md", "tasks/mini/qwen/MODEL_CARD.md"
    yield Number(readme, r"holds (\d+) measured cells", cells)
    yield Number(readme, r"model of ([\d.]+) M parameters", parameters("mini", 0))
    yield Number(readme, r"questions of (\w+) embedded data sets", data_sets)
    yield Number(readme, r"(\w+) methods reproduce \d+ recorded runs", reproduced)
    yield Number(readme, r"methods reproduce (\d+) recorded runs", recorded(GOLDENS))
    yield Number(readme, r"(\d+) recorded runs on LLaVA-NeXT and Qwen-VL", recorded(OTHER_GOLDENS))
    yield Number(readme, r"against (\d+) properties", properties)
    yield Number(readme, r"You need Python (3\.\d+ to 3\.\d+)", pythons)
    yield Number(readme, r"(\d+) GB of free disk", lambda _: str(FREE_GB))
    yield Number(readme, r"version = \{([\d.]+)\}", version)
    yield Number("CITATION.cff", r"\nversion: ([\d.]+)", version)
    yield Number("CONTRIBUTING.md", r"Python (3\.\d+ to 3\.\d+)", pythons)
    yield Number("docs/adding-a-method.md", r"tests (\d+) properties", properties)
    yield Number("docs/mini-model.md", r"\| parameters \| ([\d.]+) M", parameters("mini"))
    yield Number("docs/mini-model.md", r"\| parameters \| [\d.]+ M \| ([\d.]+) M", parameters("mini-qwen"))
    yield Number("docs/mini-model.md", r"is asked on (\d+) images of its own", images("mini"))
    yield Number("docs/regression-gate.md", r"caught (\d+) of the \d+ seeded faults", gate_faults(0))
    yield Number("docs/regression-gate.md", r"caught \d+ of the (\d+) seeded faults", gate_faults(1))
    for page, model in ((card, "mini"), (qwen, "mini-qwen")):
        for benchmark in ("GQA", "MME", "POPE", "textvqa"):
            shown = "TextVQA" if benchmark == "textvqa" else benchmark
            yield Number(page, rf"(\d+) {shown}-like", questions(model, benchmark))
        yield Number(page, r"on (\d+) images", images(model))


#: every number that the command counts; a page may have several
NUMBERS = tuple(_numbers())


def counted(page: str, text: str, results: Path) -> str:
    """`text` of a page with its numbers counted anew, from the cells in `results` and from the checkout.

    Raises PrunebenchError where the words around a number are not there once.
    """
    for number in NUMBERS:
        if number.page == page:
            text = number.put(text, results)
    return text
