"""Published folders of other people: what holds, and each kind of hostile content with the exact refusal."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import CELLS, body, forged, place, plain_parquet, published, resealed, resubmitted, samples_with

from harness.core.budget import parse
from harness.core.cell import processing_digest
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method.build import build
from harness.models.prompt import VICUNA_V1
from harness.proof.foreign import Checker
from harness.store import foreign
from harness.store.foreign import HOLDS, REFUSED, UNKNOWN, ForeignFolder, opened
from harness.store.sealed import SAMPLES, SEAL
from harness.store.submission import NAME


def looked(folder: Path, data: str | None = None) -> ForeignFolder:
    """What a published folder holds; the copy is gone afterwards."""
    with opened(folder, Checker(data)) as found:
        return found


def of(found: ForeignFolder, method: str = "visipruner") -> Any:
    """The one row of a method's cell, or of a folder of that name."""
    (row,) = (one for one in found.cells if f"-{method}-" in one.place)
    return row


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return published(tmp_path / "alice")


def test_a_good_folder_holds_and_says_what_nobody_here_can_check(good: Path) -> None:
    found = looked(good)
    assert (found.fine, found.faults, found.who) == (True, [], "Alice Lab")
    assert [one.state for one in found.cells] == [HOLDS, HOLDS]
    for one in found.cells:
        assert one.unchecked == (foreign.ONLY_THE_RUN,), "data and model of mini are embedded: all else was computed"


def test_what_is_not_at_hand_is_said_of_each_cell(good: Path) -> None:
    def elsewhere(new: dict[str, Any]) -> None:
        new["cell"]["data_fingerprint"] = "f" * 64
        new["provenance"]["request"]["data"] = "textvqa_copy"

    forged(good, elsewhere)
    row = of(looked(good))
    assert row.state == HOLDS
    assert "scores not recomputed, data not at hand: pope: they are in 'textvqa_copy' of who measured" in row.unchecked

    def unknown(new: dict[str, Any]) -> None:
        new["cell"]["model"] = new["provenance"]["request"]["model"] = "org/model"
        new["cell"]["stands_for"] = ""

    forged(good, unknown)
    row = of(looked(good))
    assert row.state == HOLDS
    assert "costs not recomputed, model not at hand: org/model has no config here" in row.unchecked
    assert "knobs of its budget not computed: org/model has no config here" in row.unchecked
    assert "unproven not computed, model not at hand" in row.unchecked
    assert any(why.startswith("scores not recomputed, data not at hand: pope") for why in row.unchecked)
    assert of(looked(good), "none").unchecked == (foreign.ONLY_THE_RUN,)

    def of_the_hub(new: dict[str, Any]) -> None:
        new["cell"]["model"] = new["cell"]["stands_for"] = new["provenance"]["request"]["model"] = "llava-1.5-7b"
        new["provenance"]["request"]["data"] = None
        done = new["provenance"]["processing"]
        done["template"], done["image"]["policy"] = VICUNA_V1, "pad"
        new["cell"]["processing"] = processing_digest(done)

    forged(good, of_the_hub)
    assert of(looked(good)).wrong[0].startswith("its budget 128 makes the knob "), "knobs are those of its own layers"

    def of_its_layers(new: dict[str, Any]) -> None:
        made = build("visipruner", parse("128"), {}, SHAPES["llava-1.5-7b"])
        new["cell"]["knobs"] = made.knobs()

    forged(good, of_its_layers)
    assert of(looked(good)).unchecked == (
        "scores not recomputed, data not at hand: pope: they are on the hub",
        "costs not recomputed, model not at hand: llava-1.5-7b is on the hub",
        "unproven not computed, model not at hand",
        foreign.ONLY_THE_RUN,
    )


def test_kept_tokens_without_a_record_are_said(good: Path) -> None:
    def unrecorded(frame: Any) -> None:
        frame["keeps"] = ""

    forged(good, lambda new: None, samples_with(place(good), unrecorded))
    assert "costs of 108 samples not recomputed: no record of kept tokens" in of(looked(good)).unchecked


def test_the_data_of_who_checks_are_used(good: Path) -> None:
    from tasks.sources import DataSource

    def elsewhere(new: dict[str, Any]) -> None:
        new["provenance"]["request"]["data"] = "copy"

    forged(good, elsewhere)
    root = DataSource.parse("mini").root
    assert of(looked(good, str(root))).unchecked == (foreign.ONLY_THE_RUN,)


# ---------------------------------------------------------------------------------------------- hostile files and names


def linked(folder: Path) -> None:
    path = place(folder) / SEAL
    path.unlink()
    path.symlink_to("/etc/passwd")


def linked_samples(folder: Path) -> None:
    target = folder.parent / "outside.parquet"
    shutil.move(place(folder) / SAMPLES, target)
    (place(folder) / SAMPLES).symlink_to(target)


def piped(folder: Path) -> None:
    (place(folder) / SAMPLES).unlink()
    os.mkfifo(place(folder) / SAMPLES)


def hard_linked(folder: Path) -> None:
    os.link(place(folder) / SEAL, folder.parent / "other")


def beside(folder: Path) -> None:
    (place(folder) / "sitecustomize.py").write_text("raise SystemExit")


def huge(folder: Path) -> None:
    with (place(folder) / SAMPLES).open("r+b") as file:
        file.truncate(foreign.MOST[SAMPLES] + 1)  # sparse


def renamed(folder: Path) -> None:
    shutil.move(place(folder), place(folder).with_name("other-visipruner-9cc6a3e3a72140bf"))


def escaping(folder: Path) -> None:
    shutil.move(place(folder), place(folder).with_name("x\x1b[31m-visipruner-..\\..\\9cc6a3e3a72140bf"))


def as_dots(folder: Path) -> None:
    shutil.move(place(folder), place(folder).with_name("mini..-visipruner-9cc6a3e3a72140bf"))


def without_samples(folder: Path) -> None:
    (place(folder) / SAMPLES).unlink()


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "link": (linked, "cell.json: expected a file, found a link"),
    "link to samples": (linked_samples, "samples.parquet: expected a file, found a link"),
    "pipe": (piped, "samples.parquet: expected a file, found a pipe"),
    "hard link": (hard_linked, "cell.json: expected a file of one name, found 2 (hard links): copy it"),
    "other file": (
        beside,
        "expected cell.json and samples.parquet alone, found cell.json, samples.parquet, sitecustomize.py",
    ),
    "huge file": (huge, "samples.parquet: expected at most 67,108,864 bytes, found 67,108,865"),
    "renamed": (renamed, "expected the name mini-visipruner-128-9cc6a3e3a72140bf: it was renamed"),
    "name with escapes": (
        escaping,
        "expected a name of letters, digits, . _ + and -, found another: publish the cells again",
    ),
    "name with dots": (
        as_dots,
        "expected a name of letters, digits, . _ + and -, found another: publish the cells again",
    ),
    "half a cell": (without_samples, "expected cell.json and samples.parquet alone, found cell.json"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_refused_and_the_other_cell_holds(good: Path, kind: str) -> None:
    change, expected = FILES[kind]
    change(good)
    found = looked(good)
    row = of(found)
    assert (row.state, row.wrong) == (REFUSED, (expected,))
    assert of(found, "none").state == HOLDS
    assert not found.fine


def test_a_folder_that_is_a_link_or_none_is_refused(good: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(good)
    found = looked(tmp_path / "link")
    assert (found.fine, found.holding) == (False, [])
    assert found.faults[0] == f"{tmp_path / 'link'}: expected a folder, found a link"
    shutil.move(good / "cells" / "pope", tmp_path / "pope")
    (good / "cells" / "pope").symlink_to(tmp_path / "pope")
    found = looked(good)
    assert "cells/pope: pope: expected a folder, found a link" in found.faults
    assert not found.cells
    with pytest.raises(PrunebenchError, match="expected a folder that `prunebench results publish` wrote, found none"):
        looked(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert looked(tmp_path / "file").faults[0].endswith("expected a folder, found a file")


def test_too_many_names_are_not_read(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MOST_NAMES", 1)
    assert not looked(good).fine
    monkeypatch.undo()
    monkeypatch.setattr(foreign, "MOST_IN_ALL", 20_000)
    found = looked(good)
    assert any("in all files together" in why for one in found.cells for why in one.wrong)


def test_other_files_at_the_top_are_named_and_nothing_of_them_is_read(good: Path) -> None:
    (good / "conftest.py").write_text("raise SystemExit")
    (good / "README.md").mkdir()
    os.mkfifo(good / "pipe")
    found = looked(good)
    named = [f"{name}: expected submission.json and cells/ alone: remove it" for name in ("README.md", "conftest.py")]
    assert found.faults == [*named, "pipe: expected submission.json and cells/ alone: remove it"]
    assert len(found.holding) == 2


def test_no_advice_to_remove_files_of_what_is_no_published_folder(good: Path) -> None:
    (above,) = looked(good.parent).faults
    assert above == (
        f"{NAME}: expected it beside cells/, found neither: name each folder that `prunebench results publish` wrote,"
        " not the one above"
    )
    (good / NAME).unlink()
    (good / "LEADERBOARD.md").write_text("tables of a results folder")
    (own,) = looked(good).faults
    assert own.startswith(f"{NAME}: expected it beside cells/, found none: ")


# ------------------------------------------------------------------------------------------------------- hostile cells


def edited(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the text of a cell.json, and nothing else."""

    def apply(folder: Path) -> None:
        path = place(folder) / SEAL
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))

    return apply


def sealed_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change what a cell.json says, and seal it again."""
    return lambda folder: forged(folder, change) and None


def nested(new: dict[str, Any]) -> None:
    value: Any = 1
    for _ in range(40):
        value = [value]
    new["provenance"]["kernels"] = value


def deep(folder: Path) -> None:
    (place(folder) / SEAL).write_text("[" * 200_000)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(new: dict[str, Any]) -> None:
        at = new
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value

    return apply


def sparse_grids(new: dict[str, Any]) -> None:
    new["provenance"]["grids"] = {f"{'1x1 | ' * 2000}1x1": ["a"]}


def score_of_another_run(new: dict[str, Any]) -> None:
    new["metrics"]["pope_accuracy"] = new["metrics"]["category/random"] = 0.5


ONE_MORE = "; result files are never edited"
CONTENT: dict[str, tuple[Callable[[Path], None], str]] = {
    "key twice": (
        edited(lambda text: text.replace('"headline": "', '"headline": "x",\n "headline": "', 1)),
        "cell.json: expected JSON as prunebench writes it, found the key 'headline' twice",
    ),
    "NaN": (
        edited(lambda text: text.replace('"maximum": 1.0', '"maximum": NaN')),
        "cell.json: expected JSON as prunebench writes it, found the number NaN",
    ),
    "infinity": (
        edited(lambda text: text.replace('"maximum": 1.0', '"maximum": 1e999')),
        "cell.json: expected JSON as prunebench writes it, found the number 1e999",
    ),
    "huge number": (
        edited(lambda text: text.replace('"expected": 108', '"expected": ' + "9" * 5000)),
        "cell.json: expected JSON as prunebench writes it, found a number of 5000 digits",
    ),
    "deep": (deep, "cell.json: expected JSON as prunebench writes it, found more than 32 levels"),
    "nested": (sealed_with(nested), "cell.json: expected JSON as prunebench writes it, found more than 32 levels"),
    "not ASCII": (
        edited(lambda text: text.replace("AMD", "\u202eAMD")),
        "cell.json: expected JSON as prunebench writes it, found bytes that are not ASCII",
    ),
    "other bytes": (
        edited(lambda text: text.replace("\n ", "\n  ")),
        "cell.json: expected the bytes that prunebench writes for this content, found other ones" + ONE_MORE,
    ),
    "other key": (
        sealed_with(put("note", value="mine")),
        "cell.json: expected the keys of a cell file, found ['note']" + ONE_MORE,
    ),
    "count as text": (
        sealed_with(put("counts", "headline", value="108")),
        "cell.json: expected counts/headline: a count from 0, found '108'" + ONE_MORE,
    ),
    "device as object": (
        sealed_with(put("provenance", "device", value={"a": 1})),
        "cell.json: expected provenance/device: a text, found {'a': 1}" + ONE_MORE,
    ),
    "escapes": (
        sealed_with(put("provenance", "device", value="\x1b]0;hacked\x07\x1b[2J")),
        "cell.json: expected provenance/device: characters that print, found '\\x1b'" + ONE_MORE,
    ),
    "surrogate": (
        sealed_with(put("provenance", "device", value="\ud800")),
        "cell.json: expected provenance/device: characters that print, found '\\ud800'" + ONE_MORE,
    ),
    "started": (
        sealed_with(put("provenance", "started", value="=HYPERLINK(1)")),
        "cell.json: expected provenance/started: a time, found '=HYPERLINK(1)'" + ONE_MORE,
    ),
    "layers": (
        sealed_with(put("provenance", "decoder_layers", value=10**9)),
        "cell.json: expected decoder_layers: 1 to 1000, found 1000000000" + ONE_MORE,
    ),
    "answers": (
        sealed_with(put("cell", "max_new_tokens", value=10**9)),
        "cell.json: expected cell/max_new_tokens: at most 1,000,000, found 1000000000" + ONE_MORE,
    ),
    "path as data": (
        sealed_with(put("provenance", "request", "data", value="../../../etc")),
        "its request has data '../../../etc', expected a name, no path",
    ),
    "path as model": (
        sealed_with(put("provenance", "request", "model", value="/etc")),
        "model is '/etc', expected a name, no path: publish it from such a request",
    ),
    "other model": (
        sealed_with(put("cell", "model", value="llava-1.5-7b")),
        "its request asks the model 'mini', and it is 'llava-1.5-7b'",
    ),
    "no budget": (
        sealed_with(
            lambda new: (
                put("cell", "budget", value="1.2.3avg")(new),
                put("provenance", "request", "budget", value="1.2.3avg")(new),
            )
        ),
        "its request asks for the budget '1.2.3avg', and it is '1.2.3avg'",
    ),
    "limit": (
        sealed_with(put("provenance", "request", "limit", value="²")),
        "cell.json: expected provenance/request/limit: a number of at most 18 digits, found '²'; result files are never"
        " edited",
    ),
    "processing": (
        sealed_with(put("provenance", "processing", "image", value="plain")),
        "cell.json: expected provenance/processing/image: an object with policy and processor, found 'plain'"
        + ONE_MORE,
    ),
    "unknown knob": (sealed_with(put("cell", "knobs", "exec", value="1")), "visipruner has no knob 'exec'"),
    "knob with a path": (
        sealed_with(put("cell", "knobs", "sink", value="/etc/passwd")),
        "its knob sink is '/etc/passwd', expected no path",
    ),
    "other budget": (
        sealed_with(put("cell", "budget", value="16")),
        "its request asks for the budget '128', and it is '16'",
    ),
    "forged metric": (
        sealed_with(score_of_another_run),
        "pope_accuracy is 0.5, but the samples' scores add up to 1.0",
    ),
    "forged interval": (
        sealed_with(put("interval", "low", value=0.99)),
        "the interval is {'metric': 'pope_accuracy', 'low': 0.99, 'high': 1.0, 'level': 0.95, 'method': 'Wilson over"
        " images, design effect 9.00', 'n_clusters': 12}, but the 12 images of the samples give {'metric':"
        " 'pope_accuracy', 'low': 0.7350058800470404, 'high': 1.0, 'level': 0.95, 'method': 'Wilson over images, design"
        " effect 9.00', 'n_clusters': 12}",
    ),
    "forged cost": (
        sealed_with(put("costs", "kept", value=1.0)),
        "cost kept is 1.0, but its column's mean is 128.0",
    ),
    "forged second metric": (
        sealed_with(put("metrics", "pope_recall", value=0.25)),
        "metric pope_recall is 0.25, but computed again it is 1.0",
    ),
    "forged traits": (
        sealed_with(put("method_info", "query_aware", value=False)),
        "method_info query_aware is False, but computed again it is True",
    ),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_hostile_content_is_refused_and_the_other_cell_holds(good: Path, kind: str) -> None:
    change, expected = CONTENT[kind]
    change(good)
    found = looked(good)
    (row,) = (one for one in found.cells if one.state != HOLDS)
    assert row.state == REFUSED
    assert expected in row.wrong
    assert of(found, "none").state == HOLDS


def test_an_edited_cell_without_its_checksum_is_refused(good: Path) -> None:
    new = body(place(good))
    new["metrics"]["pope_recall"] = 0.0
    text = json.loads((place(good) / SEAL).read_text())
    (place(good) / SEAL).write_text(json.dumps({**new, "checksum": text["checksum"]}, indent=1) + "\n")
    assert "it was edited" in of(looked(good)).wrong[0]
    resealed(place(good), new)
    expected = f"{NAME} says cell_sha256"
    assert of(looked(good)).wrong[0].startswith(expected), "a line of the submission names the very bytes"


# ----------------------------------------------------------------------------------------------- code that is not ours


@pytest.mark.parametrize(
    "method", ["evil.py:Evil", "./evil.py:Evil", "evil", "evil:Evil", "os.path", "methods/fastv.py:FastV"]
)
def test_code_that_a_cell_names_is_unknown_and_never_imported(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    ran = tmp_path / "ran"
    for where in (tmp_path, good):
        (where / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (good / "evil.py").unlink()

    def change(new: dict[str, Any]) -> None:
        new["cell"]["method"] = new["provenance"]["request"]["method"] = method

    cell = forged(good, change)
    (row,) = (one for one in looked(good).cells if one.place.endswith(cell.name))
    assert row.state == UNKNOWN
    assert row.wrong == (f"the method {method!r} is none that this prunebench has: nothing was imported",)
    assert not ran.exists()

    def only_asked(new: dict[str, Any]) -> None:
        new["cell"]["method"] = "visipruner"

    again = published(tmp_path / "again")
    forged(again, lambda new: put("provenance", "request", "method", value=method)(new))
    assert of(looked(again)).wrong[0] == f"its request names the method {method!r}, and it is 'visipruner'"
    assert not ran.exists()


def test_other_code_under_a_known_name_is_unknown(good: Path) -> None:
    forged(good, put("cell", "method_source", value="0123456789ab"))
    row = of(looked(good))
    assert row.state == UNKNOWN
    assert row.wrong == ("the code of visipruner was '0123456789ab', here it is 'prunebench': nothing was imported",)


@pytest.mark.parametrize("task", ["task.yaml", "./task.yaml", "/tmp/x/task.yaml", "folder/task", "task:/x", "~/task"])
def test_a_task_in_a_file_is_refused_and_its_functions_never_run(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\ndef f(*a): pass\n")
    text = "task: t\ndataset_path: x\noutput_type: generate_until\ndoc_to_text: !function evil.f\n"
    (tmp_path / "task.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)

    def change(new: dict[str, Any]) -> None:
        new["cell"]["task"] = new["provenance"]["request"]["task"] = task

    cell = forged(good, change)
    (row,) = (one for one in looked(good).cells if one.place.endswith(cell.name))
    assert row.state == REFUSED
    assert row.wrong[0] == f"task is {task!r}, expected a name, no path: publish it from such a request"
    assert not ran.exists()


# ------------------------------------------------------------------------------------------------------ hostile samples


def table_of(folder: Path) -> pa.Table:
    return pq.read_table(place(folder) / SAMPLES)


class Opener:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran-a-pickle",))


def with_column(folder: Path, name: str, values: list[Any], kind: Any = None) -> bytes:
    table = table_of(folder)
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    else:
        table = table.append_column(name, pa.array(values, kind))
    return plain_parquet(table, store_schema=False)


SAMPLE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "pickle": (lambda folder: pickle.dumps(Opener()), "samples.parquet: cannot be read as Parquet (ArrowInvalid: "),
    "torn": (
        lambda folder: (place(folder) / SAMPLES).read_bytes()[:-40],
        "samples.parquet: cannot be read as Parquet (ArrowInvalid: ",
    ),
    "schema of Arrow": (
        lambda folder: plain_parquet(table_of(folder)),
        "samples.parquet: expected no metadata beside its columns, found b'ARROW:schema'",
    ),
    "more rows": (
        lambda folder: plain_parquet(pa.concat_tables([table_of(folder)] * 2), store_schema=False),
        "samples.parquet: expected 108 rows as its cell says, and at most 250,000, found 216",
    ),
    "many columns": (
        lambda folder: plain_parquet(
            pa.table(
                {**dict(zip(table_of(folder).column_names, table_of(folder).columns, strict=True))}
                | {f"c{i}": [1] * 108 for i in range(200)}
            ),
            store_schema=False,
        ),
        "samples.parquet: expected at most 128 columns and 4,096 row groups, found 227 and 1",
    ),
    "odd column": (
        lambda folder: with_column(folder, "=cmd|' /C calc'!A0", [1] * 108),
        "samples.parquet: expected names of costs in small letters, digits and _, found the column",
    ),
    "nested column": (
        lambda folder: with_column(folder, "lists", [[1]] * 108),
        "samples.parquet: lists: expected int64 or double, found list<element: int64>",
    ),
    "no column": (
        lambda folder: plain_parquet(table_of(folder).drop_columns(["answer"]), store_schema=False),
        "samples.parquet: expected the column 'answer', found none",
    ),
    "column of another kind": (
        lambda folder: with_column(folder, "score", ["1"] * 108),
        "samples.parquet: score: expected double, found string",
    ),
    "long text": (
        lambda folder: with_column(folder, "answer", ["x" * (2**20 + 1)] + ["yes"] * 107),
        "samples.parquet: answer: expected texts of at most 1,048,576 bytes, found a longer one",
    ),
    "absent answer": (
        lambda folder: with_column(folder, "answer", [None] + ["yes"] * 107),
        "samples.parquet: answer: expected a value in every row, found none in 1",
    ),
    "bomb of tokens": (
        lambda folder: with_column(folder, "n_visual", [10**12] * 108),
        "samples.parquet: n_visual: expected numbers of tokens from 0 to 1,000,000, found 1,000,000,000,000 to"
        " 1,000,000,000,000",
    ),
    "bomb of layers": (
        lambda folder: with_column(folder, "keeps", ["0:0:*;999999999:0:*"] * 108),
        "samples.parquet: keeps: expected a record of kept tokens, found '0:0:*;999999999:0:*'",
    ),
    "cost that is no number": (
        lambda folder: with_column(folder, "mean_visual", [float("inf")] * 108),
        "samples.parquet: mean_visual: expected finite numbers, found another one",
    ),
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_hostile_samples_are_refused_and_the_other_cell_holds(
    good: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, expected = SAMPLE[kind]
    forged(good, lambda new: None, make(good))
    found = looked(good)
    row = of(found)
    assert row.state == REFUSED
    assert row.wrong[0].startswith(expected), row.wrong
    assert of(found, "none").state == HOLDS
    assert not (tmp_path / "ran-a-pickle").exists()


def test_a_file_that_unpacks_to_more_than_there_is_room_for_ends_its_own_process_only(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * (2**20 - 1)
    forged(good, lambda new: None, with_column(good, "answer", [text] * 108))
    assert (place(good) / SAMPLES).stat().st_size < 2**20, "100 MiB of one letter are small"
    monkeypatch.setattr(foreign, "PROBE_BYTES", 520 * 2**20)
    found = looked(good)
    assert of(found).state == REFUSED
    assert "memory" in of(found).wrong[0]
    assert of(found, "none").state == HOLDS, "the next file has a process of its own"


def test_forged_answers_scores_and_costs_are_found(good: Path, tmp_path: Path) -> None:
    def answer(frame: Any) -> None:
        frame.loc[0, "answer"] = "maybe"

    forged(good, lambda new: None, samples_with(place(good), answer))
    assert "score of pope/000000 is 1.0, but its data and its answer give 0.0" in of(looked(good)).wrong
    other = published(tmp_path / "other")

    def cost(frame: Any) -> None:
        frame["kv_bytes"] = 1.0

    forged(other, put("costs", "kv_bytes", value=1.0), samples_with(place(other), cost))
    (why,) = of(looked(other)).wrong
    assert why.startswith("pope/000000: cost kv_bytes is 1, but computed again it is ")


# -------------------------------------------------------------------------------------------------- hostile submissions


def told(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    new = json.loads((folder / NAME).read_text())
    change(new)
    (folder / NAME).write_text(json.dumps(new, indent=1) + "\n")


WHO = "expected a public name of at most 60 characters, that begins with a letter or digit"
SUBMISSIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda f: (f / NAME).unlink(), f"{NAME}: expected it beside cells/, found none: `prunebench results"),
    "empty": (lambda f: (f / NAME).write_bytes(b""), f"{NAME}: expected JSON as prunebench writes it"),
    "link": (
        lambda f: ((f / NAME).unlink(), (f / NAME).symlink_to("/etc/passwd")),
        f"{NAME}: expected a file, found a link",
    ),
    "key twice": (
        lambda f: (f / NAME).write_text('{"who": "a", "who": "b"}'),
        f"{NAME}: expected JSON as prunebench writes it, found the key 'who' twice",
    ),
    "list": (lambda f: (f / NAME).write_text("[]"), f"{NAME}: expected the keys submission_version, who"),
    "nobody": (lambda f: told(f, put("who", value="")), WHO),
    "markup": (lambda f: told(f, put("who", value="<img src=x onerror=alert(1)>")), WHO),
    "formula": (lambda f: told(f, put("who", value="=1+1")), WHO),
    "escapes": (lambda f: told(f, put("who", value="a\x1b[2J")), WHO),
    "number": (lambda f: told(f, put("who", value=7)), WHO),
    "path": (lambda f: told(f, put("who", value="../../x")), WHO),
    "version": (lambda f: told(f, put("submission_version", value=99)), f"{NAME}: expected submission_version 1"),
    "count": (lambda f: told(f, put("count", value=99)), f"{NAME}: its count is not that of its lines"),
    "identity": (
        lambda f: told(f, lambda new: new["cells"][0].update(identity="../../../../etc")),
        f"{NAME}: expected cells, a list of lines of texts, each with an identity of 16 digits",
    ),
}


@pytest.mark.parametrize("kind", SUBMISSIONS)
def test_a_hostile_submission_is_a_fault_and_none_of_its_cells_is_taken(good: Path, kind: str) -> None:
    change, expected = SUBMISSIONS[kind]
    change(good)
    found = looked(good)
    assert any(expected in why for why in found.faults), found.faults
    assert found.holding == []
    assert not found.fine


def test_cells_and_lines_of_a_submission_are_the_same(good: Path) -> None:
    told(good, lambda new: (new["cells"][0].update(device="H200"), new.update(devices=["AMD EPYC, 2 threads", "H200"])))
    found = looked(good)
    (row,) = (one for one in found.cells if one.state == REFUSED)
    assert row.wrong == (f"{NAME} says device 'H200' of it, the cell 'AMD EPYC, 2 threads'",)
    resubmitted(good)
    kept = place(good).with_name("kept")
    shutil.move(place(good), kept)
    shutil.move(kept, good.parent / "kept")
    found = looked(good)
    assert found.faults == [f"{NAME}: it lists 9cc6a3e3a72140bf, of which there is no folder (1 cells)"]
    resubmitted(good)
    shutil.move(good.parent / "kept", good / "cells" / "pope" / f"mini-{CELLS[1]}")
    assert of(looked(good)).wrong == (f"{NAME} has no line for it: publish the cells again",)


def test_nothing_is_written_into_the_folder_that_is_read(good: Path) -> None:
    def state() -> dict[str, str]:
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in good.rglob("*") if p.is_file()}

    before = state()
    looked(good)
    assert state() == before
