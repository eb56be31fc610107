"""`prunebench results`: whatever was changed after measuring is found, and one damaged cell hides no other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import PROCESSING, TASK_SETTINGS, asked, keys, make_cell, make_record, sealed
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import PrunebenchError
from harness.store import files
from harness.store.store import Store
from harness.store.verify import verify

PROVENANCE = {
    **{
        "request": asked(),
        "processing": PROCESSING,
        "task_settings": TASK_SETTINGS,
        "started": "2026-01-01",
        "wall_s": 1.0,
        "device": "cpu",
        "git": "abc",
        "dirty": False,
        "revision": None,
    },
    "decoder_layers": 12,
    "grids": [[24, 24, False]],
    "versions": {"prunebench": "0", "torch": "0", "transformers": "0", "lmms-eval": "0"},
}


def measure(root, **changes):
    request = asked(seed=changes.get("seed", 0))
    info = {"query_aware": True, "needs_vision_attention": False, "adaptive": False, "budget_knobs": ["keep"]}
    return sealed(Store(root), make_cell(**changes), provenance={**PROVENANCE, "request": request}, method_info=info)


@pytest.fixture
def results(tmp_path):
    """Two sealed cells; tests damage the first."""
    measure(tmp_path)
    measure(tmp_path, seed=1)
    return tmp_path


def first(results):
    """The first sealed cell's folder."""
    return sorted(results.glob("cells/*/*/cell.json"))[0].parent


def resign(folder, change):
    """Edit cell.json and its checksum: a forger who knows the format."""
    path = folder / "cell.json"
    body = json.loads(path.read_text())
    body.pop("checksum")
    change(body)
    path.write_text(json.dumps({**body, "checksum": files.checksum(body)}))


def rewrite(folder, change):
    """Edit the samples, and their hash in cell.json."""
    path = folder / "samples.parquet"
    pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist())), path)
    resign(folder, lambda body: body.update(samples_sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def test_whole_and_unfinished_cells_are_in_order(results):
    store = Store(results)
    with store.open(make_cell(seed=2), keys(4)) as writer:
        writer.append(make_record(0), make_record(1))
        with (writer.folder / "journal.jsonl").open("ab") as file:
            file.write(b'{"torn')
    (store.folder(make_cell(seed=2)) / ".cell.json.1.tmp").write_text("killed in the middle of a seal")
    store.folder(make_cell(seed=3)).mkdir()
    (first(results) / "journal.jsonl").write_text("killed between sealing and tidying")
    lines, fine = verify(results)
    assert fine
    assert len(lines) == 3
    assert lines[-1] == "2 cells sealed and whole, 2 unfinished (2 answers), 0 wrong"
    assert sorted(line.split(": ")[1][:9] for line in lines[:2]) == ["0 answers", "2 answers"]
    listed = CliRunner().invoke(app, ["results", "list", "--results", str(results)])
    assert listed.exit_code == 0
    assert sum(line.startswith("unfinished") for line in listed.output.splitlines()) == 2
    assert listed.output.splitlines()[-1] == "2 sealed, 2 unfinished, 0 damaged"


def flip(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a changed digit": (
        lambda f: (f / "cell.json").write_text((f / "cell.json").read_text().replace('"answered": 4', '"answered": 5')),
        "edited",
    ),
    "half a cell file": (
        lambda f: (f / "cell.json").write_bytes((f / "cell.json").read_bytes()[:99]),
        "not a cell file",
    ),
    "a version 1 cell": (
        lambda f: resign(f, lambda b: b.update(schema_version=1)),
        "expected schema and key version 5 and 2, found 1 and 2",
    ),
    "a key of no meaning": (lambda f: resign(f, lambda b: b.update(method="fastv")), "expected no key 'method'"),
    "a pipe": (lambda f: (os.remove(f / "cell.json"), os.mkfifo(f / "cell.json")), "expected a file"),
    "a pipe for samples": (
        lambda f: (os.remove(f / "samples.parquet"), os.mkfifo(f / "samples.parquet")),
        "expected a file",
    ),
    "a folder": (lambda f: (os.remove(f / "cell.json"), (f / "cell.json").mkdir()), "expected a file"),
    "deep brackets": (lambda f: (f / "cell.json").write_text("[" * 100_000 + "]" * 100_000), "not a cell file"),
    "a flipped bit": (lambda f: flip(f / "samples.parquet"), "expected sha256"),
    "no samples": (lambda f: (f / "samples.parquet").unlink(), "missing beside cell.json"),
    "a renamed folder": (
        lambda f: f.rename(f.with_name("x-" + f.name)),
        "expected the folder's name to be org_tiny-fastv-64-",
    ),
    "another cell's folder": (lambda f: f.rename(f.with_name(f.name[:-1] + "x")), "identity"),
    "a stray file": (lambda f: (f / "notes.txt").write_text(""), "notes.txt does not belong to a cell"),
    "another metric": (lambda f: resign(f, lambda b: b["metrics"].update(pope_accuracy=0.75)), "scores add up to 0.5"),
    "no metric": (lambda f: resign(f, lambda b: b["metrics"].clear()), "has no value"),
    "another maximum": (lambda f: resign(f, lambda b: b.update(maximum=2.0)), "the samples allow 1.0"),
    "another interval": (
        lambda f: resign(f, lambda b: b["interval"].update(n_clusters=4)),
        "the 2 images of the samples give",
    ),
    "another cost": (
        lambda f: resign(f, lambda b: b["costs"].update(kv_bytes=1536.5)),
        "cost kv_bytes is 1536.5, but its column's mean is 1536.0",
    ),
    "another count": (
        lambda f: resign(f, lambda b: b["counts"].update(expected=5)),
        "expected 4 samples, .*'expected': 5",
    ),
    "a lost sample": (lambda f: rewrite(f, lambda rows: rows[:2]), "expected 2 samples"),
    "a repeated sample": (
        lambda f: rewrite(f, lambda rows: [*rows[:3], {**rows[3], "key": rows[0]["key"]}]),
        "'keys': 3",
    ),
    "another score": (
        lambda f: rewrite(f, lambda rows: [{**rows[0], "score": 1.0}, *rows[1:]]),
        "scores add up to 0.75",
    ),
    "a lost column": (
        lambda f: rewrite(f, lambda rows: [r | {"kv": r.pop("kv_bytes")} for r in rows]),
        "lacks the columns kv_bytes",
    ),
    "not Parquet": (
        lambda f: (
            (f / "samples.parquet").write_text("x"),
            resign(f, lambda b: b.update(samples_sha256=hashlib.sha256(b"x").hexdigest())),
        ),
        "cannot be read",
    ),
    "no git": (
        lambda f: resign(f, lambda b: (b["provenance"].pop("git"), b["provenance"]["versions"].pop("torch"))),
        "git, versions/torch",
    ),
    "a file in the wrong place": (lambda f: (f.parent / "cell.json").write_text("{}"), "belongs to no cell"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_the_other_cell_still_counted(results, what):
    damage, message = DAMAGE[what]
    damage(first(results))
    done = CliRunner().invoke(app, ["results", "verify", "--results", str(results)])
    assert done.exit_code == 1
    found = [line for line in done.output.splitlines() if line.startswith("WRONG")]
    assert any(re.search(message, line) for line in found), found
    assert len({line.split(": ")[0] for line in found}) == 1, "one folder is wrong"
    assert done.output.splitlines()[-1].startswith(
        "2 cells sealed" if what == "a file in the wrong place" else "1 cells sealed"
    )


def test_a_kept_text_that_cannot_be_read_is_found(tmp_path):
    cost = {"n_visual": 24, "kept": 8, "mean_visual": 8 + 16 * 2 / 12}
    records = [make_record(i, cost=cost, kept="0:0:*;2:0:AAD/") for i in range(4)]
    sealed(Store(tmp_path), make_cell(), records, provenance={**PROVENANCE, "grids": [[4, 6, False]]})
    assert verify(tmp_path)[1], verify(tmp_path)[0]
    rewrite(first(tmp_path), lambda rows: [{**rows[0], "keeps": "0:0:A"}, *rows[1:]])
    assert not verify(tmp_path)[1]
    assert "expected kept tokens" in verify(tmp_path)[0][0]


def test_a_journal_with_garbage_is_wrong(results):
    folder = Store(results).folder(make_cell(seed=2))
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(make_record(0).line() + b"garbage\n")
    lines, fine = verify(results)
    assert not fine
    assert "line 2" in lines[0]
    listed = CliRunner().invoke(app, ["results", "list", "--results", str(results)])
    assert listed.exit_code == 1
    assert sum(line.startswith("damaged") for line in listed.output.splitlines()) == 1


def test_nothing_to_look_at_is_an_error_not_a_success(tmp_path):
    with pytest.raises(PrunebenchError, match="expected a results folder with cells/"):
        verify(tmp_path)


def test_the_command_succeeds_on_sound_results(results):
    done = CliRunner().invoke(app, ["results", "verify", "--results", str(results)])
    assert (done.exit_code, done.output.splitlines()[-1]) == (
        0,
        "2 cells sealed and whole, 0 unfinished (0 answers), 0 wrong",
    )
    shutil.copytree(results / "cells", results / "copy" / "cells")
    listed = CliRunner().invoke(app, ["results", "list", "--results", str(results / "copy")])
    assert listed.output.splitlines()[-1] == "2 sealed, 0 unfinished, 0 damaged"


@pytest.mark.parametrize(
    ("task", "said"),
    [("tasks/own.yaml", ""), ("own.yml", ""), ("other", "its request asks for {'task': 'other'")],
)
def test_a_task_of_a_file_is_measured_under_another_name(results, task, said):
    folder = first(results)

    def change(body):
        body["provenance"]["request"]["task"] = task

    resign(folder, change)
    lines, well = verify(results)
    assert well == (not said)
    assert said in "\n".join(lines)
