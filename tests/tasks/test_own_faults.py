"""Faults in a task of one's own: each is one line before inference, in the words of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from yamltask import CONFIG, FUNCTIONS, Tagged, write_task

from harness.core.errors import PrunebenchError
from harness.core.metric import Metric
from tasks import choice, lmms, named
from tasks.sources import DataSource

HUB = DataSource.parse("hub")  # never asked: the rows stand beside the files


def refused(file: Path) -> str:
    """The one line in which a word or its data are refused, as `prunebench eval` meets them."""

    def asked() -> None:
        (word,) = choice.chosen([str(file)])
        lmms.load_task(word, HUB, None, 0)

    with pytest.raises(PrunebenchError) as error:
        asked()
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def metrics(**entry: Any) -> list[dict[str, Any]]:
    return [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True} | entry]


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        (
            FUNCTIONS.replace('"exact_match": right', '"exact": right'),
            "expected its metric exact_match from process_results, found exact, length in all 6 rows",
        ),
        (FUNCTIONS.replace('"exact_match": right', '"exact_match": None'), "process_results, found length in all 6"),
        (
            FUNCTIONS + "\ndef own(values):\n    return sum(values) / 0\n",
            "the aggregation of its metric exact_match failed on answers of no worth: ZeroDivisionError",
        ),
        (FUNCTIONS + "\ndef own(values):\n    return {'a': 1}\n", "found dict; mend its aggregation"),
    ],
)
def test_scoring_that_cannot_give_the_headline(functions: str, said: str, tmp_path: Path) -> None:
    how = Tagged("functions.own") if "def own" in functions else "mean"
    assert said in refused(write_task(tmp_path, functions, metric_list=metrics(aggregation=how)))


def test_an_aggregation_that_is_misspelt(tmp_path: Path) -> None:
    said = refused(write_task(tmp_path, metric_list=metrics(aggregation="meen")))
    assert "expected an aggregation of lmms-eval's or a function for its metric exact_match" in said
    assert said.endswith("found 'meen'")


def test_a_metric_of_few_rows_is_looked_for_in_all(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace(
        "    return {", '    if doc["id"] != "q5":\n        return {"other": 1.0}\n    return {'
    )
    task = lmms.load_task(str(write_task(tmp_path, functions)), HUB, None, 0)
    assert task.metric == Metric("exact_match", "corpus")


def test_functions_that_are_no_python(tmp_path: Path) -> None:
    said = refused(write_task(tmp_path, FUNCTIONS + "\ndef broken(:\n"))
    assert "functions.py: expected Python, found invalid syntax in line 18" in said


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"max_new_tokens": "eight"}, "its max_new_tokens is 'eight': expected a whole number of at least 1"),
        ({"max_new_tokens": 0}, "its max_new_tokens is 0: expected a whole number of at least 1"),
        ({"max_new_tokens": True}, "its max_new_tokens is True"),
        ({"num_beams": "two"}, "its num_beams is 'two': expected a whole number"),
        ({"do_sample": True, "temperature": "hot"}, "its temperature is 'hot': expected a number"),
    ],
)
def test_settings_of_a_generation(generation: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = write_task(tmp_path, generation_kwargs=generation)
    assert said in refused(file)
    assert named.sampling(generation) in ("", "num_beams=two", "do_sample, temperature=hot")  # for a description


def test_a_target_that_is_no_column_is_no_answer_to_every_row(tmp_path: Path) -> None:
    said = refused(write_task(tmp_path, doc_to_target="answr", process_results=None, metric_list=metrics()))
    assert "expected a column or a template as its doc_to_target, found 'answr'" in said
    assert "the columns are id, image, question, answer" in said


def test_the_row_is_named_where_the_first_one_fails(tmp_path: Path) -> None:
    said = refused(write_task(tmp_path, doc_to_txt="question"))
    assert said.startswith("colours/000000: ")
    assert "unexpected keyword argument 'doc_to_txt'" in said


def test_the_usual_headline_by_name_is_the_same_task(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    plain, by_name = (lmms.load_task(word, HUB, None, 0) for word in (str(file), f"{file}:exact_match"))
    assert (plain.name, plain.fingerprint) == (by_name.name, by_name.fingerprint)
    assert lmms.load_task(f"{file}:length", HUB, None, 0).name == "colours:length"


def test_a_name_of_the_folder_is_suggested(tmp_path: Path) -> None:
    write_task(tmp_path)
    assert CONFIG["task"] == "colours"
    with pytest.raises(PrunebenchError, match="did you mean 'colours'"):
        choice.chosen(["colour"], str(tmp_path))
