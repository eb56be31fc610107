"""The tasks layer: upstream's prompts and metrics, whole-image subsets, readable errors, a model class that cannot hide
one."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.errors import PrunebenchError
from harness.plugin import command
from harness.plugin.model import Abort, PrunebenchLmms
from tasks import lmms, sources
from tasks.mini import data

MINI = sources.DataSource.parse("mini")
NAMES = tuple(sources.TASKS)
POPE = "POPE/data/test-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def loaded() -> dict[str, lmms.LoadedTask]:
    return {name: lmms.load_task(name, MINI, 42, 0) for name in NAMES}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A user's own copy of the POPE data, to be damaged."""
    (tmp_path / "POPE/data").mkdir(parents=True)
    shutil.copy(data.FOLDER / POPE, tmp_path / POPE)
    return tmp_path


def perfect(task: lmms.LoadedTask) -> dict[str, str]:
    return {s.key: Counter(t.upper() for t in s.targets).most_common(1)[0][0].lower() for s in task.samples}


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        kind = table.schema.field(at)
        return table.set_column(at, kind, pa.array(values(table[name].to_pylist()), kind.type))

    return change


# ------------------------------------------------------------------------------------------------------------ subsets


def test_choose_takes_whole_groups_and_as_many_rows_as_fit() -> None:
    groups = [g for g, n in zip("abcdef", (5, 4, 3, 2, 2, 1), strict=True) for _ in range(n)]
    for seed in range(20):
        for limit in (1, 4, 9, 16, 17, 100):
            rows = lmms.choose(groups, None, limit, seed)
            assert rows == sorted(rows)
            picked = {groups[r] for r in rows}
            assert len(rows) == sum(g in picked for g in groups)
            left = [n for g, n in Counter(groups).items() if g not in picked]
            # nothing that is left out would still fit, and only the first group may be larger than the limit
            assert len(rows) <= limit or len(picked) == 1
            assert all(len(rows) + n > limit for n in left)
    assert lmms.choose(groups, None, None, 3) == list(range(17))
    assert len({tuple(lmms.choose(groups, None, 9, seed)) for seed in range(20)}) > 3


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(PrunebenchError, match=f"at least 1 or `all`, found {limit}"):
        lmms.load_task("pope", MINI, limit, 0)


@pytest.mark.parametrize("name", NAMES)
def test_subset_is_whole_images_in_source_order(name: str, loaded: dict[str, lmms.LoadedTask]) -> None:
    everything = Counter(s.image_key for s in lmms.load_task(name, MINI, None, 0).samples)
    picked = Counter(s.image_key for s in loaded[name].samples)
    assert all(everything[key] == n for key, n in picked.items())
    keys = [s.key for s in loaded[name].samples]
    assert keys == sorted(keys)
    assert 36 <= len(keys) <= 42
    assert [s.index for s in loaded[name].samples] == list(range(len(keys)))


def test_mme_subsets_are_even_pairs_over_all_categories() -> None:
    for limit in (1, 15, 20):
        samples = lmms.load_task("mme", MINI, limit, 5).samples
        assert len(samples) == max(2, limit // 2 * 2)
        assert set(Counter((s.category, s.question_id) for s in samples).values()) == {2}
        assert len({s.category for s in samples}) == min(5, len(samples) // 2)
    # the headline exists in the smallest subset
    assert lmms.load_task("mme", MINI, 2, 9).samples[0].category == "existence"


def test_seed_decides_the_subset_and_the_fingerprint(loaded: dict[str, lmms.LoadedTask]) -> None:
    again, other = lmms.load_task("pope", MINI, 42, 0), lmms.load_task("pope", MINI, 42, 1)
    assert again == loaded["pope"]
    assert again.fingerprint == loaded["pope"].fingerprint != other.fingerprint
    assert [s.key for s in other.samples] != [s.key for s in again.samples]
    # questions and images of the two TextVQA tasks are the same; their prompts are not
    assert [s.image_key for s in loaded["textvqa"].samples] == [s.image_key for s in loaded["textvqa_ocr"].samples]
    assert loaded["textvqa"].fingerprint != loaded["textvqa_ocr"].fingerprint


@pytest.mark.parametrize("column", ["question", "answer", "image"])
def test_fingerprint_sees_questions_answers_and_pixels(column: str, local: Path) -> None:
    source = sources.DataSource.parse(str(local))
    before = lmms.load_task("pope", source, None, 0).fingerprint
    assert before == lmms.load_task("pope", MINI, None, 0).fingerprint

    def change(values: list[Any]) -> list[Any]:
        other = {"question": "Is there a cat?", "answer": "no", "image": values[-1]}[column]
        return [other, *values[1:]]

    rewrite(local / POPE, with_column(column, change))
    assert lmms.load_task("pope", source, None, 0).fingerprint != before


# ------------------------------------------------------------------------------------------------------------ prompts


def test_prompts_and_images_are_what_upstream_sends(tmp_path: Path, loaded: dict[str, lmms.LoadedTask]) -> None:
    """Against lmms-eval's own loader and task class on the YAML files for its command line."""
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    names = command.mini_task_files(tmp_path)
    assert names == ["gqa_mini", "mme_mini", "pope_mini", "textvqa_mini"]
    for name in names:
        config = load_yaml_config(str(tmp_path / f"{name}.yaml"), mode="full")
        config["dataset_kwargs"]["cache_dir"] = str(tmp_path / "cache")
        stops = tuple(config["generation_kwargs"].get("until", ()))  # building the task adds a default
        task = ConfigurableMessagesTask(config=config)
        ours = loaded[name.removesuffix("_mini")]
        assert task.config.generation_kwargs["max_new_tokens"] == ours.max_new_tokens
        assert stops == ours.until, "only what the YAML names"
        for sample in ours.samples[::7]:
            doc = task.eval_docs[int(sample.key.split("/")[1])]
            image, text = task.doc_to_messages(doc)[0]["content"]
            assert text["text"] == sample.prompt
            assert image["url"].tobytes() == sample.load_image().tobytes()


def test_prompt_texts(loaded: dict[str, lmms.LoadedTask]) -> None:
    instruction = "\nAnswer the question using a single word or phrase."
    for task in loaded.values():
        assert all(s.prompt.endswith(instruction) for s in task.samples)
    assert "yes or no" not in loaded["mme"].samples[0].prompt
    plain, ocr = loaded["textvqa"].samples[0], loaded["textvqa_ocr"].samples[0]
    assert "OCR" not in plain.prompt
    assert "\nReference OCR token: " in ocr.prompt
    assert plain.targets[0].upper() in ocr.prompt
    assert loaded["textvqa"].max_new_tokens == 16  # upstream names none


def test_codes_survive_the_vqa_metric() -> None:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    normal = EvalAIAnswerProcessor()
    answers = {t for s in lmms.load_task("textvqa", MINI, None, 0).samples for t in s.targets}
    assert all(normal(t) == t.lower() for t in answers)
    assert all(normal(code) != code.lower() for code in data.UNFAIR_CODES)


# ------------------------------------------------------------------------------------------------------------ scoring


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_the_maximum_and_wrong_ones_nothing(name: str, loaded: dict[str, lmms.LoadedTask]) -> None:
    task = loaded[name]
    right = lmms.score(task, perfect(task))
    wrong = lmms.score(task, dict.fromkeys(perfect(task), "zebra"))
    again = lmms.score(task, perfect(task))
    assert right == again  # nothing sticks to the task
    assert right.headline == (800.0 if name == "mme" else 1.0)  # 200 for each of four perception categories
    assert wrong.headline == 0.0
    assert set(right.scores) == {s.key for s in task.samples}
    assert set(right.scores.values()) == {1.0}
    assert set(wrong.scores.values()) == {0.0}


def test_metric_names(loaded: dict[str, lmms.LoadedTask]) -> None:
    metrics = {name: lmms.score(task, perfect(task)).metrics for name, task in loaded.items()}
    assert set(metrics["gqa"]) == set(metrics["textvqa"]) == {"exact_match", "lmms_eval/exact_match"}
    assert set(metrics["mme"]) == {"mme_perception_score", "mme_cognition_score"}
    names = [f"pope_{name}" for name in ("accuracy", "precision", "recall", "f1_score", "yes_ratio")]
    subsets = ("random", "popular", "adversarial")
    expected = {*names, *(f"{name}/{s}" for name in names for s in subsets), *(f"{name}_mean" for name in names)}
    expected |= {f"lmms_eval/{name}" for name in names[1:]}
    expected |= {"llava/pope_accuracy", "llava/pope_f1_score", "llava/pope_f1_score_mean"}
    assert set(metrics["pope"]) == expected
    pair = lmms.load_task("mme", MINI, 2, 0)
    assert set(lmms.score(pair, perfect(pair)).metrics) == {"mme_perception_score"}


def test_yes_ratio_counts_answers_not_the_ground_truth(loaded: dict[str, lmms.LoadedTask]) -> None:
    task = loaded["pope"]
    scored = lmms.score(task, {s.key: " Yes\n" for s in task.samples})
    assert scored.metrics["pope_yes_ratio"] == 1.0
    assert scored.metrics["pope_recall"] == 1.0
    assert scored.headline == pytest.approx(sum("yes" in s.targets for s in task.samples) / len(task.samples))
    assert scored.metrics["pope_f1_score"] == pytest.approx(2 * scored.headline / (1 + scored.headline))


def test_mme_categories_use_the_pair_rule(loaded: dict[str, lmms.LoadedTask]) -> None:
    task = loaded["mme"]
    scored = lmms.score(task, {s.key: "yes" for s in task.samples})
    assert set(scored.categories.values()) == {50.0}  # half of the questions, none of the pairs
    assert scored.metrics == {"mme_perception_score": 200.0, "mme_cognition_score": 50.0}
    assert set(lmms.score(loaded["pope"], perfect(loaded["pope"])).categories) == {"random", "popular", "adversarial"}


def test_missing_and_surplus_answers_are_refused(loaded: dict[str, lmms.LoadedTask]) -> None:
    task = loaded["gqa"]
    answers = perfect(task)
    gone = task.samples[3].key
    with pytest.raises(PrunebenchError, match=f"1 of {len(answers)} answers are missing, the first for {gone}"):
        lmms.score(task, {k: v for k, v in answers.items() if k != gone})
    with pytest.raises(PrunebenchError, match="not in this subset, the first gqa/999999"):
        lmms.score(task, {**answers, "gqa/999999": "red"})
    with pytest.raises(PrunebenchError, match=f"{gone}: expected the answer's text, found NoneType"):
        lmms.score(task, {**answers, gone: None})  # type: ignore[dict-item]


def test_scoring_leaves_no_trace(
    loaded: dict[str, lmms.LoadedTask],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import random

    monkeypatch.chdir(tmp_path)
    state = random.getstate()
    lmms.score(loaded["textvqa"], perfect(loaded["textvqa"]))
    assert random.getstate() == state
    assert not list(tmp_path.iterdir())  # upstream writes ./submissions
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------ bad data


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="unknown task 'popee'; did you mean 'pope'"):
        lmms.load_task("popee", MINI, 4, 0)
    with pytest.raises(PrunebenchError, match=r"unknown data source 'minni'; did you mean 'mini'.*no folder"):
        sources.DataSource.parse("minni")
    with pytest.raises(PrunebenchError, match="found no such folder"):
        sources.DataSource.parse(str(tmp_path / "absent"))


def test_missing_and_truncated_files_are_named(local: Path) -> None:
    source = sources.DataSource.parse(str(local))
    with pytest.raises(PrunebenchError, match=r"task gqa: expected .*testdev-\*.parquet, no such folder"):
        lmms.load_task("gqa", source, 4, 0)
    path = local / POPE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(PrunebenchError, match=r"POPE.*5000 bytes\) cannot be read as parquet.*copy the data set again"):
        lmms.load_task("pope", source, 4, 0)
    path.rename(path.with_name("other.parquet"))
    with pytest.raises(PrunebenchError, match=r"test-\*.parquet, found data/other.parquet"):
        lmms.load_task("pope", source, 4, 0)


def test_missing_column_is_named(local: Path) -> None:
    rewrite(local / POPE, lambda table: table.drop_columns(["answer"]))
    with pytest.raises(PrunebenchError, match=r"lacks the column\(s\) answer: expected .*category, found id,"):
        lmms.load_task("pope", sources.DataSource.parse(str(local)), 4, 0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answer", "maybe", "row 7 .*question_id '8'.*answer: expected yes or no, found 'maybe'"),
        ("image", None, "pope/000007, column image: expected an image embedded"),
    ],
)
def test_bad_values_are_named_before_anything_runs(local: Path, column: str, value: Any, message: str) -> None:
    rewrite(local / POPE, with_column(column, lambda values: [*values[:7], value, *values[8:]]))
    with pytest.raises(PrunebenchError, match=message):
        lmms.load_task("pope", sources.DataSource.parse(str(local)), None, 0)


def test_image_column_of_another_type_is_refused(local: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("image"), "image", pa.array(["a.jpg"] * len(table)))

    rewrite(local / POPE, change)
    with pytest.raises(PrunebenchError, match=r"column image .* is string: expected an Image feature"):
        lmms.load_task("pope", sources.DataSource.parse(str(local)), 4, 0)


def test_a_cut_mme_pair_is_refused(tmp_path: Path) -> None:
    file = Path("MME/data/test-00000-of-00001.parquet")
    (tmp_path / file).parent.mkdir(parents=True)
    pq.write_table(pq.read_table(data.FOLDER / file).slice(0, 5), tmp_path / file)
    with pytest.raises(PrunebenchError, match=r"question_id 'position/0000.jpg' \(position\) has 1 row"):
        lmms.load_task("mme", sources.DataSource.parse(str(tmp_path)), 4, 0)


def test_a_gqa_question_without_its_image_is_refused(tmp_path: Path) -> None:
    shutil.copytree(data.FOLDER / "GQA", tmp_path / "GQA")
    rewrite(tmp_path / "GQA/testdev_balanced_images/testdev-00000-of-00001.parquet", lambda table: table.slice(1))
    with pytest.raises(PrunebenchError, match=r"6 of 420 questions name an image .* 'mini_\d+'"):
        lmms.load_task("gqa", sources.DataSource.parse(str(tmp_path)), 4, 0)


def test_an_image_that_does_not_decode_names_its_sample(local: Path) -> None:
    rewrite(
        local / POPE,
        with_column("image", lambda values: [{**values[0], "bytes": values[0]["bytes"][:9000]}, *values[1:]]),
    )
    task = lmms.load_task("pope", sources.DataSource.parse(str(local)), None, 0)
    assert task.samples[1].load_image().mode == "RGB"
    with pytest.raises(PrunebenchError, match=r"pope/000000: the image does not decode \(9000 bytes\)"):
        task.samples[0].load_image()


def test_altered_mini_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data.FOLDER, folder)
    rewrite(folder / POPE, lambda table: table.slice(9))
    monkeypatch.setattr(data, "FOLDER", folder)
    with pytest.raises(PrunebenchError, match=r"POPE.*expected sha256.*make mini"):
        lmms.load_task("pope", sources.DataSource.parse("mini"), 4, 0)


def test_hub_failure_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(path: str, name: str | None, **settings: Any) -> Any:
        assert (path, name, settings) == ("lmms-lab-encoder/POPE", None, {"split": "test", "token": None})
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(PrunebenchError, match=r"cannot load lmms-lab-encoder/POPE .* ConnectionError: offline; check"):
        lmms.load_task("pope", sources.DataSource.parse("hub"), 4, 0)


def test_hub_rows_are_the_same_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: dict[str, lmms.LoadedTask]
) -> None:
    import datasets

    original = datasets.load_dataset

    def hub(path: str, name: str | None, split: str, token: None) -> Any:
        pattern = f"{path.split('/')[1]}/{name or 'data'}/{split}-*.parquet"
        return original("parquet", data_files={split: str(data.FOLDER / pattern)}, split=split, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", hub)
    for name in ("gqa", "textvqa"):
        task = lmms.load_task(name, sources.DataSource.parse("hub"), 42, 0)
        assert task == loaded[name]
        assert task.samples[0].load_image().size == (336, 336)


def test_sources_and_manifest_stay_light() -> None:
    code = (
        "import sys; from harness import plugin; from tasks import sources; "
        "sources.read(sources.task_spec('gqa'), sources.DataSource.parse('mini')); "
        "print([m for m in ('torch', 'lmms_eval', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert run.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------------- CLI


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., Any]], list[argparse.Namespace]]]:
    """Replace lmms-eval's own evaluation, whose task index takes seconds; returns what it was called with."""
    from lmms_eval import __main__ as upstream

    def install(evaluate: Callable[[argparse.Namespace], Any]) -> list[argparse.Namespace]:
        seen: list[argparse.Namespace] = []

        def single(options: argparse.Namespace) -> Any:
            seen.append(options)
            return evaluate(options)

        monkeypatch.setattr(upstream, "cli_evaluate_single", single)
        return seen

    yield install
    lmms.logger.remove()  # lmms-eval points loguru at the stdout that pytest has captured
    lmms.logger.add(sys.stderr, level="WARNING")


def results(options: argparse.Namespace) -> Any:
    fields: dict[str, Any] = {"versions": {}, "n-shot": {}, "higher_is_better": {}}
    return {"results": {options.tasks: {"alias": options.tasks, "pope_accuracy,none": 1.0}}, **fields}, None


ARGS = ("--model", "prunebench", "--tasks", "pope_mini")


def test_cli_adds_the_mini_tasks_and_the_model(evaluation: Any, tmp_path: Path) -> None:
    from lmms_eval.models import get_model

    found: list[str] = []

    def evaluate(options: argparse.Namespace) -> Any:
        found.extend(sorted(p.name for folder in options.include_path for p in Path(folder).glob("*.yaml")))
        return results(options)

    (tmp_path / "own.yaml").write_text("task: own\n")
    before = list(sys.argv)
    evaluation(evaluate)
    assert command.lmms_cli([*ARGS, "--include_path", str(tmp_path)]) == 0
    assert found == sorted(["gqa_mini.yaml", "mme_mini.yaml", "pope_mini.yaml", "textvqa_mini.yaml", "own.yaml"])
    assert get_model("prunebench") is PrunebenchLmms
    assert sys.argv == before


def fails(options: argparse.Namespace) -> Any:
    raise ValueError("no such task")


def aborts(options: argparse.Namespace) -> Any:
    raise Abort("prunebench: boom")


def stops(options: argparse.Namespace) -> Any:
    sys.exit()  # upstream without --tasks


@pytest.mark.parametrize("evaluate", [fails, aborts, stops, lambda options: (None, None), lambda options: ({}, None)])
def test_cli_exits_non_zero_on_every_failure(
    evaluation: Any, evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation(evaluate)
    assert command.lmms_cli(ARGS) == 1
    assert "prunebench: no results for pope_mini" in capsys.readouterr().err


def test_cli_notices_results_that_were_not_saved(
    evaluation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation(results)
    assert command.lmms_cli([*ARGS, "--output_path", str(tmp_path)]) == 1
    assert f"no results file was written under {tmp_path}" in capsys.readouterr().err
    (tmp_path / "20300101_results.json").write_text("{}")
    assert command.lmms_cli([*ARGS, "--output_path", str(tmp_path)]) == 0


def test_cli_refuses_a_limit_that_cuts_an_mme_pair(evaluation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seen = evaluation(results)
    assert command.lmms_cli(["--model", "prunebench", "--tasks", "mme_mini", "--limit", "5"]) == 1
    assert not seen
    assert "--limit 5 would cut a pair of mme_mini: expected an even" in capsys.readouterr().err
    assert command.lmms_cli(["--model", "prunebench", "--tasks", "mme_mini", "--limit", "6"]) == 0


def test_cli_passes_upstreams_own_exits_on(evaluation: Any) -> None:
    evaluation(stops)
    assert command.lmms_cli(["--tasks", "list"]) == 0
    assert command.lmms_cli(["--no_such_option"]) == 2


@pytest.mark.parametrize(
    ("path", "fine"), [("a,b", False), ("7", False), ("True", False), ("./7", True), ("a=b c", True)]
)
def test_cli_refuses_a_folder_that_lmms_eval_cannot_read(
    evaluation: Any, path: str, fine: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = evaluation(results)
    assert command.lmms_cli([*ARGS, "--output_path", path]) == 1, "nothing is saved here"
    assert bool(seen) is fine
    said = f"prunebench: --output_path {path}: expected a folder without a comma in its name"
    assert (said in capsys.readouterr().err) is not fine
