"""POPE's numbers from answers, targets and subsets, by two rules for reading an answer; without data or lmms-eval.

lmms-eval reads "yes" and "no" and nothing else, and leaves every other answer out of recall: one right answer among
ninety that say neither gives it F1 = 1. Here such an answer is wrong. It is no predicted yes, so precision does not see
it. It misses its question, so a question whose truth is yes lowers recall and F1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Counts(NamedTuple):
    """Questions by their truth and by how they were answered."""

    total: int
    right: int
    yes: int
    """The truth is yes."""
    said_yes: int
    """The answer is yes."""
    found: int
    """Both are yes."""

    def metrics(self) -> dict[str, float | None]:
        """Shares from 0 to 1; None where there is nothing to divide by."""
        return {
            "accuracy": _share(self.right, self.total),
            "precision": _share(self.found, self.said_yes),
            "recall": _share(self.found, self.yes),
            # the harmonic mean of both, written so that a model that never says yes has 0 rather than nothing
            "f1_score": _share(2 * self.found, self.said_yes + self.yes),
            "yes_ratio": _share(self.said_yes, self.total),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def exact(answer: str) -> str:
    """The answer as lmms-eval reads it; one that is neither "yes" nor "no" equals no target."""
    return answer.lower().strip()


def llava(answer: str) -> str:
    """The answer by the rule of LLaVA's evaluation (llava/eval/eval_pope.py at 4241f08): "no" where the first sentence
    holds the word No, no or not, else "yes". Its answers come stripped."""
    first = answer.strip().partition(".")[0].replace(",", "")
    return "no" if {"No", "no", "not"} & set(first.split(" ")) else "yes"


def count(answers: Iterable[str], targets: Iterable[str], read: Callable[[str], str]) -> Counts:
    """Count pairs of an answer and its target, which is "yes" or "no" in any case."""
    pairs = [(read(answer), exact(target)) for answer, target in zip(answers, targets, strict=True)]
    return Counts(
        total=len(pairs),
        right=sum(said == true for said, true in pairs),
        yes=sum(true == "yes" for _, true in pairs),
        said_yes=sum(said == "yes" for said, _ in pairs),
        found=sum(said == true == "yes" for said, true in pairs),
    )


def metrics(answers: Sequence[str], targets: Sequence[str], subsets: Sequence[str]) -> dict[str, float | None]:
    """`pope_*` over all questions, `pope_*/SUBSET` for each subset, and `pope_*_mean`: the mean over subsets, as papers
    print it. `llava/pope_*` holds accuracy and F1 by LLaVA's rule. A mean is None where a subset's number is."""
    whole, parts, means = _by_subset(answers, targets, subsets, exact)
    out = {f"pope_{name}": value for name, value in whole.items()}
    out |= {f"pope_{name}/{subset}": value for subset, part in parts.items() for name, value in part.items()}
    out |= {f"pope_{name}_mean": value for name, value in means.items()}
    whole, _, means = _by_subset(answers, targets, subsets, llava)
    return out | {
        "llava/pope_accuracy": whole["accuracy"],
        "llava/pope_f1_score": whole["f1_score"],
        "llava/pope_f1_score_mean": means["f1_score"],
    }


_Numbers = dict[str, float | None]


def _by_subset(
    answers: Sequence[str], targets: Sequence[str], subsets: Sequence[str], read: Callable[[str], str]
) -> tuple[_Numbers, dict[str, _Numbers], _Numbers]:
    """Over all questions, for each subset, and the mean over subsets."""
    parts = {}
    for subset in sorted(set(subsets)):
        rows = [i for i, name in enumerate(subsets) if name == subset]
        parts[subset] = count([answers[i] for i in rows], [targets[i] for i in rows], read).metrics()
    whole = count(answers, targets, read).metrics()
    return whole, parts, {name: _mean([part[name] for part in parts.values()]) for name in whole}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
