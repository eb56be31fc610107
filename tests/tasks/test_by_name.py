"""Names of tasks become tasks: the index of lmms-eval, groups, files, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from yamltask import CONFIG, FUNCTIONS, Tagged, write_task

from harness.core.errors import PrunebenchError
from tasks import choice, judges, named, refusals
from tasks.sources import TASKS, DataSource
from tasks.verified import VERIFIED


def why(word: str, judge: bool = False) -> str:
    """The one line in which a task is refused."""
    with pytest.raises(PrunebenchError) as error:
        choice.chosen([word], judge=judge)
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------------------------------------------------- index


def test_the_index_is_lmms_evals_own() -> None:
    from lmms_eval.tasks import TaskManager

    theirs = TaskManager()
    ours = named.index(named.upstream_folder())
    assert set(ours.tasks) == set(theirs.all_subtasks)
    assert set(ours.groups) == set(theirs.all_groups)
    assert set(ours.tags) == set(theirs.all_tags)
    assert len(ours.tasks) > 1500
    for name in ("mmstar", "refcoco_bbox_rec_val", "mmmu_val_reasoning"):
        assert str(ours.tasks[name]) == theirs.task_index[name]["yaml_path"]


@pytest.mark.parametrize("name", ["mmstar", "vqav2_val_lite", "docvqa_val", "mmbench_en_dev_static", "mmmu_val"])
def test_a_file_is_resolved_as_lmms_eval_resolves_it(name: str) -> None:
    from lmms_eval.utils import load_yaml_config

    task = named.find(name)
    theirs = load_yaml_config(str(task.file), mode="simple")
    plain = {key: value for key, value in task.config.items() if not isinstance(value, named.Function)}
    assert list(plain)
    for key in ("dataset_path", "dataset_name", "generation_kwargs", "lmms_eval_specific_kwargs", "metadata"):
        assert plain.get(key) == theirs.get(key)
    assert set(task.config) == set(theirs)


def test_groups_and_tags_are_their_members_once_each() -> None:
    found = choice.chosen(["refcoco_bbox_rec", "pope", "refcoco_bbox_rec_val"])
    assert found[-1] == "pope"
    assert sorted(found[:-1]) == [f"refcoco_bbox_rec_{split}" for split in ("test", "testA", "testB", "val")]
    assert "ai2d" in named.expand(["public_eval_qwen3_5_family"])


def test_our_own_names_stay_ours() -> None:
    assert choice.chosen(["textvqa", "gqa", "textvqa"]) == ("textvqa", "gqa")  # lmms-eval has a group textvqa
    assert "pope_accuracy" in why("pope:pope_f1_score")


def test_a_group_that_changes_its_members_is_refused(tmp_path: Path) -> None:
    member = {"task": "mmstar", "dataset_path": "elsewhere"}
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({"group": "changed", "task": ["ai2d", member]}))
    with pytest.raises(PrunebenchError, match=r"group changed: it changes its member mmstar \(dataset_path\)"):
        choice.chosen(["changed"], str(tmp_path))


def test_a_group_that_holds_itself_is_refused(tmp_path: Path) -> None:
    for one, other in (("first", "second"), ("second", "first")):
        (tmp_path / f"{one}.yaml").write_text(yaml.safe_dump({"group": one, "task": [other]}))
    with pytest.raises(PrunebenchError, match="group first: it holds itself"):
        choice.chosen(["first"], str(tmp_path))


def test_an_unknown_name_suggests_the_nearest_and_lists_none() -> None:
    text = why("mmstarr")
    assert "unknown task 'mmstarr'; did you mean 'mmstar" in text
    assert len(text) < 200
    assert "did you mean" not in why("zzzzzzzzzzzz")


def test_a_headline_is_named_behind_a_colon() -> None:
    assert named.find("mmstar:average").name == "mmstar:average"
    assert "expected one of its metrics behind the colon, coarse perception, " in why("mmstar:averag")
    several = named.find("gsm8k:exact_match:flexible-extract")
    assert several.headline == "exact_match,flexible-extract"
    assert several.metric_names == ("exact_match,strict-match", "exact_match,flexible-extract")


# ---------------------------------------------------------------------------------------------------- files and folders


def test_a_file_is_a_task_and_a_folder_holds_names(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    assert choice.chosen([str(file), f"{file}:length"]) == (str(file), f"{file}:length")
    assert choice.name_of(f"{file}:length") == "colours:length"
    assert choice.chosen(["colours", "gqa"], str(tmp_path)) == (str(file), "gqa")
    assert "unknown task 'colours'" in why("colours")
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({"group": "mine", "task": ["colours", "gqa", "ai2d"]}))
    named.index.cache_clear()
    assert choice.chosen(["mine"], str(tmp_path)) == (str(file), "gqa", "ai2d")


@pytest.mark.parametrize("name", ["gqa", "mmstar", "refcoco_bbox_rec"])
def test_a_name_of_lmms_evals_own_is_refused(name: str, tmp_path: Path) -> None:
    file = write_task(tmp_path, task=name)
    assert f"its task is called {name}, as one of lmms-eval's own" in why(str(file))
    if name == "mmstar":
        with pytest.raises(PrunebenchError, match=r"1 of its tasks have a name of lmms-eval's own, the first mmstar"):
            choice.chosen(["mmstar"], str(tmp_path))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [str(write_task(tmp_path / folder)) for folder in ("a", "b")]
    with pytest.raises(PrunebenchError, match="two tasks are called colours"):
        choice.chosen(files)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [a]", "expected a task, with its name as `task: NAME`; found ['a']"),
        ("- a", "expected a task as YAML, that is keys with values; found list"),
        ("a: [", "expected a task as YAML: "),
        ("include: other.yaml", "expected the file that it includes at "),
        ("include: task.yaml", "expected the file that it includes at "),
    ],
)
def test_a_file_that_is_no_task(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(text)
    assert said in why(str(tmp_path / "task.yaml"))


def test_a_missing_file_and_a_missing_folder(tmp_path: Path) -> None:
    assert "No such file" in why(str(tmp_path / "none.yaml"))
    with pytest.raises(PrunebenchError, match="expected a folder with tasks as YAML"):
        choice.chosen(["colours"], str(tmp_path / "none"))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seedbench_ppl", "its kind is multiple_choice: it compares likelihoods"),
        ("videomme", "it shows videos"),
        ("gsm8k", "its prompts have no image"),
        ("mmbench_en_test", "its answers are handed in elsewhere"),
        ("vstat", "it is a Python class of lmms-eval's"),
    ],
)
def test_what_cannot_be_measured(word: str, said: str) -> None:
    assert said in why(word)


@pytest.mark.parametrize("kind", sorted(refusals.KINDS))
def test_every_other_kind_says_what_it_would_take(kind: str, tmp_path: Path) -> None:
    text = why(str(write_task(tmp_path, output_type=kind)), judge=True)
    assert f"task colours cannot run: its kind is {kind}: {refusals.KINDS[kind]}; choose other tasks" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_fewshot": 5}, "it shows 5 examples before each question"),
        ({"repeats": 8}, "it asks for 8 answers a question"),
        ({"test_split": None}, "names no test_split"),
        ({"metric_list": None}, "names no metric"),
    ],
)
def test_what_a_file_asks_for_and_nothing_measures(change: dict[str, object], said: str, tmp_path: Path) -> None:
    assert said in why(str(write_task(tmp_path, **change)))


@pytest.mark.parametrize(
    "word",
    [
        "hallusion_bench_image",
        "mmvet",
        "mathvista_testmini_cot",
        "mathvista_testmini_format",
        "mathvista_testmini_solution",
        "mmbench_en_dev",
        "mmstar_reasoning",
    ],
)
def test_a_judge_is_named_with_its_needs_and_may_be_allowed(word: str) -> None:
    text = why(word)
    assert "a judge scores its answers, a service that lmms-eval calls (lmms_eval/" in text
    assert "environment variables " in text
    assert "API" in text
    assert "judge" in text.rpartition(";")[2]
    assert choice.chosen([word], judge=True) == (word,)


def test_the_verified_tasks_call_no_service() -> None:
    assert choice.chosen(list(VERIFIED)) == tuple(VERIFIED)
    assert all(judges.judge(named.find(name)) is None for name in VERIFIED)


SERVICE = """
import requests


class Judge:
    def ask(self, text):
        return requests.post("place", json=text).json()


held = Judge()


def judged(results):
    return held.ask(results)
"""


@pytest.mark.parametrize(
    ("functions", "found"),
    [
        (FUNCTIONS + SERVICE, True),
        (FUNCTIONS + SERVICE.replace("held.ask(results)", "len(results)"), False),
        (FUNCTIONS + "\ndef judged(results):\n    import openai\n    return openai.OpenAI()\n", True),
        (FUNCTIONS + "\nfrom lmms_eval.llm_judge import Request\n\ndef judged(results):\n    return Request\n", False),
        (
            FUNCTIONS + "\nfrom lmms_eval.llm_judge import get_server\nserver = get_server('openai')\n\n"
            "def judged(results):\n    return server.evaluate(results)\n",
            True,
        ),
    ],
)
def test_a_service_is_found_where_scoring_leads_to_it(functions: str, found: bool, tmp_path: Path) -> None:
    metrics = [{"metric": "exact_match", "aggregation": Tagged("functions.judged"), "higher_is_better": True}]
    task = named.find(str(write_task(tmp_path, functions, metric_list=metrics)))
    assert (judges.judge(task) is not None) is found


def test_several_that_cannot_run_are_counted() -> None:
    with pytest.raises(PrunebenchError, match=r"task mmvet cannot run: .*; nor can 1 more: videomme; "):
        choice.chosen(["ai2d", "mmvet", "videomme"])


def test_the_mini_data_hold_our_tasks_only(tmp_path: Path) -> None:
    mini = DataSource.parse("mini")
    choice.check_source(tuple(TASKS), mini)
    choice.check_source([str(write_task(tmp_path))], mini)  # its rows stand beside it
    with pytest.raises(PrunebenchError, match="task mmstar: the mini data hold gqa, mme"):
        choice.check_source(["mmstar"], mini)
    choice.check_source(["mmstar"], DataSource.parse("hub"))


def test_names_are_read_without_lmms_eval() -> None:
    from helpers import HEAVY, imported_with

    code = "from tasks import choice\nchoice.chosen(['mmstar', 'refcoco_bbox_rec'])"
    assert imported_with(code, *HEAVY, "datasets") == []


def test_the_example_has_every_entry_that_a_task_needs(tmp_path: Path) -> None:
    assert refusals.reason(named.find(str(write_task(tmp_path)))) is None
    assert set(CONFIG) <= set(named.find(str(write_task(tmp_path))).config)
