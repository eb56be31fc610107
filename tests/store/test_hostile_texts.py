"""Hostile texts and numbers in published folders: what they would do to a log, a table, the page or a reader."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import run
from published import forged, place, plain_parquet, published, reference, samples_with

from harness.core.errors import PrunebenchError
from harness.proof.foreign import Checker
from harness.store import probe, strict
from harness.store.collect import collect
from harness.store.foreign import HOLDS, REFUSED, opened
from harness.store.private import Private
from harness.store.publish import publication
from harness.store.sealed import SAMPLES, load
from harness.store.store import Store
from harness.store.submission import checked_who, records
from harness.tables import leaderboard

Change = Callable[[dict[str, Any]], object]
MARKUP = "[official](https://evil.example) <img src=x onerror=alert(1)>|`x`$y$"


def state(folder: Path, method: str = "visipruner") -> tuple[str, str]:
    """State of the one cell of a method in a published folder, and what is wrong with the cell."""
    with opened(folder, Checker()) as found:
        (row,) = (one for one in found.cells if f"-{method}-" in one.place)
    return row.state, "; ".join(row.wrong)


def put(*path: str, value: Any) -> Change:
    """A change that sets one value of a cell file."""

    def change(new: dict[str, Any]) -> None:
        for name in path[:-1]:
            new = new[name]
        new[path[-1]] = value

    return change


# ----------------------------------------------------------------------------------------------------- time of a reader


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "' + r"\"" * 32_000, "another text"),
        ('{"a": "' + '\\"' * 32_000 + "\\", "another text"),
        ("{" + ",".join(f'"{n}":0' for n in range(20_000)) + ',"19999":0}', "the key '19999' twice"),
        ("[" * 33 + '"' + "x" * 10**6, "more than 32 levels"),
    ],
    ids=["open text", "open text that ends in a backslash", "one key twice", "deep"],
)
def test_json_is_refused_in_time_that_grows_with_its_size(text: str, expected: str) -> None:
    begun = time.process_time()
    with pytest.raises(PrunebenchError, match=expected):
        strict.parsed(text.encode(), "x.json")
    assert time.process_time() - begun < 1.5


def test_texts_with_brackets_and_quotes_are_no_levels() -> None:
    for value in ("[" * 99, '\\"' * 9 + "{" * 99, "a\\", "\n[" * 40):
        assert strict.parsed(json.dumps([value, {"b": value}]).encode(), "x") == [value, {"b": value}]


# ----------------------------------------------------------------------------------------------------- markup in tables


def test_no_text_of_a_cell_is_markup_in_the_tables(tmp_path: Path) -> None:
    """The tables of a cell whose every free text is markup, without the checks before a table."""
    folder = published(tmp_path / "mallory")

    def change(new: dict[str, Any]) -> None:
        new["metrics"][MARKUP] = new["metrics"].pop(new["headline"])
        new["headline"] = new["interval"]["metric"] = MARKUP
        new["cell"]["model"] = MARKUP.replace("/", "")
        for name in ("unproven", "device", "kernels", "model_source", "git", "origin"):
            new["provenance"][name] = MARKUP
        new["provenance"]["request"] |= {"data": MARKUP, "prompt": MARKUP}

    cell = load(forged(folder, change))
    unpruned = load(place(folder, "none"))
    for cells in ([cell], [cell, unpruned]):
        _, markdown = leaderboard.write(cells, tmp_path / f"tables{len(cells)}")
        # a block of code holds commands as they are typed, and nothing in one is markup
        text = re.sub(r"```.*?```", "", markdown.read_text(), flags=re.DOTALL)
        assert "official" in text
        assert "<img" not in text
        assert not re.search(r"(?<!\\)\]\(https://evil", text)
        assert "Not proven against official code on" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("provenance", "unproven", value=MARKUP), "provenance/unproven: a name of at most 80 letters"),
        (put("provenance", "unproven", value="Lla\u200bva"), "provenance/unproven: a name of at most 80"),
        (put("metrics", MARKUP, value=0.5), "metrics: a name of at most 80 letters"),
        (put("headline", value=MARKUP), "headline: a name of at most 80 letters"),
        (put("metrics", "x", value=1e30), "metrics/x: a number up to 1e+21"),
        (put("metrics", "x", value=5e12), "metrics/x: a number up to 1e12"),  # one's own cell may have this one
        (put("maximum", value=-1e300), "maximum: a number up to 1e+21"),
        (put("maximum", value=5e12), "maximum: a number up to 1e12"),
        (put("answering_wall_s", value=-5.0), "answering_wall_s: seconds"),
        (put("provenance", "wall_s", value=-1e300), "provenance/wall_s: seconds"),
        (put("provenance", "batch_size", value="</script>"), "provenance/batch_size: 1 to 1,000,000"),
        (put("provenance", "dirty", value=0), "provenance/dirty: true or false"),
        (put("provenance", "zzz", value={}), "provenance of the keys that prunebench writes, found ['zzz']"),
        (put("provenance", "published", value=5), "provenance/published: checksum, a hash, and rewrote"),
        (put("provenance", "published", value={"checksum": ["x"], "rewrote": {"a": 1}}), "provenance/published: check"),
        (put("provenance", "device", value="A" * 3_000_000), "provenance/device: at most 1,000 characters, found 3000"),
        (put("costs", "prefill_dense_flops", value=1e306), "costs/prefill_dense_flops: a cost from 0 to 1e+21"),
        (put("costs", "prefill_dense_flops", value=-1e30), "costs/prefill_dense_flops: a cost from 0 to 1e+21"),
        (put("costs", "exit_layer", value=-2.0), "costs/exit_layer: a cost from -1 to 1e+21"),
    ],
)
def test_a_word_or_number_that_no_store_writes_is_refused(tmp_path: Path, change: Change, expected: str) -> None:
    folder = published(tmp_path / "mallory", "Mallory")
    forged(folder, change)
    found, wrong = state(folder)
    assert found == REFUSED
    assert expected in wrong


@pytest.mark.parametrize("value", [1e306, -1e30, -0.5])
def test_costs_of_samples_are_bounded(tmp_path: Path, value: float) -> None:
    folder = published(tmp_path / "mallory", "Mallory")
    samples = samples_with(place(folder), lambda frame: frame.assign(my_flops=value))
    forged(folder, lambda new: None, samples)
    found, wrong = state(folder)
    assert found == REFUSED
    assert "my_flops: expected numbers from 0 to 1e+21" in wrong


def test_a_cell_of_an_import_and_one_published_before_have_their_words(tmp_path: Path) -> None:
    folder = published(tmp_path / "alice")

    def change(new: dict[str, Any]) -> None:
        new["provenance"] |= {
            "origin": "imported from a run of lmms-eval",
            "imported": {"task": "pope", "date": "2026-11-30"},
            "published": {"checksum": "0" * 64, "rewrote": ["device"]},
            "unproven": "LlavaForConditionalGeneration",
        }

    forged(folder, change)
    assert state(folder)[0] == HOLDS


def test_a_layer_that_there_is_none_of_is_a_cost(tmp_path: Path) -> None:
    samples = tmp_path / SAMPLES
    one = reference()
    for name, fine in (("exit_layer", True), ("kv_bytes", False)):
        samples.write_bytes(samples_with(one.folder, lambda frame, name=name: frame.assign(**{name: -1.0})))
        assert (probe.fault(samples, one.cell.n_samples) == "") is fine


# ------------------------------------------------------------------------------------------------ what publish removes

NOBODY = Private(())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((f"{top}/bob", "removed") for top in ("/home", "/Users", "/scratch", "/mnt/c/Users", "/gpfs", "/HOME")),
        ("C:\\Users\\bob", "removed"),
        ("/home/bob/", "removed"),
        ("~bob", "removed"),
        ("/home/bob smith/data", "data"),
        ("in /home/bob smith", "in removed"),
        ("C:\\Users\\Bob Smith\\data", "data"),
        ("//nas01/bob/x", "x"),
        ("-I/home/bob/inc", "inc"),
        ("-L/opt/bob/lib", "-Llib"),
        ("FILE:///home/bob/x", "x"),
        ("bob@corp.example", "removed"),
        ("GPU of bob@gpu01, 80 GB", "GPU of removed, 80 GB"),
        ("https://host.internal/home/bob/x", "x"),
        ("../../home/bob/x", "x"),
        ("./home/bob", "removed"),
        ("/\u00e9/bob/x", "x"),
        ("/1data/bob/x", "x"),
    ],
)
def test_names_of_users_in_paths_of_any_machine_are_removed(text: str, expected: str) -> None:
    assert NOBODY.found(text)
    short = NOBODY.without(text)
    assert short == expected
    assert NOBODY.found(short) is None


@pytest.mark.parametrize(
    "text", ["recall@5", "a/b", "org/model", "https://example.org/a/b", "~5 tokens", "24/7", "AVX512", "2 x 24 // 3"]
)
def test_words_that_name_nobody_stay(text: str) -> None:
    assert NOBODY.found(text) is None
    assert NOBODY.without(text) == text


def test_questions_may_hold_addresses(tmp_path: Path) -> None:
    samples = samples_with(reference().folder, lambda frame: frame.assign(question="Who is bob@corp.example?"))
    folder = published(tmp_path / "r")
    forged(folder, lambda new: None, samples)
    cells = [load(place(folder))]
    assert publication(cells, "Alice", NOBODY).cells == 1
    with pytest.raises(PrunebenchError, match=r"question of .* found 'bob'"):
        publication(cells, "Alice", Private(("bob",)))


def test_data_in_a_home_name_nobody_in_the_command(tmp_path: Path) -> None:
    folder = published(tmp_path / "r")
    forged(folder, put("provenance", "request", "data", value="/home/bob"))
    made = publication([load(place(folder))], "Alice", NOBODY)
    assert not [name for name, data in made.files.items() if name.endswith(".json") and b"bob" in data]


@pytest.mark.parametrize("mark", [5, {"checksum": ["x"], "rewrote": {"a": 1}}])
def test_a_mark_of_publishing_that_is_none_is_one_line(tmp_path: Path, mark: Any) -> None:
    folder = published(tmp_path / "r")
    forged(folder, put("provenance", "published", value=mark))
    with pytest.raises(PrunebenchError, match="provenance/published: checksum, a hash"):
        publication([load(place(folder))], "Alice", Private(("AMD",)))


# ------------------------------------------------------------------------------------------------------ names in a log


@pytest.mark.parametrize("word", ["##[add-mask]not checked", "a b", "l\u043bava", "$(id)", "'x'", "a;b", "::x::", "-x"])
def test_a_name_that_a_log_or_a_shell_reads_is_refused(tmp_path: Path, word: str) -> None:
    def model(new: dict[str, Any]) -> None:
        new["cell"]["model"] = new["provenance"]["request"]["model"] = word

    for number, change in enumerate((model, put("provenance", "request", "data", value=word))):
        folder = published(tmp_path / str(number), "Mallory")
        cell = load(forged(folder, change))
        found, wrong = state(folder)
        assert found == REFUSED
        assert "expected a name, no path" in wrong
        if change is model:
            with pytest.raises(PrunebenchError, match="expected a model's name of at most 96 letters"):
                publication([cell], "Alice", NOBODY)


# --------------------------------------------------------------------------------------------------------- who measured


@pytest.mark.parametrize(
    "who", ["Alice\u3164", "A\u115flice", "Alice\ufe0f", "Ali\u1160ce", "Alice\uffa0", "Zoe\u0308", "A  B", "A\u034fb"]
)
def test_a_name_that_looks_like_another_is_refused(who: str) -> None:
    with pytest.raises(PrunebenchError, match="expected a public name"):
        checked_who(who)


def test_a_copy_whose_samples_are_encoded_anew_is_no_reproduction(tmp_path: Path) -> None:
    folder = published(tmp_path / "copy", "Mallory")
    cell = place(folder)
    table = pq.read_table(pa.BufferReader((cell / SAMPLES).read_bytes()))
    again = plain_parquet(table, compression="snappy", store_schema=False)
    assert again != (cell / SAMPLES).read_bytes()
    forged(folder, lambda new: None, again)
    root = tmp_path / "r"
    _, done = collect([published(tmp_path / "alice"), folder], root, Checker())
    assert done.reproduced == 0
    assert any("found a copy of the cell that Alice Lab measured" in why for why in done.left)
    known = records(root)
    (here,) = (one for one in Store(root).cells() if one.cell.method == "visipruner")
    assert known.origin(here).reproduced == ()


# ------------------------------------------------------------------------------------------ one hostile cell among many


def test_a_hostile_cell_beside_honest_ones_of_its_section_leaves_them_tables_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds is collected, and the page is made of it afterwards, whatever one cell says."""
    folder, root = published(tmp_path / "mallory", "Mallory"), tmp_path / "r"
    forged(folder, lambda new: new["costs"].update(prefill_dense_flops=1e306))
    (folder / "evil.py").write_text("")
    code, out, _ = run(capsys, monkeypatch, "results", "verify", "--foreign", str(folder))
    assert code == 1
    assert "\n  fault         evil.py: expected" in out
    code, out, err = run(capsys, monkeypatch, "results", "collect", str(folder), "--into", str(root))
    assert code == 1
    assert "costs/prefill_dense_flops" in err
    assert "1 cells copied" in out
    assert run(capsys, monkeypatch, "report", "--results", str(root), "--out", str(tmp_path / "q.html"))[0] == 0
    assert "visipruner" not in (root / "LEADERBOARD.md").read_text()
