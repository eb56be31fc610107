"""The worked example of docs/adding-a-task.md, as a reader types it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tasks import choice, lmms
from tasks.sources import DataSource

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-task.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page's files, with its rows made; -> the YAML."""
    blocks = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    assert [name for name, _ in blocks] == ["shapes.yaml", "shapes.py", "make_rows.py"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_rows.py")
    return tmp_path / "shapes.yaml"


def test_the_example_loads_and_scores(example: Path) -> None:
    assert choice.chosen([str(example)]) == (str(example),)
    task = lmms.load_task(str(example), DataSource.parse("mini"), None, 0)
    assert [s.prompt for s in task.samples] == ["Which shape is red?\nAnswer with one word."] * 2
    assert [s.targets for s in task.samples] == [("circle",), ("square",)]
    assert [s.load_image().getpixel((26, 26)) for s in task.samples] == [(255, 255, 255), (255, 0, 0)]
    found = lmms.score(task, {"shapes/000000": " Circle ", "shapes/000001": "circle"})
    assert (found.headline, task.metric.kind, found.scores["shapes/000001"]) == (0.5, "mean", 0)


def test_a_task_of_lmms_evals_is_changed_as_the_page_says(example: Path) -> None:
    from tasks import named

    own = example.parent / "mine.yaml"
    own.write_text(
        f"include: {named.find('mmstar').file}\ntask: mmstar_short\ngeneration_kwargs: {{max_new_tokens: 4}}\n"
    )
    task = named.find(str(own))
    assert (task.name, task.generation) == ("mmstar_short", {"max_new_tokens": 4})
    assert task.config["doc_to_text"] == "utils.mmstar_doc_to_text"
    assert task.config["doc_to_text"].folder == named.find("mmstar").file.parent
    assert choice.chosen([str(own)]) == (str(own),)
