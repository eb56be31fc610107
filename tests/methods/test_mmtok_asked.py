"""MMTok through the runner: the model's own tokenizer cuts the question."""

from __future__ import annotations

from by_hand import recorded


def test_a_mini_question_is_read() -> None:
    one = recorded("mmtok", "32")
    assert len(one.kept) == 32
    assert one.added == 0
    assert one.kept != recorded("mmtok", "32", select="tower-distance").kept
    assert one.kept != recorded("mmtok", "32", alpha=1e6).kept, "without the question's rows it keeps others"
