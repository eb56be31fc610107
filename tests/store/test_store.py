"""The store: identity, a journal that survives kill -9, and cells that are whole or absent."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import asked, keys, make_cell, make_record, make_scores, seal, sealed

from harness.core.cell import Cell
from harness.core.errors import PrunebenchError
from harness.store import files
from harness.store.files import write_atomic
from harness.store.journal import header
from harness.store.sealed import cost_means
from harness.store.store import CellSealed, Store

REPOSITORY = Path(__file__).parents[2]


# identity


OTHER = {"knobs": {"boundary": 3, "keep": 64}, "n_samples": 5, "seed": 1, "max_new_tokens": 17, "numerics_version": 2}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Cell)])
def test_every_field_changes_the_identity(name):
    cell = make_cell()
    changed = dataclasses.replace(cell, **{name: OTHER.get(name, "other")})
    assert changed.identity() != cell.identity()


def test_identity_depends_on_nothing_else():
    cell = make_cell()
    assert make_cell(knobs={"keep": 64, "boundary": 2}).identity() == cell.identity(), "order of knobs"
    assert make_cell(knobs={"keep": 64.0, "boundary": 2}).identity() == cell.identity(), "64.0 is 64"
    assert make_cell(knobs={"keep": (1, 2)}) == make_cell(knobs={"keep": [1, 2]})
    assert make_cell(knobs={"keep": True}).identity() != make_cell(knobs={"keep": 1}).identity()
    knobs = {"keep": [1]}
    mine = make_cell(knobs=knobs)
    before = mine.identity()
    knobs["keep"].append(2)
    assert mine.identity() == before
    assert before == Cell.from_dict(json.loads(json.dumps(mine.to_dict()))).identity()


def test_identity_is_the_documented_one(monkeypatch):
    """Pinned: if this fails, results on disk would no longer be found; bump KEY_VERSION on purpose."""
    assert make_cell().identity() == "8646c51ebae00dda"
    monkeypatch.setattr("harness.core.cell.KEY_VERSION", 3)
    assert make_cell().identity() != "8646c51ebae00dda"


def test_a_cell_is_hashable_and_refuses_what_it_cannot_name():
    assert len({make_cell(), make_cell(), make_cell(seed=1)}) == 2
    for changes in (
        {"knobs": {"x": float("nan")}},
        {"knobs": {"x": object()}},
        {"knobs": {1: 2}},
        {"model": ""},
        {"seed": -1},
    ):
        with pytest.raises(PrunebenchError, match=next(iter(changes))):
            make_cell(**changes)
    for changes in ({"n_samples": 0}, {"seed": True}, {"seed": 1.0}, {"max_new_tokens": "16"}):
        with pytest.raises(PrunebenchError, match="whole number"):
            make_cell(**changes)


def test_from_dict_refuses_unknown_and_missing_fields():
    values = make_cell().to_dict()
    with pytest.raises(PrunebenchError, match="unknown cell field 'modell'; did you mean 'model'"):
        Cell.from_dict(values | {"modell": "x"})
    values.pop("dtype")
    with pytest.raises(PrunebenchError, match="dtype"):
        Cell.from_dict(values)


def test_baseline_is_shared_by_everything_that_is_compared_with_it():
    base = make_cell().baseline()
    assert (base.method, base.knobs, base.budget, base.positions, base.seed) == ("none", {}, "none", "method", 0)
    assert base.baseline() == base
    others = make_cell(method="random", knobs={"boundary": 0}, budget="32", positions="compact", seed=7)
    assert others.baseline().identity() == base.identity()
    assert make_cell(dtype="bfloat16").baseline().identity() != base.identity()


# run, resume, seal


def test_answers_come_back_as_they_were_written(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    assert store.sealed(cell) is None
    with store.open(cell, keys(4)) as writer:
        writer.append(make_record(0))
        writer.append(make_record(1), make_record(2))
    with store.open(cell, keys(4)) as writer:
        assert writer.done == {r.key: r for r in (make_record(0), make_record(1), make_record(2))}
        writer.append(make_record(3))
        result = seal(writer)
    assert result == store.sealed(cell) == store.cells()[0]
    assert sorted(p.name for p in result.folder.iterdir()) == ["cell.json", "samples.parquet"]
    assert not any((tmp_path / "locks").iterdir())
    assert result.folder == tmp_path / "cells" / "pope" / f"org_tiny-fastv-64-{cell.identity()}"
    assert result.costs == {"kept": 65.5, "mean_visual": 64.5, "kv_bytes": 1536.0}
    assert result.counts == {"expected": 4, "answered": 4, "headline": 4}
    assert result.metrics == {"pope_accuracy": 0.5, "pope_f1_score": None}
    assert (result.score, result.maximum, result.headline) == (0.5, 1.0, "pope_accuracy")
    assert result.interval is not None
    assert (result.interval.n_clusters, result.interval.level) == (2, 0.95)
    frame = result.samples()
    assert list(frame.columns) == [
        *("key", "image", "question_id", "category", "question", "target", "answer", "score", "n_new_tokens", "keeps"),
        *("kept", "mean_visual", "kv_bytes"),
    ]
    assert frame["key"].tolist() == keys(4)
    assert frame["answer"].tolist() == [make_record(i).answer for i in range(4)]
    assert frame["score"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert frame["kv_bytes"].tolist() == [0, 1024, 2048, 3072]
    assert frame["keeps"].tolist() == [f"0:0:*;2:{i}:AAAB" for i in range(4)]
    result.verify()


def test_the_mean_of_a_layer_is_over_the_samples_that_have_one():
    """-1 is no layer: with it, a model that exits in layer 10 half of the time would exit in layer 4.5."""
    found = cost_means({"exit_layer": [10, -1, 9, -1], "fusion_layer": [-1, -1, -1, -1], "kept": [64, 0, 64, 0]})
    assert found == {"exit_layer": 9.5, "exit_layer_share": 0.5, "fusion_layer_share": 0.0, "kept": 32}


def test_order_of_answering_and_wall_time_do_not_change_the_samples(tmp_path):
    first = sealed(Store(tmp_path / "a"), make_cell())
    with Store(tmp_path / "b").open(make_cell(), keys(4)) as writer:
        for i in (2, 0, 3, 1):
            writer.append(make_record(i, wall_s=9.0))
        second = seal(writer)
    assert first.samples_sha256 == second.samples_sha256
    assert first.identity == second.identity


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_torn_last_line_is_asked_again(tmp_path, cut):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4)) as writer:
        writer.append(make_record(0), make_record(1))
    journal = store.folder(cell) / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + make_record(2).line()[:cut])
    with store.open(cell, keys(4)) as writer:
        assert list(writer.done) == keys(2)
        assert journal.read_bytes() == whole
        writer.append(make_record(2), make_record(3))
        assert seal(writer).samples()["answer"].tolist() == [make_record(i).answer for i in range(4)]


def test_unexpected_keys_are_refused_and_repeats_count_once(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4)) as writer:
        with pytest.raises(PrunebenchError, match="'pope/000009' is not one of the 4"):
            writer.append(make_record(0), make_record(9))
        assert not writer.done
        writer.append(make_record(0), make_record(0, answer="again"))
        writer.append(make_record(0, answer="later"))
    journal = store.folder(cell) / "journal.jsonl"
    assert journal.read_bytes() == header({}) + make_record(0).line()
    with journal.open("ab") as file:
        file.write(make_record(0, answer="appended by hand").line())
    with store.open(cell, keys(4)) as writer:
        assert writer.done == {keys(1)[0]: make_record(0)}
    with journal.open("ab") as file:
        file.write(make_record(9).line())
    with pytest.raises(PrunebenchError, match="line 4: sample 'pope/000009'"), store.open(cell, keys(4)):
        pass


def test_records_that_cannot_be_kept_are_refused(tmp_path):
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        for bad in (
            {"cost": {"kept": float("nan")}},
            {"cost": {"kept": "64"}},
            {"answer": None},
            {"n_new_tokens": 1.5},
        ):
            with pytest.raises(PrunebenchError, match="pope/000000"):
                writer.append(make_record(0, **bad))
        with pytest.raises(PrunebenchError, match="cost columns"):
            writer.append(make_record(0, cost={"score": 1}))
        writer.append(make_record(0))
        with pytest.raises(PrunebenchError, match=r"fresh=True"):
            writer.append(make_record(1, cost={"kept": 64}))
        assert list(writer.done) == keys(1)
    with pytest.raises(PrunebenchError, match="closed"):
        writer.append(make_record(1))


def test_seal_refuses_what_is_not_whole(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4)) as writer:
        writer.append(*(make_record(i) for i in range(3)))
        with pytest.raises(PrunebenchError, match="answered 3 of 4 samples, pope/000003 missing"):
            seal(writer)
        assert store.sealed(cell) is None
        writer.append(make_record(3))
        scores = make_scores(4)
        for changes, message in [
            ({"scores": {k: scores[k] for k in keys(3)}}, "pope/000003 unscored"),
            ({"scores": scores | {keys(1)[0]: scores[keys(1)[0]]._replace(score=1.5)}}, r"is 1\.5, expected 0\.\.1"),
            ({"metrics": {"pope_accuracy": 0.6}}, r"is 0\.6, but the 4 sample scores add up to 0\.5"),
            ({"headline": "pope_f1_score"}, "nan"),
            ({"headline": "f1"}, "is None"),
            ({"provenance": {"request": asked(), "processing": {}, "versions": object()}}, "plain JSON"),
            ({"provenance": {"request": asked()}}, "provenance: expected processing"),
            (
                {"provenance": {"command": "make eval METHOD=fastv"}},
                r"cannot seal .*: a request as sealed holds method, budget, .*; found None",
            ),
            ({"provenance": {"request": asked(seed="1")}}, "seed is '1', expected int"),
            ({"method_info": {"query_aware": True}}, "expected budget_knobs"),
        ]:
            with pytest.raises(PrunebenchError, match=message):
                seal(writer, **changes)
        assert store.sealed(cell) is None
        seal(writer)
        with pytest.raises(PrunebenchError, match="seal once"):
            seal(writer)
    with pytest.raises(CellSealed, match="sealed already"), store.open(cell, keys(4)):
        pass


def test_the_keys_must_be_the_cells_samples(tmp_path):
    for bad in (keys(3), [*keys(3), keys(1)[0]]):
        with (
            pytest.raises(PrunebenchError, match="expected 4 different sample keys"),
            Store(tmp_path).open(make_cell(), bad),
        ):
            pass


def test_discard_forgets_answers_and_results(tmp_path):
    store, cell, other = Store(tmp_path), make_cell(), make_cell(budget="32")
    store.discard(cell)
    sealed(store, cell)
    sealed(store, other)
    store.discard(cell)
    assert [c.identity for c in store.cells()] == [other.identity()]
    with store.open(cell, keys(4)) as writer:
        assert not writer.done
        writer.append(make_record(0))
        with pytest.raises(PrunebenchError, match="being run by"):
            store.discard(cell)
    store.discard(cell)
    assert not store.folder(cell).exists()


# damaged results


def edit(path: Path, change) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def test_an_edited_cell_is_an_error_that_names_the_file(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    path = sealed(store, cell).folder / "cell.json"
    good = path.read_bytes()

    def resign(body):
        body["checksum"] = files.checksum({k: v for k, v in body.items() if k != "checksum"})

    def other_cell(body):
        body["cell"]["seed"] = 5
        resign(body)

    def no_costs(body):
        del body["costs"]
        resign(body)

    for change, message in [
        (lambda body: body["metrics"].update(pope_accuracy=0.99), "it was edited"),
        (other_cell, "but its cell has"),
        (no_costs, "not a cell file"),
        (lambda body: body.update(schema_version=1), "expected schema and key version 5 and 2, found 1 and 2"),
        (lambda body: body.update(key_version=0), "found 5 and 0"),
        (lambda body: body.pop("schema_version"), "not a cell file"),
        (lambda body: body.update(maximum=float("nan")), "not a cell file"),
    ]:
        edit(path, change)
        for read in (lambda: store.sealed(cell), store.cells):
            with pytest.raises(PrunebenchError, match=message) as error:
                read()
            assert str(path.parent) in str(error.value)
        path.write_bytes(good)
    path.write_bytes(good[:50])
    with pytest.raises(PrunebenchError, match="not a cell file"):
        store.sealed(cell)
    path.write_bytes(good)
    assert store.sealed(cell) is not None


def test_a_cell_in_another_cells_folder_is_an_error(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    folder = sealed(store, cell).folder
    other = make_cell(seed=1)
    folder.rename(store.folder(other))
    with pytest.raises(PrunebenchError, match="identity"):
        store.sealed(other)


def test_samples_are_missed_and_re_hashed(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    result = sealed(store, cell)
    samples = result.folder / "samples.parquet"
    samples.write_bytes(samples.read_bytes()[:-1] + b"x")
    for read in (result.verify, result.samples, lambda: store.sealed(cell)):
        with pytest.raises(PrunebenchError, match="sha256"):
            read()
    samples.unlink()
    with pytest.raises(PrunebenchError, match="missing beside"):
        store.sealed(cell)


# crashes, full disks, second runners


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from factories import keys, make_cell, make_record
from harness.store.store import Store
store, cell, n = Store(Path(sys.argv[1])), make_cell(int(sys.argv[2])), int(sys.argv[2])
with store.open(cell, keys(n)) as writer:
    print("ready", flush=True)
    if len(sys.argv) > 3:
        time.sleep(60)
    for i in range(n):
        if keys(n)[i] not in writer.done:
            writer.append(make_record(i, answer=f"answer {{i}} " + "x" * 20000))
            print(keys(n)[i], flush=True)
"""


def child(*arguments: str) -> subprocess.Popen[str]:
    code = CHILD.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1]), str(REPOSITORY)])
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_kill_9_at_random_moments_loses_nothing(tmp_path):
    n, store, acknowledged = 400, Store(tmp_path), []
    cell, draw = make_cell(n), random.Random()
    for _ in range(5):
        process = child(str(tmp_path), str(n))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(draw.randrange(1, 40)):
            acknowledged.append(process.stdout.readline().strip())
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
    assert len(set(acknowledged)) == len(acknowledged) < n, "a killed run must not have asked a sample again"
    with store.open(cell, keys(n)) as writer:
        assert set(acknowledged) <= set(writer.done)
        assert len(writer.done) - len(acknowledged) <= 5, (
            "at most the one line per kill that was written but not yet reported"
        )
        for i, key in enumerate(keys(n)):
            if key not in writer.done:
                writer.append(make_record(i, answer=f"answer {i} " + "x" * 20000))
        result = seal(writer, n)
    frame = result.samples()
    assert frame["key"].tolist() == keys(n)
    assert frame["answer"].tolist() == [f"answer {i} " + "x" * 20000 for i in range(n)]


def test_a_second_runner_is_told_who_is_running_and_a_dead_one_holds_nothing(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    process = child(str(tmp_path), "4", "hold")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(PrunebenchError, match=rf"being run by process {process.pid} on \S+ since"),
            store.open(cell, keys(4)),
        ):
            pass
        with store.open(make_cell(seed=1), keys(4)):
            pass  # another cell of the same folder is free
    finally:
        process.kill()
        process.communicate()
    sealed(store, cell)


class Stop(BaseException):
    """Stands for a kill: no handler may swallow it."""


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "os.write", "Path.unlink"])
def test_stopping_anywhere_in_a_seal_leaves_a_cell_that_seals(tmp_path, monkeypatch, call):
    """Stop before the k-th system call of a seal, for every k, then run the same again."""
    owner, name = (os, call[3:]) if call.startswith("os.") else (Path, "unlink")
    real = getattr(owner, name)
    for k in range(20):
        store, cell, count = Store(tmp_path / str(k)), make_cell(), 0

        def stopping(*args, _k=k, **kwargs):
            nonlocal count
            count += 1
            if count > _k:  # a dead process makes no further call of the kind
                raise Stop
            return real(*args, **kwargs)

        with store.open(cell, keys(4)) as writer:
            writer.append(*(make_record(i) for i in range(4)))
            monkeypatch.setattr(owner, name, stopping)
            try:
                seal(writer)
                stopped = False
            except Stop:
                stopped = True
            finally:
                monkeypatch.undo()
        found = store.sealed(cell)
        if found is None:
            with store.open(cell, keys(4)) as writer:
                assert len(writer.done) == 4
                found = seal(writer)
        found.verify()
        assert sorted(p.name for p in found.folder.iterdir()) == ["cell.json", "samples.parquet"]
        if not stopped:
            assert k > 0
            return
    raise AssertionError("a seal makes fewer than 20 such calls")


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    store, cell = Store(tmp_path), make_cell()
    real = os.write

    def full(handle, data):
        real(handle, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.open(cell, keys(4)) as writer:
        writer.append(make_record(0))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(PrunebenchError, match=r"journal\.jsonl: No space left.*the 1 answers before are safe"):
            writer.append(make_record(1))
        assert list(writer.done) == keys(1)
        monkeypatch.undo()
        writer.append(make_record(2))  # room again, same process: half a line must not stay in front of this one
    with store.open(cell, keys(4)) as writer:
        assert list(writer.done) == [keys(4)[0], keys(4)[2]]
        writer.append(make_record(1), make_record(3))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(PrunebenchError, match=r"cannot write .*samples\.parquet: No space left"):
            seal(writer)
        monkeypatch.undo()
        assert seal(writer).counts["answered"] == 4


def test_a_write_that_stops_early_is_finished(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data)[:7]))
    assert sealed(Store(tmp_path), make_cell()).samples()["key"].tolist() == keys(4)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A regular file in the way: it stops root too, which permissions do not."""
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "results")
    assert store.sealed(make_cell()) is None
    assert store.cells() == []
    with (
        pytest.raises(PrunebenchError, match=r"cannot lock .*file/results.*Not a directory"),
        store.open(make_cell(), keys(4)),
    ):
        pass
    with pytest.raises(PrunebenchError, match=r"cannot write .*leaderboard\.csv"):
        write_atomic(tmp_path / "file" / "leaderboard.csv", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to folders whatever their permissions say")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PrunebenchError, match="Permission denied"), Store(tmp_path).open(make_cell(), keys(4)):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_write_atomic_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_tables_need_no_torch():
    code = (
        "import sys; from harness.core import cell, stats; from harness.store import store; from harness.tables import"
        " leaderboard;sys.exit(' '.join({'torch', 'transformers', 'lmms_eval'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_samples_that_were_rewritten_are_not_read(tmp_path):
    """Neither a flipped byte nor a valid file with other scores passes for what was sealed."""
    cell = sealed(Store(tmp_path), make_cell())
    path = cell.folder / "samples.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    with pytest.raises(PrunebenchError, match=r"samples\.parquet: expected sha256"):
        cell.samples()
    path.write_bytes(good)
    frame = cell.samples()
    frame["score"] = 0.0
    frame.to_parquet(path)
    with pytest.raises(PrunebenchError, match=r"samples\.parquet: expected sha256"):
        cell.samples()
