"""Any task of lmms-eval as samples: rows, keys, images, subsets and scores, and what is refused before inference."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from taskdata import encoded
from yamltask import FEATURES, FUNCTIONS, Tagged, picture, rows, write_rows, write_task

from harness.core.errors import PrunebenchError
from tasks import lmms, named, repository
from tasks.sources import DataSource

HUB = DataSource.parse("hub")  # never asked: the rows stand beside the files


def load(file: Path | str, limit: int | None = None, seed: int = 0, source: DataSource = HUB) -> lmms.LoadedTask:
    return lmms.load_task(str(file), source, limit, seed)


def refused(file: Path | str, source: DataSource = HUB) -> str:
    """The one line in which its data are refused."""
    with pytest.raises(PrunebenchError) as error:
        load(file, source=source)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def right(task: lmms.LoadedTask) -> dict[str, str]:
    return {s.key: s.targets[0] for s in task.samples}


# -------------------------------------------------------------------------------------------------------------- samples


def test_samples_are_the_tasks_own(tmp_path: Path) -> None:
    task = load(write_task(tmp_path))
    assert [s.key for s in task.samples] == [f"colours/{i:06d}" for i in range(6)]
    assert task.samples[1].content == (None, "Colour 1? Say it.")  # the entry `default`, whatever the model
    assert task.samples[2].targets == ("green",)
    assert [s.question_id for s in task.samples] == [f"q{i}" for i in range(6)]
    assert (task.max_new_tokens, task.until) == (8, ("###",))
    assert (task.metric.name, task.metric.kind, task.metric.higher_is_better) == ("exact_match", "mean", True)


def test_images_are_known_by_their_file_and_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    decoded = []
    monkeypatch.setattr("tasks.unread._DECODE", lambda *a: decoded.append(a))
    task = load(write_task(tmp_path))
    assert [s.image_key for s in task.samples][::2] == [
        hashlib.sha256(picture(n)["bytes"]).hexdigest()[:16] for n in range(3)
    ]
    assert task.sizes == {s.image_key: (48, 64) for s in task.samples}
    assert decoded == []
    monkeypatch.undo()
    shown = task.samples[2].load_image()
    assert (shown.mode, shown.size, shown.getpixel((5, 5))) == ("RGB", (64, 48), (0, 128, 0))


def test_an_image_that_the_task_changes_is_known_by_its_pixels(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace('.convert("RGB")', ".rotate(90, expand=True)")
    task, plain = load(write_task(tmp_path / "a", functions)), load(write_task(tmp_path / "b"))
    assert task.samples[0].image_size() == (64, 48)
    assert task.samples[0].load_image().size == (48, 64)
    assert task.samples[0].image_key == task.samples[1].image_key != task.samples[2].image_key
    assert task.samples[0].image_key != plain.samples[0].image_key


def test_turned_images_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"bytes": encoded(Image.new("RGB", (64, 48), "red"), "JPEG", exif=exif), "path": None}
    task = load(write_task(tmp_path, values=[{**rows()[0], "image": turned}]))
    assert task.samples[0].image_size() == (64, 48)
    assert task.samples[0].load_image().size == (48, 64)


def test_several_images_stand_where_the_task_puts_them(tmp_path: Path) -> None:
    functions = FUNCTIONS + (
        "\ndef messages(doc):\n"
        "    first, second = (dict(type='image', url=i.convert('RGB')) for i in doc['images'])\n"
        "    words = [dict(type='text', text=t) for t in ('Left:', 'Right:')]\n"
        "    return [dict(role='user', content=[words[0], first, words[1], second])]\n"
    )
    features = {**FEATURES, "images": datasets.List(datasets.Image())}
    values = [{**row, "images": [picture(i), picture(i + 1, (30, 20))]} for i, row in enumerate(rows())]
    file = write_task(tmp_path, functions, values, features, doc_to_messages=Tagged("functions.messages"))
    sample = load(file).samples[1]
    assert sample.content == ("Left:", None, "Right:", None)
    assert sample.prompt == "Left:\nRight:"
    assert [image.size() for image in sample.images] == [(48, 64), (20, 30)]
    assert [image.load().size for image in sample.images] == [(64, 48), (30, 20)]
    assert len({s.image_key for s in load(file).samples}) == 3  # pictures repeat after three


def test_a_struct_of_bytes_and_path_is_an_image(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    table = pq.read_table(tmp_path / "rows.parquet").replace_schema_metadata({})
    expected = load(file)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert load(file).fingerprint == expected.fingerprint


# ----------------------------------------------------------------------------------------------------- rows and subsets

FILTERS = """
def odd(rows):
    return rows.filter(lambda doc: int(doc["id"][1:]) % 2 == 1)


def backwards(rows):
    return rows.select(range(len(rows) - 1, -1, -1))


def each_twice(rows):
    from datasets import Dataset

    return Dataset.from_list([doc for doc in rows for _ in range(2)])


def without_other_columns(rows):
    wide = rows.filter(lambda doc: doc["image"].width > 1)
    return wide.select_columns(["image", "question", "answer"]).select([4, 1])


def columns_made_anew(rows):
    made = rows.map(lambda doc: {"question": "And " + doc["question"], "wide": doc["image"].width}).filter(
        lambda doc: doc["wide"] == 64
    )
    return made.remove_columns(["wide"])


def cut(rows):
    return rows.map(lambda doc: {"image": doc["image"].crop((0, 0, 10, 20))})


def nothing(rows):
    return rows.select([])


def broken(rows):
    return rows.map(lambda doc: {"question": doc["query"]})
"""


@pytest.mark.parametrize(
    ("process", "keys"),
    [
        ("odd", ["000001", "000003", "000005"]),
        ("backwards", ["000005", "000004", "000003", "000002", "000001", "000000"]),
        ("each_twice", [f"00000{i}{again}" for i in range(6) for again in ("", ".1")]),
        ("without_other_columns", ["000004", "000001"]),
        ("columns_made_anew", [f"00000{i}" for i in range(6)]),
    ],
)
def test_rows_keep_the_number_of_the_source(process: str, keys: Sequence[str], tmp_path: Path) -> None:
    file = write_task(tmp_path, FUNCTIONS + FILTERS, process_docs=Tagged(f"functions.{process}"))
    plain = {s.key: s for s in load(write_task(tmp_path / "plain")).samples}
    found = load(file).samples
    assert [s.key for s in found] == [f"colours/{key}" for key in keys]
    for sample in found:
        source = plain[sample.key.partition(".")[0]]
        assert (sample.image_key, sample.targets) == (source.image_key, source.targets)
        assert sample.load_image().tobytes() == source.load_image().tobytes()


def test_an_image_that_process_docs_cuts_is_the_cut_one(tmp_path: Path) -> None:
    file = write_task(tmp_path, FUNCTIONS + FILTERS, process_docs=Tagged("functions.cut"))
    sample = load(file).samples[2]
    assert (sample.key, sample.image_size(), sample.load_image().size) == ("colours/000002", (20, 10), (10, 20))


def test_process_docs_that_fails_or_leaves_nothing(tmp_path: Path) -> None:
    for process, said in (("nothing", "left none of 6 rows"), ("broken", "failed on the rows of split test: KeyError")):
        file = write_task(tmp_path, FUNCTIONS + FILTERS, process_docs=Tagged(f"functions.{process}"))
        assert f"task colours: its process_docs {said}" in refused(file)


def test_a_subset_takes_whole_images(tmp_path: Path) -> None:
    file = write_task(tmp_path, values=[{**row, "image": picture(i // 3)} for i, row in enumerate(rows(18))])
    seen = set()
    for seed in range(5):
        found = load(file, 9, seed).samples
        assert len(found) == 6  # a colour stands in six rows; nine rows are no whole number of images
        assert len({s.image_key for s in found}) == 1
        assert [s.key for s in found] == sorted(s.key for s in found)
        seen.add(found[0].image_key)
    assert len(seen) > 1
    assert load(file, 18).fingerprint == load(file, None).fingerprint


def test_the_identity_covers_configuration_code_version_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "task"
    first = load(write_task(place)).fingerprint
    changes: dict[str, Callable[[], Path]] = {
        "same": lambda: write_task(place),
        "elsewhere": lambda: write_task(tmp_path / "other"),
        "kwargs": lambda: write_task(place, lmms_eval_specific_kwargs={"default": {"post_prompt": " Say."}}),
        "length": lambda: write_task(place, generation_kwargs={"max_new_tokens": 9, "until": ["###"]}),
        "code": lambda: write_task(place, FUNCTIONS.replace("float(", "1.0 * (")),
        "answer": lambda: write_task(place, values=[*rows()[:5], {**rows()[5], "answer": "white"}]),
        "image": lambda: write_task(place, values=[*rows()[:5], {**rows()[5], "image": picture(0)}]),
        "column": lambda: write_task(
            place, values=[{**r, "hint": "h"} for r in rows()], features={**FEATURES, "hint": datasets.Value("string")}
        ),
    }
    found = {name: load(change()).fingerprint for name, change in changes.items()}
    assert found.pop("same") == found.pop("elsewhere") == first
    assert len({first, *found.values()}) == len(found) + 1
    assert load(f"{write_task(place)}:length").fingerprint != first
    assert load(write_task(place), 4).fingerprint != first
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert load(write_task(place)).fingerprint != first


# --------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_lmms_evals_and_leave_nothing_behind(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace(
        "def mean_of_scores(results):", "counted = []\n\n\ndef mean_of_scores(results):\n    counted.extend(results)"
    ).replace("for result in results) / len(results)", "for result in counted) / len(counted)")
    task = load(write_task(tmp_path, functions))
    answers = right(task)
    assert lmms.score(task, answers).metrics == {"exact_match": 1.0, "length": 1.0}
    answers["colours/000003"] = "purple"
    for _ in range(2):
        found = lmms.score(task, answers)
        assert found.headline == pytest.approx(5 / 6)
        assert found.metrics["length"] == pytest.approx(5 / 6)  # nothing of the first call is counted again
        assert found.scores["colours/000003"] == 0
        assert sum(v or 0 for v in found.scores.values()) == 5


def test_a_named_headline_has_its_own_kind_and_direction(tmp_path: Path) -> None:
    task = load(f"{write_task(tmp_path)}:length")
    assert (task.name, task.samples[0].key) == ("colours:length", "colours:length/000000")
    assert (task.metric.kind, task.metric.higher_is_better) == ("corpus", False)
    found = lmms.score(task, right(task))
    assert found.headline == 1
    assert set(found.scores.values()) == {1.0}  # its logged sample names a score


def test_filters_keep_their_names(tmp_path: Path) -> None:
    filters = [
        {"name": "as-is", "filter": [{"function": "take_first"}]},
        {
            "name": "last-word",
            "filter": [
                {"function": "regex", "regex_pattern": r"(\w+)$", "group_select": -1},
                {"function": "take_first"},
            ],
        },
    ]
    file = write_task(tmp_path, filter_list=filters)
    task = load(file)
    answers = {key: f"it is {text}" for key, text in right(task).items()}
    found = lmms.score(task, answers)
    assert found.metrics == {
        "exact_match,as-is": 0.0,
        "exact_match,last-word": 1.0,
        "length,as-is": 0.0,
        "length,last-word": 1.0,
    }
    assert (task.metric.name, found.headline) == ("exact_match,as-is", 0.0)
    other = load(f"{file}:exact_match:last-word")
    again = lmms.score(other, {s.key: answers[s.key.replace(":exact_match:last-word", "")] for s in other.samples})
    assert again.headline == 1.0
    assert set(again.scores.values()) == {1.0}


def test_a_mean_of_numbers_beyond_one_is_no_mean_of_scores(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace('{"exact_match": right,', '{"exact_match": 100 * right - 5,')
    task = load(write_task(tmp_path, functions))
    assert task.metric.kind == "corpus"
    assert lmms.score(task, right(task)).headline == 95
    assert set(lmms.score(task, right(task)).scores.values()) == {None}


def test_a_mean_of_numbers_that_only_right_answers_bring_beyond_one_is_no_mean_of_scores(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace('{"exact_match": right,', '{"exact_match": 5 * right,')
    task = load(write_task(tmp_path, functions))
    assert task.metric.kind == "corpus"
    assert lmms.score(task, right(task)).headline == 5


def test_a_metric_of_some_questions_is_no_mean_of_scores(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace(
        'return {"exact_match": right,', 'return {} if doc["id"] == "q5" else {"exact_match": right,'
    )
    task = load(write_task(tmp_path, functions))
    assert task.metric.kind == "corpus"
    assert lmms.score(task, right(task)).scores["colours/000005"] is None


def test_numbers_within_a_mapping_are_metrics_and_the_rest_is_left_out(tmp_path: Path) -> None:
    functions = FUNCTIONS + "\ndef table(results):\n    return {'mean': 0.5, 'name': 'a', 'list': [1]}\n"
    metrics = [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "length", "aggregation": Tagged("functions.table"), "higher_is_better": True},
    ]
    file = write_task(tmp_path, functions, metric_list=metrics)
    task = load(file)
    assert lmms.score(task, right(task)).metrics == {"exact_match": 1.0, "length/mean": 0.5}
    assert "expected a number as its metric length, found dict; name another" in refused(f"{file}:length")


def test_scoring_that_fails_on_answers_says_so(tmp_path: Path) -> None:
    functions = FUNCTIONS.replace("    right =", '    assert results[0] != "boom"\n    right =')
    task = load(write_task(tmp_path, functions))
    with pytest.raises(PrunebenchError, match="lmms-eval's own scoring failed after inference: AssertionError"):
        lmms.score(task, {**right(task), "colours/000002": "boom"})


def test_sampling_is_stated_and_greedy_is_run(tmp_path: Path) -> None:
    asked = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.7, "num_beams": 4}
    assert load(write_task(tmp_path, generation_kwargs=asked)).sampling == "do_sample, temperature=0.7, num_beams=4"
    assert load(write_task(tmp_path, generation_kwargs={"do_sample": True})).sampling == "do_sample"
    plain = {"temperature": 0, "do_sample": False, "num_beams": 1, "top_p": 1.0}
    task = load(write_task(tmp_path, generation_kwargs=plain))
    assert (task.sampling, task.max_new_tokens, task.until) == ("", named.MAX_NEW_TOKENS, ())


# --------------------------------------------------------------------------------------------- refused before inference


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        (
            FUNCTIONS.replace('doc["question"] +', 'doc["query"] +'),
            "lacks the column query, which the task's doc_to_text and doc_to_target read: found id, image, question",
        ),
        (
            FUNCTIONS.replace('doc["image"]', 'doc["picture"]'),
            "colours/000000 lacks the column picture, which the task's doc_to_messages read",
        ),
        (
            FUNCTIONS.replace('== doc["answer"]', '== doc["truth"]'),
            "colours/000000 lacks the column truth, which the task's process_results read",
        ),
        (
            FUNCTIONS.replace("    right =", '    assert doc["id"] != "q0", "odd"\n    right ='),
            "colours/000000: the task's process_results failed: AssertionError: odd",
        ),
        (
            FUNCTIONS.replace('doc["question"] +', '(doc["question"] if doc["id"] != "q4" else None) +'),
            "colours/000004: the task's doc_to_text failed: TypeError",
        ),
        (FUNCTIONS.replace('[doc["image"].convert("RGB")]', "[]"), "expected a prompt with an image, found text alone"),
        (FUNCTIONS.replace('[doc["image"].convert("RGB")]', '["film.mp4"]'), "found video in it"),
        (FUNCTIONS.replace('[doc["image"].convert("RGB")]', '["sound.wav"]'), "found audio in it"),
        ("import nowhere_to_be_found\n" + FUNCTIONS, "its code needs the package nowhere_to_be_found"),
        ("raise OSError('no key')\n" + FUNCTIONS, "its code cannot be imported: OSError: no key"),
        (
            FUNCTIONS + "\ndef mean_of_scores(results):\n    import nowhere_to_be_found\n",
            "its metric length needs the package nowhere_to_be_found",
        ),
        (
            FUNCTIONS + "\ndef mean_of_scores(results):\n    import subprocess\n    subprocess.run(['no-java-here'])\n",
            "its metric length needs the program no-java-here",
        ),
    ],
)
def test_what_the_tasks_code_would_trip_over_after_inference(functions: str, said: str, tmp_path: Path) -> None:
    word = f"{write_task(tmp_path, functions)}" + (":length" if "its metric length" in said else "")
    assert said in refused(word)


def test_several_turns_are_refused(tmp_path: Path) -> None:
    functions = FUNCTIONS + (
        "\ndef messages(doc):\n"
        "    turn = dict(role='user', content=[dict(type='image', url=doc['image']), dict(type='text', text='a')])\n"
        "    return [turn, dict(role='assistant', content=[dict(type='text', text='b')]), turn]\n"
    )
    file = write_task(tmp_path, functions, doc_to_messages=Tagged("functions.messages"))
    assert "colours/000000: expected one turn of the user, found 3 (user, assistant, user)" in refused(file)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"bytes": b"no image", "path": None}, "colours/000002: the image does not decode (8 bytes)"),
        (None, "colours/000002: the task's doc_to_messages failed: AttributeError"),
    ],
)
def test_a_broken_image_is_named_by_its_row(image: Any, said: str, tmp_path: Path) -> None:
    values = [{**row, "image": image} if i == 2 else row for i, row in enumerate(rows())]
    assert said in refused(write_task(tmp_path, values=values))


# ------------------------------------------------------------------------------------------------------- where rows lie


def local(tmp_path: Path, place: str, readme: str = "", file: str = "data/test-00000-of-00001.parquet") -> DataSource:
    write_rows(tmp_path / "data" / place / file)
    if readme:
        (tmp_path / "data" / place / "README.md").write_text(f"---\n{readme}\n---\n# Text\n")
    return DataSource.parse(str(tmp_path / "data"))


CONFIGS = """configs:
- config_name: other
  data_files:
  - split: test
    path: nowhere/*
- config_name: mine
  data_files:
  - split: train
    path: [train.parquet]
  - split: test
    path: [parts/one-*.parquet]"""


@pytest.mark.parametrize(
    ("place", "readme", "file", "name"),
    [
        ("owner/set", "", "data/test-00000-of-00001.parquet", None),
        ("set", "", "data/test-00000-of-00001.parquet", None),
        ("owner/set", "", "mine/test-00000-of-00001.parquet", "mine"),
        ("owner/set", CONFIGS, "parts/one-a.parquet", "mine"),
        ("set", "license: mit", "data/test-00000-of-00001.parquet", None),
    ],
)
def test_a_folder_is_laid_out_as_the_hubs_repository(
    place: str, readme: str, file: str, name: str | None, tmp_path: Path
) -> None:
    source = local(tmp_path, place, readme, file)
    task = write_task(tmp_path / "task", dataset_path="owner/set", dataset_name=name, dataset_kwargs={"token": True})
    beside = load(write_task(tmp_path / "beside"))
    assert load(task, source=source).fingerprint == beside.fingerprint


def test_changed_files_are_read_anew(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", dataset_path="owner/set", dataset_kwargs=None)
    source = local(tmp_path, "owner/set", CONFIGS.replace("mine", "default"), "parts/one-a.parquet")
    assert len(load(task, source=source).samples) == 6
    write_rows(tmp_path / "data/owner/set/parts/one-a.parquet", rows(4))
    assert len(load(task, source=source).samples) == 4


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda data: None, "expected its data set owner/set at "),
        (
            lambda data: write_rows(data / "owner/set/data/train-0.parquet"),
            "/owner/set/data/test-*.parquet, found data/train-0.parquet",
        ),
        (lambda data: write_rows(data / "owner/set/data/test-00000-of-00002.parquet"), "number 00001 is missing"),
        (
            lambda data: (
                write_rows(data / "owner/set/data/test-1.parquet"),
                (data / "owner/set/data/test-2.parquet").write_bytes(b"PAR1"),
            ),
            "cannot be read as parquet",
        ),
        (
            lambda data: (
                write_rows(data / "owner/set/a.parquet"),
                (data / "owner/set/README.md").write_text(
                    "---\nconfigs: [{config_name: a, data_files: a.parquet}]\n---"
                ),
            ),
            "expected the split test in a, found train",
        ),
    ],
)
def test_what_a_folder_lacks_is_said(prepare: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    prepare(data)
    task = write_task(tmp_path / "task", dataset_path="owner/set", dataset_kwargs=None)
    text = refused(task, DataSource.parse(str(data)))
    assert text.startswith("task colours: ")
    assert said in text


class GatedError(Exception): ...


class DatasetNotFoundError(Exception): ...


class LocalTokenNotFoundError(Exception): ...


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError("Couldn't reach\nowner/set"),
            "cannot load owner/set (split test) from the hub: ConnectionError",
        ),
        (
            DatasetNotFoundError("Dataset 'owner/set' is a gated dataset on the Hub."),
            "needs an account: owner/set is gated",
        ),
        (DatasetNotFoundError("Dataset 'owner/set' doesn't exist"), "expected the data set owner/set on the hub"),
        (LocalTokenNotFoundError("Token is required"), "needs an account: owner/set is not open to everybody"),
        (RuntimeError("Dataset scripts are no longer supported, but found set.py"), "owner/set is a script"),
    ],
)
def test_the_hub_out_of_reach_is_one_line(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        assert "token" not in kwargs
        assert "trust_remote_code" not in kwargs
        raise error

    kwargs = {"token": True, "trust_remote_code": True}
    task = write_task(tmp_path, dataset_path="owner/set", dataset_kwargs=kwargs)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    text = refused(task)
    assert text.startswith(f"task colours: {said}")
    assert "data" in text.rpartition("give")[2]


def test_code_that_asks_for_another_table_gets_the_folders(tmp_path: Path) -> None:
    functions = (
        "from datasets import load_dataset\n" + FUNCTIONS + "\ndef joined(rows):\n"
        "    other = load_dataset('owner/names', split='test', token=True)\n"
        "    return rows.map(lambda doc, i: {'question': other[i]['question'] + '!'}, with_indices=True)\n"
    )
    local(tmp_path, "owner/names")
    source = local(tmp_path, "owner/set")
    task = write_task(
        tmp_path / "task",
        functions,
        dataset_path="owner/set",
        dataset_kwargs=None,
        process_docs=Tagged("functions.joined"),
    )
    assert load(task, source=source).samples[1].prompt == "Colour 1?! Say it."


def test_rows_beside_the_file_in_json(tmp_path: Path) -> None:
    task = named.find(
        str(write_task(tmp_path, dataset_path="json", dataset_kwargs={"data_files": {"test": "rows.jsonl"}}))
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": f"Q{i}", "answer": "a"}) + "\n" for i in "ab"))
    assert repository.rows_of(task, HUB)["question"] == ["Qa", "Qb"]
    assert isinstance(repository.rows_of(task, HUB).data.table, pa.Table)
