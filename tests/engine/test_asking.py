"""Every question that a method may ask and everything that it may return, each held by the conformance kit through a
small method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, PromptShape
from harness.engine.layout import Placed, TokenLayout
from harness.method import AttentionEdit, Method, Reduction, Share, method_class
from harness.proof.conformance.kit import check, one_thread
from harness.proof.conformance.subject import PROPERTIES, Subject, Verdict
from harness.proof.conformance.tiny import IMAGE_TOKEN, N_VISUAL, PROMPTS, ask, prompt, tiny_model

ASKING = str(Path(__file__).parents[1] / "examples" / "asking.py")
METHODS = ("Coming", "Pivots", "Masses", "Sums", "Ordered", "Fronted", "Remade", "Asking", "Rings")
#: what each of them is there for: a property that says what it saw
SHOWS = {
    "Coming": ("answers to its questions equal a pass from scratch", "coming_probs"),
    "Pivots": ("answers to its questions equal a pass from scratch", "normed.visual"),
    "Masses": ("answers in a padded batch equal those alone", "answers"),
    "Sums": ("looks equal the tower's own", "column_sums"),
    "Ordered": ("prefill and decode equal a pass from scratch", "largest difference"),
    "Fronted": ("looks equal the tower's own", "cls_hidden, cls_key, cls_query, hidden, keys"),
    "Remade": ("images of a prompt decided one by one", "the first of two and the second"),
    "Asking": ("every product is charged", "FLOPs of scoring"),
    "Rings": ("ragged counts: one and two images", "visual tokens per row"),
}


def method(name: str, **knobs: object) -> Method:
    return method_class(f"{ASKING}:{name}")(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_the_kit_holds_every_question(name: str) -> None:
    verdicts = {v.name: v for v in check(method_class(f"{ASKING}:{name}"))}
    assert not [v for v in verdicts.values() if v.status == "FAIL"]
    shows, saying = SHOWS[name]
    assert verdicts[shows].status == "ok"
    assert saying in verdicts[shows].detail


@pytest.mark.parametrize(
    ("name", "knob"),
    [("Ordered", {"compact": False}), ("Fronted", {"positions": "original"}), ("Remade", {"compact": False})],
)
def test_order_and_front_keep_their_positions_where_positions_stay(name: str, knob: dict[str, object]) -> None:
    verdicts = {v.name: v for v in check(method_class(f"{ASKING}:{name}"), knobs=knob)}
    assert verdicts["prefill and decode equal a pass from scratch"].status == "ok"
    with one_thread():
        layout = ask(tiny_model(), method(name, keep=16, **knob), PROMPTS[:1], steps=0).run.layouts[0]
    at = layout.positions[0, layout.visual[0], 0].tolist()
    if name == "Ordered":
        assert at != sorted(at)
        assert set(at) <= set(range(3, 3 + N_VISUAL))
    else:
        assert at[0] == 3, "a front token stands where the first visual token stood"
        assert at[-1] == max(at[:-1]) + 1, "an added one behind the last kept one of the old order"


def test_front_tokens_come_first_and_added_ones_last() -> None:
    with one_thread():
        got = ask(tiny_model(), method("Fronted", keep=16), (PROMPTS[0], prompt(7, 5, images=2)), steps=0)
    one, two = got.origins[0]
    assert one[0] == -2
    assert one[-1] == -2
    assert all(o >= 0 for o in one[1:-1])
    assert two[:2] == [-2, -2], "one [CLS] an image"
    assert [len(one), len(two)] == [16, 16]


def test_tokens_of_an_image_stand_around_what_is_kept_of_it() -> None:
    """Two images with text between them: the second keeps nothing, and its tokens stand where it stood."""
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * 3, 5, *[IMAGE_TOKEN] * 2, 6]])
    layout = TokenLayout.of_prompt(ids, None, (IMAGE_TOKEN,))
    image = torch.tensor([[0, 0, 0, 1, 1]])

    def among(*images: int) -> Placed:
        return Placed(
            torch.ones(1, len(images), dtype=torch.bool), torch.tensor([images])[:, :, None] == image[:, None]
        )

    keep = torch.tensor([[False, True, True, False, False]])
    got = layout.reduce(keep, among(1, 0), False, torch.tensor([[0, 2, 1, 0, 0]]), among(0, 1), replaced=True)
    # 8 columns, 2 added, 2 in front, 5 values
    assert got.source.tolist() == [[0, 10, 12 + 2, 12 + 1, 9, 4, 11, 8, 7]]
    assert got.layout.origin.tolist() == [[-1, -2, 2, 1, -2, -1, -2, -2, -1]]
    assert got.layout.positions[0, :, 0].tolist() == [0, 1, 3, 2, 4, 4, 5, 5, 7]


def test_an_order_is_the_one_asked_for() -> None:
    """Kept tokens ascend in `order` and text stays where it was; equal ones keep their old order."""
    ids = torch.tensor([[1, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, 2, 3]])
    layout = TokenLayout.of_prompt(ids, None, (IMAGE_TOKEN,))
    keep = torch.tensor([[True, False, True, True]])

    def origins(order: Tensor) -> list[int]:
        return layout.reduce(keep, None, True, order).layout.origin[0].tolist()

    assert origins(torch.tensor([[5.0, 9.0, 1.0, 3.0]])) == [-1, 2, 3, 0, -1, -1]
    assert origins(torch.tensor([[1, 1, 1, 0]])) == [-1, 3, 0, 2, -1, -1]


@pytest.mark.parametrize("order", ["bool", "shape", "nan", "list"])
def test_an_order_that_does_not_fit_is_refused(order: str) -> None:
    given: dict[str, object] = {
        "bool": torch.zeros(1, N_VISUAL, dtype=torch.bool),
        "shape": torch.zeros(1, 3),
        "list": [1, 2],
    }
    wrong = given.get(order, torch.full((1, N_VISUAL), float("nan")))

    class Wrong(type(method("Ordered", keep=4))):  # type: ignore[misc]
        def at_boundary(self, run, layer, stream):  # type: ignore[no-untyped-def]
            found = super().at_boundary(run, layer, stream)
            return None if found is None else type(found)(found.keep, order=wrong)

    with pytest.raises(PrunebenchError, match=r"ordered at boundary 0.*order"):
        ask(tiny_model(), Wrong(keep=4), PROMPTS[:1], steps=0)


def test_a_prompt_that_starts_with_its_image_keeps_its_first_token_in_a_batch() -> None:
    """Slots beyond a row's count stand for no column: the first one is a token here."""
    ids = torch.tensor([[IMAGE_TOKEN] + [5] * 4, [1, IMAGE_TOKEN, IMAGE_TOKEN, 7, 8]])
    layout = TokenLayout.of_prompt(ids, None, (IMAGE_TOKEN,))
    assert layout.visual_to_columns(torch.ones(2, 2, dtype=torch.bool)).tolist() == layout.visual.tolist()


class Returns(Method):
    """Gives a reduction or edits that do not fit."""

    name = "returns"
    reduction: object = None
    edits: object = ()

    def at_boundary(self, run, layer, stream):  # type: ignore[no-untyped-def]
        return type(self).reduction(run) if layer == 1 and type(self).reduction else None  # type: ignore[operator]

    def edit_attention(self, run, layer):  # type: ignore[no-untyped-def]
        return type(self).edits


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (
            {"reduction": lambda r: Reduction(r.visual_valid, added_valid=r.visual_valid)},
            "added_valid beside added tokens, found it alone",
        ),
        (
            {"reduction": lambda r: Reduction(r.visual_valid, front=[1.0])},
            r"expected front tokens as numbers \(1, m, 64\) on cpu; found list",
        ),
        (
            {"reduction": lambda r: Reduction(r.visual_valid, values=r.visual_valid)},
            r"expected values as numbers \(1, 64, 64\) on cpu; found torch.bool",
        ),
        (
            {"reduction": lambda r: Reduction(r.visual_valid, values=torch.full((1, 64, 64), float("inf")))},
            "values of kept tokens hold nan or inf",
        ),
        (
            {"reduction": lambda r: Reduction(r.visual_valid, front_image=torch.zeros(1, 1).long())},
            "front_image beside front tokens, found it alone",
        ),
        (
            {
                "reduction": lambda r: Reduction(
                    r.visual_valid, torch.zeros(1, 1, 64), added_image=torch.ones(1, 1).long()
                )
            },
            "expected in added_image the number of an image with visual tokens present, found 1",
        ),
        ({"edits": None}, "expected a list of AttentionEdits from edit_attention"),
        ({"edits": AttentionEdit("after", None, "zero")}, "expected a list of AttentionEdits from edit_attention"),
        (
            {"edits": (AttentionEdit("after", None, "cut"),)},
            "expected how of an AttentionEdit as one of mask, zero, redirect; found 'cut'",
        ),  # type: ignore[arg-type]
        (
            {"edits": (AttentionEdit("after", None, "redirect", sink=0.5),)},
            r"expected a sink as a whole number or long \(1,\) on cpu; found float",
        ),  # type: ignore[arg-type]
        (
            {"edits": (AttentionEdit("after", None, "redirect", sink=torch.zeros(1, 1).long()),)},
            r"found torch.int64 \(1, 1\) on cpu",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(returns: dict[str, object], says: str) -> None:
    cls = type(
        "Wrong",
        (Returns,),
        {name: staticmethod(value) if callable(value) else value for name, value in returns.items()},
    )
    with pytest.raises(PrunebenchError, match=rf"returns at (boundary|layer) \d+(: |, ).*{says}"):
        ask(tiny_model(), cls(), PROMPTS[:1], steps=0)


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda valid: torch.zeros(1, 1), r"found torch.float32 \(1, 1\) on cpu"),
        (lambda valid: None, "found NoneType"),
        (lambda valid: torch.zeros(valid.shape, dtype=torch.complex64), "found torch.complex64"),
    ],
)
def test_a_score_of_another_shape_or_kind_is_refused(score: Callable[[Tensor], Tensor], says: str) -> None:
    class Odd(type(method("Rings", keep=4))):  # type: ignore[misc]
        def score(self, run, stream):  # type: ignore[no-untyped-def]
            return score(run.visual_valid)

    with pytest.raises(
        PrunebenchError, match=rf"rings at boundary 0.*expected scores as real numbers \(1, 64\) on cpu.*{says}"
    ):
        ask(tiny_model(), Odd(keep=4), PROMPTS[:1], steps=0)


def test_places_are_the_grid_and_newlines_have_none() -> None:
    shape = ask(tiny_model(), Method(), PROMPTS[:1], steps=0).run.prompts[0]
    assert shape.images[0].views == (Grid(8, 8),)
    vision = shape.images[0].vision
    two = PromptShape(
        shape.decoder,
        (ImageShape((Grid(1, 2),), vision), ImageShape((Grid(1, 1), Grid(2, 2, newline=True)), vision)),
        3,
    )
    assert two.places() == [
        (0, 0, 0, 0, 1, 2),
        (0, 0, 0, 1, 1, 2),
        (1, 0, 0, 0, 1, 1),
        (1, 1, 0, 0, 2, 2),
        (1, 1, 0, 1, 2, 2),
        (1, 1, -1, -1, 2, 2),
        (1, 1, 1, 0, 2, 2),
        (1, 1, 1, 1, 2, 2),
        (1, 1, -1, -1, 2, 2),
    ]
    assert two.n_visual == len(two.places()) == 9


def test_places_follow_the_tokens_that_are_still_there() -> None:
    seen = {}

    class Looking(type(method("Rings", keep=16))):  # type: ignore[misc]
        def at_boundary(self, run, layer, stream):  # type: ignore[no-untyped-def]
            seen[layer] = (run.places, run.layout.origin[run.layout.visual])
            return super().at_boundary(run, layer, stream)

    with one_thread():
        ask(tiny_model(), Looking(keep=16), PROMPTS[:1], steps=0)
    places, origin = seen[5]
    assert places.row[0].tolist() == [o // 8 for o in origin.tolist()]
    assert places.col[0].tolist() == [o % 8 for o in origin.tolist()]


def test_a_share_is_a_share_of_each_prompt_in_one_batch() -> None:
    with one_thread():
        got = ask(tiny_model(), method("Rings", keep=Share(0.25)), (PROMPTS[0], prompt(7, 5, images=2)), steps=0)
    assert [len(o) for o in got.origins[-1]] == [N_VISUAL // 4, N_VISUAL // 2]
    assert method("Rings", keep=Share(0.25)).knobs()["keep"] == "0.25kept"


def test_a_question_without_an_encoder_says_what_to_do() -> None:
    from harness.engine.attach import attach
    from harness.proof.conformance.tiny import ask_in

    with attach(tiny_model(), method("Asking", keep=4)) as run, pytest.raises(PrunebenchError, match="text_encoder"):
        ask_in(run, tiny_model(), PROMPTS[:1])


@pytest.mark.parametrize("name", ["Sums", "Ordered", "Fronted", "Remade"])
def test_questions_about_an_image_share_reordered_and_added_tokens(name: str) -> None:
    """Answers, logits, kept tokens and costs are those without sharing."""
    from harness.proof.faults import failing_sharing

    with one_thread():
        assert failing_sharing(f"{ASKING}:{name}", {}) == ()


def test_a_method_that_reorders_must_say_so() -> None:
    silent = dataclasses.replace(method_class(f"{ASKING}:Ordered").traits, reorders=False)
    cls = type("Silent", (method_class(f"{ASKING}:Ordered"),), {"traits": silent})
    verdicts = {v.name: v for v in check(dataclasses.dataclass(frozen=True)(cls))}
    assert "declare the trait reorders" in verdicts["kept sorted, unique, in image; text intact"].detail


ONE_BY_ONE, COMBINATIONS = "images of a prompt decided one by one", "merged tokens are combinations of the prompt's"


def judged(name: str, cls: type[Method]) -> Verdict:
    with one_thread():
        return PROPERTIES[name](Subject(dataclasses.dataclass(frozen=True)(cls), {}))


def remade(name: str, **changes: Callable[[Reduction], object]) -> Verdict:
    """What the kit says of `Remade` with parts of its reduction replaced."""

    class Wrong(method_class(f"{ASKING}:Remade")):  # type: ignore[misc]
        def at_boundary(self, run, layer, stream):  # type: ignore[no-untyped-def]
            found = super().at_boundary(run, layer, stream)
            return dataclasses.replace(found, **{k: change(found) for k, change in changes.items()}) if found else None

    return judged(name, Wrong)


def test_an_image_that_changes_the_other_is_seen() -> None:
    mixed = remade(ONE_BY_ONE, values=lambda r: r.values + r.values.mean(1, keepdim=True))
    assert "makes other tokens beside another image" in mixed.detail
    flipped = remade(ONE_BY_ONE, order=lambda r: (r.order * r.values.sum((1, 2))[:, None]).sin())
    assert flipped.status == "FAIL"
    silent = remade(ONE_BY_ONE, added_image=lambda r: None, front_image=lambda r: None)
    assert "without saying of which image" in silent.detail

    class Across(method_class(f"{ASKING}:Ordered")):  # type: ignore[misc]
        traits = dataclasses.replace(method_class(f"{ASKING}:Ordered").traits, per_image=True)

    assert "kept tokens of two images stand mixed" in judged(ONE_BY_ONE, Across).detail


def test_tokens_that_are_no_sums_of_the_prompt_are_seen() -> None:
    shifted = remade(COMBINATIONS, added=lambda r: r.added + 0.1)
    assert "no sums of visual ones" in shifted.detail
    assert "no sums of visual ones" in remade(COMBINATIONS, values=lambda r: r.values.tanh()).detail
    assert remade(COMBINATIONS, added=lambda r: 2 * r.added).status == "ok"


def test_the_kit_has_a_property_for_questions() -> None:
    assert len(PROPERTIES) == 29
