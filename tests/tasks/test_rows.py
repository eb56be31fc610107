"""Rows and files: whatever is wrong with a column, a row or a file is one line that names it, before anything runs."""

from __future__ import annotations

import contextlib
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from taskdata import COLUMNS, GREY, IMAGE, Change, changed, not_utf8, path_of, rows, with_value, write

from harness.core.errors import PrunebenchError
from tasks import sources
from tasks.columns import Kind


def of_kind(*kinds: Kind) -> list[tuple[str, str]]:
    """(task, column) of all columns of these kinds."""
    return [(task, column) for task, columns in COLUMNS.items() for column, kind in columns.items() if kind in kinds]


TEXTS, NAMES, LISTS = of_kind(Kind.TEXT, Kind.YES_NO), of_kind(Kind.NAME), of_kind(Kind.ANSWERS, Kind.WORDS)
PICTURES = [(task, "image") for task in ("mme", "pope", "textvqa")]


def refusal(task: str, source: sources.DataSource) -> str:
    with pytest.raises(PrunebenchError) as caught:
        sources.read(sources.task_spec(task), source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(f"task {task}: ")
    assert "copy the data set again" in message, "it says what to do"
    return message


#: columns of other types, six rows each
OTHERS = {
    "integers": pa.array(range(6)),
    "floats": pa.array([0.5] * 6),
    "booleans": pa.array([True] * 6),
    "bytes": pa.array([b"yes"] * 6),
    "large bytes": pa.array([b"yes"] * 6, pa.large_binary()),
    "fixed bytes": pa.array([b"yes"] * 6, pa.binary(3)),
    "lists of numbers": pa.array([[1]] * 6),
    "lists of lists": pa.array([[["yes"]]] * 6),
    "structs": pa.array([{"text": "yes"}] * 6),
    "times": pa.array([datetime(2026, 1, 1)] * 6),
    "dates": pa.array([datetime(2026, 1, 1).date()] * 6),
    "decimals": pa.array([1, 2, 3, 4, 5, 6]).cast(pa.decimal128(25, 2)),
    "maps": pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64())),
    "numbers in a dictionary": pa.array([0.5] * 6).dictionary_encode(),
    "nulls": pa.nulls(6),
    "nulls in a text": pa.nulls(6, pa.string()),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("task", "column"), TEXTS + NAMES + LISTS + PICTURES)
def test_a_column_of_another_type_is_named(task: str, column: str, other: str, tmp_path: Path) -> None:
    if (other == "integers" and (task, column) in NAMES) or ("nulls" in other and column == "image"):
        pytest.skip("integers are names; images that are missing are named where they are asked for")
    source = write(tmp_path, task, [changed(rows(task), column, OTHERS[other])])
    message = refusal(task, source)
    assert f"column {column}" in message
    if other == "nulls":
        assert "row 0 of " in message
        assert "found null" in message
    elif other != "nulls in a text":
        kept = pq.ParquetFile(path_of(tmp_path, task)).schema_arrow.field(column).type  # parquet renames items of lists
        assert f" is {kept}: expected " in message


@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize("value", [None, "", "  ", "\t\n", "\u200b"])
@pytest.mark.parametrize(("task", "column"), TEXTS + NAMES)
def test_a_row_without_a_value_is_named(task: str, column: str, value: str | None, row: int, tmp_path: Path) -> None:
    if value is not None and rows(task).schema.field(column).type == pa.int32():
        pytest.skip("a number is not blank")
    message = refusal(task, write(tmp_path, task, [with_value(rows(task), row, column, value)]))
    assert f"row {row} of " in message
    assert f"column {column}: expected " in message
    assert f"found {'null' if value is None else repr(value)}" in message
    assert f"{task}/{row:06d}" in message


@pytest.mark.parametrize("value", [None, [], ["a", None], [None], [""] * 9, ["stop"] * 3, ["a", "b", None, "c"]])
def test_annotators_answers_are_whole_lists(value: Any, tmp_path: Path) -> None:
    for name in ("textvqa", "textvqa_ocr"):
        source = write(tmp_path / name, "textvqa", [with_value(rows("textvqa"), 3, "answers", value)])
        assert "column answers: expected a list of at least 4 texts" in refusal(name, source)


def test_words_may_be_none_but_not_null(tmp_path: Path) -> None:
    for value in (None, ["a", None]):
        source = write(tmp_path, "textvqa", [with_value(rows("textvqa"), 1, "ocr_tokens", value)])
        assert "row 1 of " in refusal("textvqa", source)
    for value in ([], [""]):
        source = write(tmp_path, "textvqa", [with_value(rows("textvqa"), 1, "ocr_tokens", value)])
        assert sources.read(sources.TASKS["textvqa"], source).docs[1]["ocr_tokens"] == value


NO_TEXT = [b"\xff\xfe", b"\xed\xa0\x80", b"ok\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", "f\u00fcr".encode("latin-1")]


@pytest.mark.parametrize("value", NO_TEXT)
@pytest.mark.parametrize(("task", "column"), [pair for pair in TEXTS + NAMES if pair != ("textvqa", "question_id")])
def test_bytes_that_are_no_text_are_named(task: str, column: str, value: bytes, tmp_path: Path) -> None:
    message = refusal(task, write(tmp_path, task, [not_utf8(rows(task), column, 2, value)]))
    assert "row 2 of " in message
    assert f"column {column}" in message
    assert "bytes that are not UTF-8" in message


def test_bytes_that_are_no_text_inside_a_list_are_named(tmp_path: Path) -> None:
    flat = pa.Array.from_buffers(
        pa.string(), 24, pa.array([b"a"] * 13 + [b"\xff"] + [b"a"] * 10, pa.binary()).buffers()
    )
    answers = pa.ListArray.from_arrays(pa.array(range(0, 25, 4), pa.int32()), flat)
    message = refusal("textvqa", write(tmp_path, "textvqa", [changed(rows("textvqa"), "answers", answers)]))
    assert "row 3 of " in message


@pytest.mark.parametrize("value", ["maybe", "yes.", "y", "0", "true", "yes or no", "ja", "none"])
@pytest.mark.parametrize("task", ["mme", "pope"])
def test_answers_are_yes_or_no(task: str, value: str, tmp_path: Path) -> None:
    message = refusal(task, write(tmp_path, task, [with_value(rows(task), 5, "answer", value)]))
    assert "row 5 of " in message
    assert f"column answer: expected yes or no, found {value!r}" in message


@pytest.mark.parametrize("value", ["Yes", " no ", "NO\n"])
def test_answers_are_read_as_upstream_reads_them(value: str, tmp_path: Path) -> None:
    source = write(tmp_path, "pope", [with_value(rows("pope"), 5, "answer", value)])
    assert sources.read(sources.TASKS["pope"], source).docs[5]["answer"] == value


def repeated(task: str, row: int) -> Change:
    return lambda table: pa.concat_tables([table, table.slice(row, 2)])


@pytest.mark.parametrize(("task", "column"), [("gqa", "id"), ("pope", "question_id"), ("textvqa", "question_id")])
def test_a_question_that_is_there_twice_is_named(task: str, column: str, tmp_path: Path) -> None:
    message = refusal(task, write(tmp_path, task, [repeated(task, 2)(rows(task))]))
    assert "row 2 of " in message
    assert "and row 6 of " in message
    assert column in message
    # two files of the same rows, as two downloads of one data set
    assert "00001-of-00002.parquet have the same" in refusal(
        task, write(tmp_path / "b", task, [rows(task), rows(task)])
    )


def test_subsets_of_pope_number_their_questions_alike(tmp_path: Path) -> None:
    table = changed(rows("pope"), "question_id", pa.array(["1", "1", "1", "2", "2", "2"]))
    assert len(sources.read(sources.TASKS["pope"], write(tmp_path, "pope", [table])).docs) == 6


@pytest.mark.parametrize("n", [1, 3, 4])
def test_mme_asks_two_questions_of_an_image(n: int, tmp_path: Path) -> None:
    names = ["a/0"] * n + [f"a/{1 + i // 2}" for i in range(6 - n)] if n != 4 else ["a/0"] * 4 + ["a/1"] * 2
    message = refusal("mme", write(tmp_path, "mme", [changed(rows("mme"), "question_id", pa.array(names))]))
    assert f"'a/0' (existence) has {n} row(s): expected a pair" in message


@pytest.mark.parametrize("missing", ["question_id", "image", "question", "answer", "category"])
def test_a_missing_column_is_named(missing: str, tmp_path: Path) -> None:
    message = refusal("mme", write(tmp_path, "mme", [rows("mme").drop_columns([missing])]))
    assert f"lacks the column(s) {missing}: expected question_id" in message


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = rows("pope").append_column("question", pa.array(["?"] * 6))
    assert "has 2 columns question: expected one" in refusal("pope", write(tmp_path, "pope", [table]))


def test_images_of_gqa_are_checked_as_well(tmp_path: Path) -> None:
    def images(names: Any) -> pa.Table:
        return pa.table({"id": names, "image": pa.array([{"bytes": GREY, "path": "a"}] * len(names), IMAGE)})

    for names, found in (
        (pa.array(["i", None]), "row 1 of"),
        (pa.array([0.5]), "column id"),
        (["i", "j", "i"], "row 0 of"),
        (["j"], "name an image that is not among"),
    ):
        source = write(tmp_path, "gqa", [rows("gqa")], images(names))
        with pytest.raises(PrunebenchError, match=f"task gqa: .*{found}"):
            sources.read(sources.TASKS["gqa"], source)
    numbers = changed(rows("gqa"), "imageId", pa.array([7] * 6))
    assert len(sources.read(sources.TASKS["gqa"], write(tmp_path, "gqa", [numbers], images(["7"]))).docs) == 6


@pytest.mark.parametrize(
    ("types", "ok"),
    [
        (pa.array([{"semantic": "rel"}] * 6), True),
        (pa.array([{"semantic": "rel", "structural": 1}, None] * 3), True),
        (pa.array([{"semantic": None}] * 6), True),
        (pa.array(["rel"] * 6), False),
        (pa.array([{"semantic": 1}] * 6), False),
        (pa.array([{"detailed": "x"}] * 6), False),
    ],
)
def test_the_kind_of_a_gqa_question_is_a_struct(types: pa.Array, ok: bool, tmp_path: Path) -> None:
    source = write(tmp_path, "gqa", [rows("gqa").append_column("types", types)])
    if ok:
        assert sources.read(sources.TASKS["gqa"], source).docs.column_names[-1] == "types"
    else:
        assert "column types" in refusal("gqa", source)


# --------------------------------------------------------------------------------------------------------------- shards

TEXT_TYPES = [pa.string(), pa.large_string()]
AS = {
    "string": lambda a: a.cast(pa.string()),
    "large": lambda a: a.cast(pa.large_string()),
    "view": lambda a: a.cast(pa.string_view()),
    "dictionary": lambda a: a.cast(pa.string()).dictionary_encode(),
    "large dictionary": lambda a: a.cast(pa.large_string()).dictionary_encode(),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shards_are_read_by_meaning(data: st.DataObject, tmp_path: Path) -> None:
    """Any way of storing text and numbers, any order of columns, further columns: the same rows."""
    shutil.rmtree(tmp_path / "d", ignore_errors=True)
    task = data.draw(st.sampled_from(["gqa", "mme", "pope", "textvqa"]))
    whole = rows(task, 12)
    shards = []
    for start in range(0, 12, 4):
        part = whole.slice(start, 4)
        for column, kind in COLUMNS[task].items():
            if column not in part.column_names:
                continue
            if kind in (Kind.TEXT, Kind.YES_NO) or (
                kind is Kind.NAME and part.schema.field(column).type == pa.string()
            ):
                how = data.draw(st.sampled_from(sorted(AS)))
                part = changed(part, column, AS[how](part[column].combine_chunks()))
            elif kind is Kind.NAME:
                to = data.draw(st.sampled_from([pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64()]))
                part = changed(part, column, part[column].cast(to))
            elif kind in (Kind.ANSWERS, Kind.WORDS):
                to = data.draw(
                    st.sampled_from([pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.large_string())])
                )
                part = changed(part, column, part[column].cast(to))
            elif kind is Kind.IMAGE:
                to = data.draw(st.sampled_from([pa.binary(), pa.large_binary()]))
                part = changed(part, column, part[column].cast(pa.struct([("bytes", to), ("path", pa.string())])))
        if data.draw(st.booleans()):
            part = part.append_column("extra", pa.array([1, 2, 3, 4]))
        shards.append(part.select(data.draw(st.permutations(part.column_names))))
    if data.draw(st.booleans()):
        shards.insert(1, whole.slice(0, 0))
    found = sources.read(sources.TASKS[task], write(tmp_path / "d", task, shards))
    plain = sources.read(sources.TASKS[task], write(tmp_path / "e", task, [whole]))
    assert found.docs.to_list() == plain.docs.to_list()
    assert [found.encoded(i) for i in range(12)] == [plain.encoded(i) for i in range(12)]


@pytest.mark.parametrize("types", [{"question": pa.large_string()}, {"answer": pa.string()}])
def test_two_writers_make_one_table(types: dict[str, pa.DataType], tmp_path: Path) -> None:
    """As pandas 3 writes one file and pyarrow the other, one of them with its columns turned round."""
    whole = rows("mme", 8)
    first, second = whole.slice(0, 4), whole.slice(4, 4)
    for column, to in types.items():
        second = changed(second, column, second[column].cast(to))
    found = sources.read(sources.TASKS["mme"], write(tmp_path, "mme", [first, second.select(whole.column_names[::-1])]))
    assert found.docs.to_list() == whole.drop_columns(["image"]).to_pylist()
    assert [found.encoded(i) for i in range(8)] == [{"bytes": GREY, "path": None}] * 8


DIFFERENT = {
    "a number": pa.array(range(6)),
    "a share": pa.array([0.5] * 6),
    "bytes": pa.array([b"x"] * 6),
    "a list": pa.array([["x"]] * 6),
    "a struct": pa.array([{"x": "y"}] * 6),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("other", DIFFERENT)
@pytest.mark.parametrize("column", ["question_id", "question", "answer", "category", "image_source"])
def test_shards_that_differ_in_meaning_are_named(column: str, other: str, turned: bool, tmp_path: Path) -> None:
    shards = [rows("pope"), changed(rows("pope"), column, DIFFERENT[other])]
    message = refusal("pope", write(tmp_path, "pope", shards[::-1] if turned else shards))
    assert f"column {column} is " in message
    assert "test-00000-of-00002.parquet and " in message
    assert "test-00001-of-00002.parquet: expected the same in every file" in message
    assert " string in " in message
    assert f" {str(DIFFERENT[other].type).partition('<')[0]}" in message


def test_lists_that_are_all_empty_are_lists_of_texts(tmp_path: Path) -> None:
    bare = changed(rows("textvqa", 2), "ocr_tokens", pa.array([[], []]))
    bare = changed(bare, "question_id", pa.array([7, 8]))
    assert len(sources.read(sources.TASKS["textvqa"], write(tmp_path, "textvqa", [rows("textvqa"), bare])).docs) == 8


def test_a_row_is_counted_in_its_own_file(tmp_path: Path) -> None:
    other = with_value(changed(rows("pope"), "question_id", pa.array([f"s{i}" for i in range(6)])), 2, "question", None)
    message = refusal("pope", write(tmp_path, "pope", [rows("pope"), other]))
    assert "row 2 of " in message
    assert "test-00001-of-00002.parquet (pope/000008, question_id 's2')" in message


# ---------------------------------------------------------------------------------------------------------------- files


def dangling(path: Path) -> None:
    path.symlink_to("/nonexistent/blob")


def looping(path: Path) -> None:
    path.symlink_to(path)


def in_a_ring(path: Path) -> None:
    other = path.with_name("other")
    other.symlink_to(path)
    path.symlink_to(other)


def through_a_file(path: Path) -> None:
    path.with_name("file").write_text("x")
    path.symlink_to(path.with_name("file") / "blob")


FILES = {
    "a link to nothing": dangling,
    "a link to itself": looping,
    "links in a ring": in_a_ring,
    "a link through a file": through_a_file,
    "a link to a folder": lambda path: path.symlink_to(path.parent),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a folder with a file": lambda path: (path.mkdir(), pq.write_table(rows("pope"), path / "part.parquet")),
    "a pipe": os.mkfifo,
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
    "magic alone": lambda path: path.write_bytes(b"PAR1"),
    "magic twice": lambda path: path.write_bytes(b"PAR1PAR1"),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a wrong length": lambda path: path.write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1"),
    "no footer": lambda path: (pq.write_table(rows("pope"), path), path.write_bytes(path.read_bytes()[:-8])),
    "no head": lambda path: (pq.write_table(rows("pope"), path), path.write_bytes(path.read_bytes()[4000:])),
    "zeros inside": lambda path: (
        pq.write_table(rows("pope"), path, compression="none"),
        path.write_bytes((data := path.read_bytes())[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :]),
    ),
    "csv": lambda path: path.write_text("question,answer\nred?,yes\n"),
    "a key file of encryption": lambda path: path.write_bytes(b"PARE" + bytes(64) + b"PARE"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_none_is_named(what: str, tmp_path: Path) -> None:
    path = path_of(tmp_path, "pope")
    FILES[what](path)
    message = refusal("pope", sources.DataSource("local", tmp_path))
    assert f"{path} " in message
    assert "cannot be read as parquet: " in message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1 << 20), flip=st.integers(1, 255))
def test_a_flipped_byte_ends_in_no_traceback(at: int, flip: int, tmp_path: Path) -> None:
    path = path_of(tmp_path, "pope")
    pq.write_table(rows("pope"), path)
    data = bytearray(path.read_bytes())
    data[-1 - at % min(len(data), 3000)] ^= flip  # the footer, where the types are
    path.write_bytes(data)
    with contextlib.suppress(PrunebenchError):
        sources.read(sources.TASKS["pope"], sources.DataSource("local", tmp_path))


def test_a_file_one_may_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, "pope", [rows("pope")])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)  # the tests may run as root, who may read everything
    assert "Permission denied" in refusal("pope", source)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["-00000-of-00002"], "holds 1 of 2 files, number 00001 is missing"),
        (["-00001-of-00003", "-00002-of-00003"], "holds 2 of 3 files, number 00000 is missing"),
        (["-00000-of-00001", "-00000-of-00002", "-00001-of-00002"], "files of more than one set"),
        (["-00000-of-00001", "-old"], "files of more than one set"),
    ],
)
def test_files_that_count_themselves_are_all_there(names: list[str], expected: str, tmp_path: Path) -> None:
    for i, name in enumerate(names):
        table = changed(rows("pope"), "question_id", pa.array([f"{i}{k}" for k in range(6)]))
        pq.write_table(table, path_of(tmp_path, "pope", name))
    assert expected in refusal("pope", sources.DataSource("local", tmp_path))


def test_names_of_folders_become_no_columns(tmp_path: Path) -> None:
    source = write(tmp_path / "question=3" / "split=x", "pope", [rows("pope")])
    assert sources.read(sources.TASKS["pope"], source).docs[1]["question"] == "Is there star 1 in the image?"


@pytest.mark.parametrize("task", COLUMNS)
def test_no_rows_are_named(task: str, tmp_path: Path) -> None:
    assert "expected rows in " in refusal(task, write(tmp_path, task, [rows(task).slice(0, 0)]))


@pytest.mark.parametrize(("task", "column"), [("pope", "question"), ("mme", "answer"), ("textvqa", "answers")])
def test_rows_of_the_hub_are_checked_alike(
    task: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    table = with_value(rows(task), 4, column, None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(table))
    with pytest.raises(PrunebenchError, match=rf"row 4 of lmms-lab-encoder/.*, column {column}: .*found null"):
        sources.read(sources.TASKS[task], sources.DataSource.parse("hub"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(rows(task)))
    found = sources.read(sources.TASKS[task], sources.DataSource.parse("hub"))
    assert found.encoded(2) == {"bytes": GREY, "path": "a.png"}


@pytest.mark.parametrize("text", ["/" + "y" * 300, "~nobody-of-that-name/x", "/dev/null", "/nonexistent/\0"])
def test_a_folder_that_cannot_be_is_named(text: str) -> None:
    with pytest.raises(PrunebenchError, match=r"expected `mini`, `mini-qwen`, `hub` or a folder .* found no such"):
        sources.DataSource.parse(text)


def test_folders_may_have_any_name(tmp_path: Path) -> None:
    for name in ("a b 'c'", "\udcff", "s3:x", "50%"):
        folder = tmp_path / name
        path = path_of(folder, "pope")
        with path.open("wb") as file:
            pq.write_table(rows("pope"), file)
        assert len(sources.read(sources.TASKS["pope"], sources.DataSource.parse(str(folder))).docs) == 6
