"""A journal gives back what was written in this environment, or asks again: damage, forgery and other environments."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest
from factories import keys, make_cell, make_record, sealed
from hypothesis import given as drawn
from hypothesis import strategies as st

from harness.core.errors import PrunebenchError
from harness.store.journal import header, read_journal
from harness.store.store import Store
from harness.store.verify import verify

HERE = {"torch": "2.12.0", "code": "abc", "device": "A card"}


def write(tmp_path, *lines):
    """The path of a journal of `lines` in the folder of an unfinished cell."""
    folder = Store(tmp_path).folder(make_cell())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def signed(text):
    """A line with a right checksum, whatever it says."""
    body = text.encode("ascii")
    return body + b', "sum": "' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"}\n'


def forged(**changes):
    """A record that was changed by someone who knows the format."""
    by = json.loads(make_record(1).line())["by"]
    return signed(json.dumps({**asdict(make_record(1)), "by": by} | changes)[:-1])


def test_no_flipped_bit_is_accepted(tmp_path):
    """Every single one: an answer is as it was written, or is asked again."""
    whole = header({}) + b"".join(make_record(i).line() for i in range(3))
    path = write(tmp_path)
    written = {key: make_record(i) for i, key in enumerate(keys(3))}
    lost = 0
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            found = read_journal(path, {}, frozenset(keys(4)))
            assert found.done.items() <= written.items(), (at, bit)
            assert len(found.done) >= 1, "a line, or two that lost the newline between them"
            torn = at == len(whole) - 1
            assert torn or found.notes or found.done == written, "nothing is left out without a word"
            lost += len(found.done) < 3
    assert lost > 8 * len(whole) // 2, "flips in records cost records"


DEEP = "[" * 100_000
FORGED = {
    "garbage": b"garbage\n",
    "nothing": b"\n",
    "an object": b"{}\n",
    "a signed object": signed('{"by": "x"'),
    "no environment": signed(json.dumps(asdict(make_record(1)))[:-1]),
    "a list": b"[1]\n",
    "another checksum": make_record(1).line()[:-5] + b'00"}\n',
    "no checksum": make_record(1).line().rpartition(b', "sum"')[0] + b"}\n",
    "100,000 brackets": DEEP.encode() + b"\n",
    "100,000 brackets, signed": signed('{"by": "x", "key": ' + DEEP),
    "a lone surrogate": forged(answer="\ud800"),
    "a lone surrogate as a key": forged(key="\udfff"),
    "30 digits": forged(n_new_tokens=10**29),
    "5,000 digits": signed('{"by": "x", "n_new_tokens": ' + "9" * 5000),
    "30 digits of time": forged(wall_s=10**29),
    "NaN": signed(json.dumps({**asdict(make_record(1)), "by": "x", "wall_s": float("nan")})[:-1]),
    "infinity": signed(json.dumps({**asdict(make_record(1)), "by": "x", "cost": {"kept": float("inf")}})[:-1]),
    "a text as cost": forged(cost={"kept": "64"}),
    "true as a number": forged(n_new_tokens=True),
    "no answer": forged(answer=None),
    "one field more": forged(more=1),
    "a header without its environment": signed('{"journal": 2, "by": "x"'),
    "bytes": bytes(range(128, 250)) + b"\n",
    "zeros": bytes(4096) + b"\n",
}


@pytest.mark.parametrize("what", FORGED)
def test_a_line_that_is_no_answer_is_named_and_the_rest_is_kept(tmp_path, what):
    path = write(tmp_path, header({}), make_record(0).line(), FORGED[what], make_record(2).line())
    lines, fine = verify(tmp_path)
    assert not fine
    assert "journal.jsonl, line 3: damaged" in lines[0]
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4)) as writer:
        assert list(writer.done) == [keys(4)[0], keys(4)[2]]
        (note,) = writer.notes
        assert "line 3: damaged" in note
        writer.append(make_record(1), make_record(3))
    assert path.read_bytes() == header({}) + b"".join(make_record(i).line() for i in (0, 2, 1, 3))
    with store.open(cell, keys(4)) as writer:
        assert not writer.notes
        assert len(writer.done) == 4
    assert not any((tmp_path / "locks").iterdir())


@drawn(data=st.binary(max_size=400), at=st.integers(0, 3))
def test_bytes_between_lines_never_become_answers(tmp_path_factory, data, at):
    lines = [header({}), *(make_record(i).line() for i in range(3))]
    path = write(tmp_path_factory.mktemp("journal"), *lines[: at + 1], data, *lines[at + 1 :])
    found = read_journal(path, {})
    written = {key: make_record(i) for i, key in enumerate(keys(3))}
    assert found.done.items() <= written.items()
    assert len(found.done) >= 2


OTHERS = [
    *({**HERE, name: "another"} for name in HERE),
    *({k: v for k, v in HERE.items() if k != name} for name in HERE),
    {**HERE, "transformers": "5.23.0"},
    {**HERE, "torch": "2.12.0+cu130"},
    {**HERE, "torch": " 2.12.0"},
    {"Torch": "2.12.0", "code": "abc", "device": "A card"},
    {**HERE, "device": "A card "},
    {**HERE, "device": "Ä card"},
    {"code": "2.12.0", "torch": "abc", "device": "A card"},
    {},
]


@pytest.mark.parametrize("other", OTHERS)
def test_answers_of_another_environment_are_never_mixed(tmp_path, other):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4), other) as writer:
        writer.append(make_record(0, answer="elsewhere"), make_record(1, answer="elsewhere"))
    assert verify(tmp_path)[1], "an unfinished cell of another environment is no damage"
    with store.open(cell, keys(4), HERE) as writer:
        assert not writer.done
        (note,) = writer.notes
        assert "2 answers are discarded and asked again: they were made with " in note
        changed = [name for name in {*HERE, *other} if HERE.get(name) != other.get(name)]
        assert all(f"{name} {other.get(name, 'none')} (now {HERE.get(name, 'none')})" in note for name in changed)
        writer.append(*(make_record(i) for i in range(3)))
    with store.open(cell, keys(4), HERE) as writer:
        assert not writer.notes
        assert [record.answer for record in writer.done.values()] == [make_record(i).answer for i in range(3)]


def test_the_same_environment_continues_whatever_the_order_of_its_words(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4), HERE) as writer:
        writer.append(make_record(0))
    with store.open(cell, keys(4), dict(reversed(HERE.items()))) as writer:
        assert (list(writer.done), writer.notes) == (keys(1), ())


def test_a_lost_first_line_costs_no_answer_and_says_less(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4), HERE) as writer:
        writer.append(make_record(0))
    path = store.folder(cell) / "journal.jsonl"
    path.write_bytes(b"x" + path.read_bytes())
    with store.open(cell, keys(4), HERE) as writer:
        assert list(writer.done) == keys(1)
    path.write_bytes(b"x" + path.read_bytes())
    with store.open(cell, keys(4), {}) as writer:
        assert not writer.done
        assert "whose description is damaged" in writer.notes[1]


@pytest.mark.parametrize("answers", [1, 3])
def test_a_journal_of_an_earlier_prunebench_begins_anew(tmp_path, answers):
    """It had neither checksums nor environments."""
    path = write(tmp_path, *(json.dumps(asdict(make_record(i))).encode() + b"\n" for i in range(answers)))
    lines, fine = verify(tmp_path)
    assert fine, lines
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        assert not writer.done
        (note,) = writer.notes
        assert f"{answers} answers of an earlier prunebench" in note
        writer.append(make_record(0))
    assert path.read_bytes() == header({}) + make_record(0).line()


def test_an_answer_that_no_table_could_hold_is_refused_before_it_is_written(tmp_path):
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        for bad in ({"answer": "\ud800"}, {"n_new_tokens": 2**63}, {"cost": {"kept": 1e30}}, {"wall_s": float("inf")}):
            with pytest.raises(PrunebenchError, match="cannot be written to the journal"):
                writer.append(make_record(0, **bad))
    assert (writer.folder / "journal.jsonl").read_bytes() == b""


def test_what_heals_seals_as_if_undisturbed(tmp_path):
    calm = sealed(Store(tmp_path / "calm"), make_cell())
    write(tmp_path / "hurt", header({}), make_record(3).line(), b"\0\n", make_record(1).line(), b'{"key')
    hurt = sealed(Store(tmp_path / "hurt"), make_cell())
    assert hurt.samples_sha256 == calm.samples_sha256
