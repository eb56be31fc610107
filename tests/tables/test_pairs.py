"""Method against method in tables: every pair at an equal budget, its family, the matrix, and models side by side."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats
from factories import answered

from harness.core import stats
from harness.store.sealed import SealedCell
from harness.tables import compare, leaderboard, markdown, matrix, models, pairs, sides
from harness.tables import sections as blocks
from harness.tables.compare import Comparison
from harness.tables.kept import Kept


def paired(*cells: SealedCell, kept: Kept | None = None) -> list[Comparison]:
    (section,) = blocks.sections(blocks.distinct(cells))
    return pairs.study_pairs(section, kept)[1]


def one(found: list[Comparison], line: str, against: str, task: str = "pope") -> Comparison:
    (c,) = [c for c in found if (c.line, c.against, c.task) == (line, against, task)]
    return c


def right(n: int, wrong: int) -> list[float]:
    """n answers of which the first `wrong` are wrong."""
    return [float(i >= wrong) for i in range(n)]


def test_a_pair_has_the_numbers_of_a_hand_count_and_holm_over_the_pairs_of_its_budget(tmp_path: Path) -> None:
    """Three lines make three pairs: 6, 10 and 16 discordant questions, all of one direction."""
    cells = [answered(tmp_path, m, "64", right(100, w)) for m, w in (("dart", 0), ("fastv", 6), ("first", 16))]
    found = paired(*cells)
    assert [(c.line, c.against) for c in found] == [("dart", "fastv"), ("dart", "first"), ("fastv", "first")]
    by_hand = {("dart", "fastv"): 2 / 2**6, ("dart", "first"): 2 / 2**16, ("fastv", "first"): 2 / 2**10}
    assert {(c.line, c.against): c.p for c in found} == pytest.approx(by_hand)
    # Holm: the smallest times 3, the next times 2, the largest as it is
    corrected = {("dart", "fastv"): 2 / 2**6, ("dart", "first"): 6 / 2**16, ("fastv", "first"): 4 / 2**10}
    assert {(c.line, c.against): c.p_holm for c in found} == pytest.approx(corrected)
    c = one(found, "dart", "fastv")
    assert (c.n, c.images, c.better, c.worse, c.difference) == (100, 50, 6, 0, pytest.approx(6))
    assert c.low <= 6 <= c.high
    assert one(found, "dart", "first").verdict == compare.ABOVE


def test_a_pair_says_the_reverse_of_the_other_order(tmp_path: Path) -> None:
    """Names decide which line comes first: with the answers exchanged, each number is the other's."""
    scores = right(60, 20), [float(i % 4 > 0) for i in range(60)]
    (c,) = paired(*(answered(tmp_path / "a", m, "64", s) for m, s in zip(("dart", "fastv"), scores, strict=True)))
    (d,) = paired(*(answered(tmp_path / "b", m, "64", s) for m, s in zip(("fastv", "dart"), scores, strict=True)))
    assert (c.line, d.line) == ("dart", "dart")
    assert (c.better, c.worse, c.p) == (d.worse, d.better, d.p)
    assert (c.low, c.difference, c.high) == pytest.approx((-d.high, -d.difference, -d.low))


def test_families_are_the_pairs_of_a_budget_and_do_not_touch_those_against_references(tmp_path: Path) -> None:
    base, lost = right(40, 0), right(40, 6)  # p = 2 / 2^6
    cells = [answered(tmp_path, "none", "none", base, t) for t in ("pope", "gqa")]
    for budget in ("64", "32"):
        for method, scores in (("dart", base), ("fastv", lost), ("random", base)):
            cells += [answered(tmp_path, method, budget, scores, t) for t in ("pope", "gqa")]
    (section,) = blocks.sections(blocks.distinct(cells))
    found, two = pairs.study_pairs(section)
    assert found.comparisons == compare.study(section).comparisons
    at_tasks = [c for c in two if c.task != compare.AVERAGE]
    assert {(c.budget, c.line, c.against) for c in two} == {("64", "dart", "fastv"), ("32", "dart", "fastv")}, (
        "a pair with `random` is a comparison with `random`"
    )
    assert [c.p_holm for c in at_tasks] == [pytest.approx(2 * 2 / 2**6)] * 4, "two tasks of one budget, not four"
    averages = [c for c in two if c.task == compare.AVERAGE]
    assert [c.p_holm for c in averages] == [c.p for c in averages], "one average a budget"


def test_an_average_of_a_pair_is_the_difference_of_both_averages(tmp_path: Path) -> None:
    tasks = ("pope", "gqa")
    cells = [answered(tmp_path, "none", "none", right(80, 0), t) for t in tasks]
    cells += [answered(tmp_path, m, "64", right(80, w), t) for t in tasks for m, w in (("dart", 8), ("fastv", 40))]
    (section,) = blocks.sections(blocks.distinct(cells))
    c = one(paired(*cells), "dart", "fastv", compare.AVERAGE)
    averages = {line.name: blocks.average(line, section) for line in section.blocks()[1].lines}
    assert c.difference == pytest.approx(averages["dart"] - averages["fastv"]) == pytest.approx(40)
    assert (c.low < 40 < c.high, c.n, c.images, c.verdict) == (True, 160, 80, compare.ABOVE)
    assert c.p == pytest.approx(2 / 20_001)
    assert math.isnan(c.better)
    without = [s for s in cells if (s.cell.method, s.cell.task) != ("dart", "gqa")]
    assert [c.task for c in paired(*without)] == ["pope"], "a task is missing"


def test_the_average_of_one_task_is_that_task(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "none", "none", right(80, 20))]
    cells += [answered(tmp_path, m, "64", right(80, w)) for m, w in (("dart", 24), ("fastv", 60))]
    alone, average = (one(paired(*cells), "dart", "fastv", t) for t in ("pope", compare.AVERAGE))
    assert (average.p, average.p_holm, average.verdict) == (alone.p, alone.p_holm, alone.verdict)
    assert average.difference == pytest.approx(alone.difference / 0.75), "in % of an unpruned score of 75 %"


def test_seeds_are_all_in_a_pair(tmp_path: Path) -> None:
    """The second setting of `random` has three seeds: p is twice the median over pairs of seeds."""
    cells = [answered(tmp_path, "fastv", "64", right(80, 24))]
    cells += [answered(tmp_path, "random", "64", right(80, 0), seed=i, knobs={"boundary": 0}) for i in range(4)]
    drawn = (8, 40, 48)
    cells += [
        answered(tmp_path, "random", "64", right(80, w), seed=i, knobs={"boundary": 2}) for i, w in enumerate(drawn)
    ]
    c = one(paired(*cells), "fastv", "random boundary=2")
    each = sorted(scipy.stats.binomtest(0, abs(w - 24)).pvalue for w in drawn)
    assert c.p == pytest.approx(min(1, 2 * each[1]))
    assert c.difference == pytest.approx(100 * (sum(drawn) / 3 - 24) / 80)
    assert not [c for c in paired(*cells) if "random boundary=0" in (c.line, c.against)], "the reference"


@pytest.mark.parametrize("budget", ["native", "calibrated", "none"])
def test_a_budget_without_a_number_has_no_pairs(budget: str, tmp_path: Path) -> None:
    assert paired(*(answered(tmp_path, m, budget, right(40, w)) for m, w in (("dart", 0), ("fastv", 20)))) == []
    assert len(paired(*(answered(tmp_path, m, "64avg", right(40, w)) for m, w in (("dart", 0), ("fastv", 20))))) == 1


def test_few_images_give_no_verdict(tmp_path: Path) -> None:
    n = stats.FEW - 1
    (c,) = paired(*(answered(tmp_path, m, "64", right(n, w), per_image=1) for m, w in (("dart", 0), ("fastv", 9))))
    assert (c.verdict, math.isnan(c.low)) == (compare.TOO_FEW, True)


def test_a_block_with_very_many_lines_has_no_pairs_and_says_so(tmp_path: Path) -> None:
    def cells(n: int) -> list[SealedCell]:
        return [answered(tmp_path, f"m{i:02}", "64", right(20, i % 7), knobs={"i": i}) for i in range(n)]

    most = pairs.MOST
    assert len(paired(*cells(most))) == most * (most - 1) // 2
    assert paired(*cells(most + 1)) == []
    (section,) = blocks.sections(blocks.distinct(cells(most + 1)))
    (block,) = section.blocks()
    (said,) = matrix.matrix_text(section, block, compare.study(section), [])
    assert said == (
        f"No matrix: {most + 1} lines have this budget, and pairs are made of at most {most}. `prunebench compare`"
        " compares any two."
    )
    assert (most + 1) * most / 2 / 10_000 > 0.05 >= most * (most - 1) / 2 / 10_000, "why this many"


def test_pairs_come_from_the_cache_and_nothing_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ("pope", "gqa")
    cells = [answered(tmp_path, "none", "none", right(40, 0), t) for t in tasks]
    cells += [answered(tmp_path, m, "64", right(40, w), t) for t in tasks for m, w in (("dart", 4), ("fastv", 20))]
    kept = Kept(tmp_path / "r")
    before = paired(*cells, kept=kept)
    kept.save()
    monkeypatch.setattr(stats, "resample_together", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(stats, "quantiles", lambda *_: pytest.fail("computed again"))
    assert repr(paired(*cells, kept=Kept(tmp_path / "r"))) == repr(before)


def test_significance_csv_holds_each_pair_once_behind_what_was_there(tmp_path: Path) -> None:
    cells = [answered(tmp_path / "c", "none", "none", right(40, 0))]
    cells += [answered(tmp_path / "c", m, "64", right(40, w)) for m, w in (("dart", 4), ("fastv", 20), ("random", 9))]
    leaderboard.write(cells, tmp_path)
    frame = pd.read_csv(tmp_path / "significance.csv", keep_default_na=False)
    named = frame[~frame["against"].isin(["none", "random"])]
    assert named[["line", "against", "task"]].values.tolist() == [
        ["dart", "fastv", "pope"],
        ["dart", "fastv", compare.AVERAGE],
    ]
    assert frame.index[frame["against"] == "fastv"].min() == len(frame) - 2
    assert not frame.duplicated(["section", "budget", "line", "task", "against"]).any()


# ------------------------------------------------------------------------------------------------------------ matrix


def fake(line: str, against: str, verdict: str) -> Comparison:
    return Comparison("64", line, compare.AVERAGE, against, 9, 9, 0, 0, 0, 0, 0, 1, 1, verdict)


def test_each_sign_of_the_matrix() -> None:
    found = [
        fake("a", "b", compare.ABOVE),
        fake("a", "c", compare.BELOW),
        fake("b", "c", compare.SAME),
        fake("a", "d", compare.OPEN),
        fake("b", "d", compare.TOO_FEW),
    ]
    assert matrix.signs("abcd", found) == [
        ["", ">", "<", "≈"],
        ["<", "", "≈", ""],
        [">", "≈", "", ""],
        ["≈", "", "", ""],
    ]


def test_a_matrix_is_in_the_order_of_the_average_and_holds_random(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "none", "none", right(120, 0))]
    lost = {"dart": 100, "fastv": 0, "random": 50, "first": 52}
    cells += [answered(tmp_path, m, "64", right(120, w)) for m, w in lost.items()]
    (section,) = blocks.sections(blocks.distinct(cells))
    found, two = pairs.study_pairs(section)
    heading, rule, text = matrix.matrix_text(section, section.blocks()[1], found, two)
    assert (heading, rule) == ("#### Method against method", matrix.RULE)
    assert max(len(sentence.split()) for sentence in rule.split(". ")) <= 25
    assert text.splitlines() == [
        "```",
        "           1  2  3  4",
        " 1 fastv   .  >  >  >",
        " 2 random  <  .  ≈  >",
        " 3 first   <  ≈  .  >",
        " 4 dart    <  <  <  .",
        "```",
    ]


def test_a_task_that_is_missing_is_blank(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "none", "none", right(60, 0), t) for t in ("pope", "gqa")]
    for method, tasks in (("dart", ("pope", "gqa")), ("fastv", ("pope", "gqa")), ("first", ("pope",))):
        cells += [answered(tmp_path, method, "64", right(60, len(method) * 6), t) for t in tasks]
    (section,) = blocks.sections(blocks.distinct(cells))
    found, two = pairs.study_pairs(section)
    *_, text = matrix.matrix_text(section, section.blocks()[1], found, two)
    assert text.splitlines()[1:-1] == ["          1  2  3", " 1 dart   .  >", " 2 fastv  <  .", " 3 first        ."]


def test_twenty_methods_fit_the_terminal_whatever_their_names(tmp_path: Path) -> None:
    names = [f"a-method-with-a-very-long-name-{i} boundary={i} `x`" * 2 for i in range(20)]
    text = matrix.drawn(names, [["≈"] * 20] * 20)
    assert max(map(len, text.splitlines())) == matrix.WIDTH
    assert len(text.splitlines()) == 21


def test_a_line_of_a_matrix_has_its_name_over_all_budgets_and_compare_takes_it(tmp_path: Path) -> None:
    """At 64 nothing tells the setting of `dart` apart; at 32 there are two."""
    knobs = {"relevance": "clip"}, {"relevance": "none"}
    cells = [answered(tmp_path, "none", "none", right(60, 0)), answered(tmp_path, "fastv", "64", right(60, 9))]
    cells += [answered(tmp_path, "dart", "64", right(60, 3), knobs=knobs[0])]
    cells += [answered(tmp_path, "dart", "32", right(60, w), knobs=k) for w, k in zip((12, 24), knobs, strict=True)]
    known = blocks.distinct(cells)
    (section,) = blocks.sections(known)
    block = next(block for block in section.blocks() if block.budget == "64")
    found, two = pairs.study_pairs(section)
    *_, text = matrix.matrix_text(section, block, found, two)
    assert text.splitlines()[2].startswith(' 1 dart relevance="clip"  .')
    ((side, _),) = sides.resolve(['dart relevance="clip"@64', "fastv@64"], [sides.Folder(tmp_path, known, [])])
    assert side.cells["pope"][0].cell.knobs == knobs[0]


def test_names_of_very_many_lines_stay_apart() -> None:
    names = ['cdpruner relevance="clip"', 'cdpruner relevance="none"', *(f"m{i}" for i in range(30))]
    rows = matrix.drawn(names, [["≈"] * 32] * 32).splitlines()[1:]
    assert max(map(len, rows)) <= matrix.WIDTH
    assert len({row[4:14] for row in rows}) == 32


def test_the_legend_names_the_signs_of_a_matrix_and_none_has_two_meanings(tmp_path: Path) -> None:
    assert "**>** better, **<** worse, **≈** not told apart, blank not measured" in markdown.FOOTER
    assert "**-**: not measured" in markdown.FOOTER
    assert "-" not in (matrix.BETTER, matrix.WORSE, matrix.ALIKE)


def test_a_leaderboard_has_a_matrix_per_budget_and_none_without_pairs(tmp_path: Path) -> None:
    cells = [answered(tmp_path / "c", "none", "none", right(40, 0))]
    cells += [
        answered(tmp_path / "c", m, b, right(40, w)) for b in ("64", "32") for m, w in (("dart", 4), ("fastv", 20))
    ]
    cells.append(answered(tmp_path / "c", "dart", "16", right(40, 9)))
    _, page = leaderboard.write(cells, tmp_path)
    text = page.read_text()
    assert text.count(matrix.RULE) == 2
    assert matrix.RULE not in text.partition("### budget 16")[2]


# ------------------------------------------------------------------------------------------------------------ models


def test_several_models_have_a_row_per_method_and_model(tmp_path: Path) -> None:
    cells = []
    for model, lost in (("org/a", 10), ("org/b", 20)):
        root = tmp_path / model
        cells += [answered(root, m, "64", right(40, w), model=model) for m, w in (("dart", lost), ("fastv", 0))]
        cells += [answered(root, "none", "none", right(40, 0), model=model)]
    cells.append(answered(tmp_path / "t", "dart", "64", right(10, 0), model="org/a"))  # a try on fewer questions
    _, page = leaderboard.write(cells, tmp_path)
    text = page.read_text()
    assert text.index("## Models") < text.index("## org/a")
    rows = [
        line.split(" | ") for line in text.partition("## Models")[2].partition("## org")[0].splitlines() if "|" in line
    ]
    assert [[cell.strip("| ") for cell in row[:5]] for row in rows[2:]] == [
        ["64", "dart", "org/a", "1", rows[2][4]],
        ["64", "dart", "org/b", "1", rows[3][4]],
        ["64", "fastv", "org/a", "1", rows[4][4]],
        ["64", "fastv", "org/b", "1", rows[5][4]],
    ]
    assert [row[4].split()[0] for row in rows[2:]] == ["75.0", "50.0", "100.0", "100.0"]
    assert models.NOTE in text


def test_one_model_has_no_summary_and_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    def studied(*prints: str) -> list[str]:
        cells = [
            answered(tmp_path / p, m, b, right(40, 0), model_fingerprint=p)
            for p in prints
            for m, b in (("none", "none"), ("dart", "64"))
        ]
        found = [(section, None) for section in blocks.sections(blocks.distinct(cells))]
        return models.models_text(found)

    assert studied("abcdef123") == []
    table = studied("abcdef123", "123456abc")[2]
    assert "mini abcdef" in table
    assert "mini 123456" in table
