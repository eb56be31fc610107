"""A task of one's own as files: a YAML, its functions and a small parquet file, each to be changed by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import Image
from taskdata import encoded

FUNCTIONS = """
def images(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")


def results(doc, results):
    right = float(results[0].lower() == doc["answer"].lower())
    return {"exact_match": right, "length": {"question": doc["question"], "score": right}}


def mean_of_scores(results):
    return sum(result["score"] for result in results) / len(results)
"""


class Tagged(str):
    """A name behind `!function`."""


yaml.SafeDumper.add_representer(Tagged, lambda dumper, name: dumper.represent_scalar("!function", str(name)))

CONFIG: Mapping[str, Any] = {
    "task": "colours",
    "dataset_path": "parquet",
    "dataset_kwargs": {"data_files": {"test": "rows.parquet"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_visual": Tagged("functions.images"),
    "doc_to_text": Tagged("functions.text"),
    "doc_to_target": "answer",
    "process_results": Tagged("functions.results"),
    "generation_kwargs": {"max_new_tokens": 8, "until": ["###"]},
    "lmms_eval_specific_kwargs": {"default": {"post_prompt": " Say it."}, "llava": {"post_prompt": " No."}},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "length", "aggregation": Tagged("functions.mean_of_scores"), "higher_is_better": False},
    ],
}
COLOURS = ("red", "green", "blue")


def picture(number: int, size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    return {"bytes": encoded(Image.new("RGB", size, COLOURS[number % 3])), "path": None}


def rows(n: int = 6) -> list[dict[str, Any]]:
    """Two questions an image, in three colours."""
    return [
        {"id": f"q{i}", "image": picture(i // 2), "question": f"Colour {i}?", "answer": COLOURS[i // 2 % 3]}
        for i in range(n)
    ]


FEATURES: Mapping[str, Any] = {
    "id": datasets.Value("string"),
    "image": datasets.Image(),
    "question": datasets.Value("string"),
    "answer": datasets.Value("string"),
}


def write_rows(
    file: Path, values: Sequence[Mapping[str, Any]] | None = None, features: Mapping[str, Any] = FEATURES
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    held = [{name: row[name] for name in features} for row in (rows() if values is None else values)]
    datasets.Dataset.from_list(held, features=datasets.Features(features)).to_parquet(file)


def write_task(
    folder: Path,
    functions: str = FUNCTIONS,
    values: Sequence[Mapping[str, Any]] | None = None,
    features: Mapping[str, Any] = FEATURES,
    **config: Any,
) -> Path:
    """The YAML of a task in `folder`; `config` stands in place of the entries of `CONFIG`, None for no entry."""
    write_rows(folder / "rows.parquet", values, features)
    (folder / "functions.py").write_text(functions)
    body = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    file = folder / f"{body['task']}.yaml"
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    return file
