"""Fixtures of the verified tasks say truly what the installed lmms-eval reads, and what it makes of the answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import lmms_eval
import pytest
from hubdata import HUB_TASKS, write
from lmms_eval.utils import load_yaml_config

from tasks.verified import VERIFIED

INSTALLED = Path(lmms_eval.__file__).parent
NAMES = list(HUB_TASKS)


def line(at: str, below: Path) -> str:
    """The line of the installed package that `file:line` names."""
    file, number = at.rsplit(":", 1)
    return (below / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]


def config(name: str) -> dict[str, Any]:
    """The task's own YAML with what it includes and with its functions."""
    (file,) = (
        file
        for file in INSTALLED.joinpath("tasks").glob("*/*.yaml")
        if re.search(rf"^task ?: *[\"']?{name}[\"']?\s*$", file.read_text(encoding="utf-8"), re.M)
    )
    resolved: dict[str, Any] = load_yaml_config(str(file), mode="full")
    return resolved


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    return {name: config(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_line_named_for_a_column_reads_it(name: str) -> None:
    for column, said in HUB_TASKS[name].columns.items():
        text = line(said.at, INSTALLED / "tasks")
        if said.reads:
            assert said.reads in text, (column, said.at, text)
        else:
            assert f'"{column}"' in text or f"'{column}'" in text, (column, said.at, text)


def test_every_verified_task_has_a_fixture() -> None:
    assert list(VERIFIED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_lies_where_the_task_looks(name: str, configs: dict[str, dict[str, Any]]) -> None:
    made, asked = HUB_TASKS[name], configs[name]
    assert (made.repository, made.config, made.split) == (
        asked["dataset_path"],
        asked.get("dataset_name"),
        asked["test_split"].strip(),
    )
    assert 5 <= len(made.rows) <= 12
    assert len(made.right) == len(made.wrong) >= len(made.rows)
    assert all(right != wrong for right, wrong in zip(made.right, made.wrong, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_metrics_and_their_lines_are_those_of_the_task(name: str, configs: dict[str, dict[str, Any]]) -> None:
    """The line that a metric names begins the function that its YAML names, or one that this function calls."""
    listed = [entry for entry in configs[name]["metric_list"] if entry["metric"] != "submission"]
    verified = VERIFIED[name]
    assert [aggregation.metric for aggregation in verified.metrics] == [entry["metric"] for entry in listed]
    assert verified.papers is None or verified.papers in {entry["metric"] for entry in listed}
    assert all(entry["higher_is_better"] for entry in listed)
    for aggregation, entry in zip(verified.metrics, listed, strict=True):
        found = re.match(r" *def (\w+)\(", line(aggregation.at, INSTALLED))
        assert found, aggregation.at
        makes = entry["aggregation"]
        called = {makes} if isinstance(makes, str) else {makes.__name__, *makes.__code__.co_names}
        assert found[1] in called, (aggregation.metric, aggregation.at)


def test_fixtures_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name) for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == len({made.repository for made in HUB_TASKS.values()}) + len(HUB_TASKS)
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.parametrize("name", NAMES)
def test_images_are_small_embedded_and_of_several_sizes(name: str, tmp_path: Path) -> None:
    made = HUB_TASKS[name]
    table = datasets.Dataset.from_parquet(
        str(write(tmp_path, [name]) / made.repository / made.file), cache_dir=tmp_path
    )
    assert list(table.features) == list(made.columns)
    sizes = set()
    for row in table:
        for value in row.values():
            for image in value if isinstance(value, list) else [value]:
                if hasattr(image, "size"):
                    sizes.add(image.size)
    assert len(sizes) >= 3
    assert max(max(size) for size in sizes) <= 200
