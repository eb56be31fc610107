"""What the tables say about methods is what the classes say."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import pytest
from methods_with_settings import shipped

from harness.core.shape import ModelShape
from harness.method import Method, Published, TowerLook, Traits
from harness.method.about import OF_CLS, WIDTH, about, card, differs, table

KINDS = {"image", "tower", "language model", "adaptive", "control", "study"}


@dataclass(frozen=True)
class Looking(Method):
    """Looks at the tower."""

    name = "looking"
    paper = "https://arxiv.org/abs/1234.56789"
    published = Published("CVPR 2025", "someone/Looking", "0123abcd", "MIT")
    traits = Traits(query_aware=False, image_only=True)

    keep: int
    what: str = "cls_row"

    def looks(self, shape: ModelShape) -> tuple[TowerLook, ...]:
        return TowerLook(self.what, -2), TowerLook("keys", 22)  # type: ignore[arg-type]


def test_what_a_class_says_is_what_is_shown() -> None:
    one = about(Looking)
    assert (one.kind, one.needs_cls, one.query_aware, one.native) == ("tower", True, False, "none")
    assert one.beside == "[CLS] row, keys of tower layer 22"
    assert one.official == "someone/Looking @ 0123abcd"
    assert one.official_link == "https://github.com/someone/Looking/tree/0123abcd"
    assert one.knobs == ("keep", "what=cls_row")
    text = card(one)
    for said in ("CVPR 2025", "MIT", "needed", "image only", one.paper, one.official_link):
        assert said in text


@pytest.mark.parametrize("what", ["keys", "hidden", "column_sums", *OF_CLS])
def test_only_looks_at_cls_need_it(what: str) -> None:
    @dataclass(frozen=True)
    class Other(Looking):
        def looks(self, shape: ModelShape) -> tuple[TowerLook, ...]:
            return (TowerLook(what, -1),)  # type: ignore[arg-type]

    assert about(Other).needs_cls == (what in OF_CLS)
    assert "tower layer 23" in about(Other).beside


def test_differences_are_a_paragraphs_end() -> None:
    assert differs("A.\n\nPaper: x. Differs: one\nthing; another.\n\nMore.") == "one thing; another."
    assert differs("A.\n\nDiffers: nothing known.\n") == "nothing known."
    assert differs("A.") == ""


def test_prumerges_card_says_why_mini_is_no_fair_ground() -> None:
    told = " ".join(card(about(shipped()["prumerge"])).split())
    assert "on mini The scores come from the last layer of the vision tower" in told
    assert "AUC of 0.77" in told
    assert "on mini" not in card(about(shipped()["visionzip"]))


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_method_says_where_it_comes_from(name: str) -> None:
    one = about(shipped()[name])
    assert one.kind in KINDS
    assert one.differs, "the docstring of its file has no line `Differs:`"
    assert len(one.summary) < 200
    if one.published is None:
        assert one.kind in ("control", "study")
        return
    assert one.kind not in ("control", "study")
    assert one.paper.startswith("https://arxiv.org/abs/")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", one.published.repository)
    assert re.fullmatch(r"[0-9a-f]{8}", one.published.commit)
    assert re.fullmatch(r"[A-Za-z]+ 20\d\d", one.published.venue)
    text = " ".join((sys.modules[shipped()[name].__module__].__doc__ or "").split())
    assert one.paper in text
    assert all(word in text for word in one.published.venue.split())
    assert f"{one.published.repository} @ {one.published.commit[:7]}" in text


def test_the_terminal_holds_them() -> None:
    found = [about(cls) for cls in shipped().values()]
    assert max(map(len, table(found).splitlines())) <= WIDTH
    for one in found:
        assert max(map(len, card(one).splitlines())) <= WIDTH, one.name
