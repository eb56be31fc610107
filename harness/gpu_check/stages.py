"""The stages: each fills `report.result`, names what is wrong in `report.failed`, and saves as it goes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.gpu_check import fixture, house, plan, timing
from harness.gpu_check.plan import MethodAtBudget, Size


class Report(Protocol):
    """What a stage writes to; `left()` are the seconds it still has, `save()` writes what there is."""

    result: dict[str, Any]
    failed: list[str]
    device: str
    size: Size
    out: Path

    def left(self) -> float: ...

    def save(self) -> None: ...


def freed() -> None:
    """Give the memory of models that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------------------- equal

COMPARED = ("committed", "batched", "shared")


def differing(got: Mapping[str, str], want: Mapping[str, str]) -> list[str]:
    """The questions of `got` whose answers are others in `want`."""
    return [key for key, answer in got.items() if answer != want[key]]


def equal(report: Report) -> None:
    """`none` equals the bare model, batches equal singles, shared prefixes equal none, and answers equal the committed
    ones."""
    held = fixture.read()
    questions = house.questions_of(held, report.size.questions)
    report.result |= {
        "questions": len(questions),
        "near_ties_allowed": plan.NEAR_TIES,
        "floors": [plan.ARM_FLOOR, plan.FLOOR],
    }
    report.result |= {"tf32": house.tf32(), "dtypes": {}}
    for dtype in report.size.dtypes:
        asked = house.HouseReply(report.device, dtype)
        rows: list[dict[str, Any]] = []
        bare, none = (asked.logits(questions[:4], arm) for arm in (None, plan.NONE))
        gap = float((bare - none).abs().max() / bare.abs().max())
        if not gap <= plan.LOGITS_SHARE[dtype]:
            report.failed.append(
                f"{dtype}: `none` and the bare model differ by {gap:.1e} of the largest logit, allowed"
                f" {plan.LOGITS_SHARE[dtype]}"
            )
        found: dict[str, Any] = {"none_from_bare": gap, "arms": rows}
        report.result["dtypes"][dtype] = found
        for arm in report.size.arms:
            rows.append(_compared(asked, arm, questions, held["answers"], report.size.singles))
            report.save()
        found |= {"differing": {what: sum(row[what] for row in rows) for what in COMPARED}}
        found |= {"of": {what: sum(row["of"][what] for row in rows) for what in COMPARED}}
        report.failed += _too_many(dtype, rows, found["differing"], found["of"])
        del asked
        freed()


def _compared(
    asked: house.HouseReply,
    arm: MethodAtBudget,
    questions: Sequence[Any],
    answers: Mapping[str, Mapping[str, str]],
    singles: int,
) -> dict[str, Any]:
    """How many answers differ, and of how many (`of`): from the committed ones, of a batch from singles, with shared
    prefixes from without."""
    got = asked.answers(arm, questions)
    alone = asked.answers(arm, questions[:singles], batch=1)
    shared = asked.answers(arm, questions, share=True)
    named = arm.label if arm.answers is None else arm.answers
    wrong = differing(got, answers[named]) if named else []
    return {
        "arm": arm.label,
        "of": {"committed": len(questions) if named else 0, "batched": len(alone), "shared": len(questions)},
        "committed": len(wrong),
        "batched": len(differing(alone, got)),
        "shared": len(differing(shared, got)),
        "examples": [{"question": key, "found": got[key], "committed": answers[named][key]} for key in wrong[:3]],
    }


def _too_many(
    dtype: str, rows: Sequence[Mapping[str, Any]], sums: Mapping[str, int], of: Mapping[str, int]
) -> list[str]:
    if dtype == "float32":
        return [
            f"float32: {n} answers differ ({what}), allowed {plan.NEAR_TIES} near ties; first"
            f" {next(r['arm'] for r in rows if r[what])}"
            for what, n in sums.items()
            if n > plan.NEAR_TIES
        ]
    said = []
    for what in sums:
        shares = [(row["arm"], 1 - row[what] / row["of"][what]) for row in rows if row["of"][what]]
        low = [(arm, share) for arm, share in shares if share < plan.ARM_FLOOR]
        said += [
            f"{dtype}: {arm}: {share:.2f} of the answers equal ({what}), floor {plan.ARM_FLOOR}" for arm, share in low
        ]
        whole = 1 - sums[what] / of[what]
        if whole < plan.FLOOR:
            said.append(f"{dtype}: {whole:.2f} of all answers equal ({what}), floor {plan.FLOOR}")
    return said


# -------------------------------------------------------------------------------------------------------------- goldens


def goldens(report: Report) -> None:
    """Recorded outputs of official implementations, in float32 without TF32, or in float64 where they were recorded
    so."""
    tolerance = plan.GOLDEN_TOLERANCE if report.device == "cuda" else None
    cases = []
    with house.exact_float32():
        for case in house.replayed(report.device, report.size.goldens, tolerance):
            cases.append(case._asdict())
            if case.mismatch:
                report.failed.append(f"{case.case}: {case.mismatch}")
    worst = max(cases, key=lambda case: case["largest"])
    report.result |= {
        "tolerance": tolerance or "the replay's own",
        "cases": len(cases),
        "largest": worst,
        "differences": cases,
    }
    freed()


# ---------------------------------------------------------------------------------------------------------------- sweep


def sweep(report: Report) -> None:
    """Questions through prefixes and features as a sweep asks them, and the share of time in which the device
    worked."""
    held = fixture.read()
    questions = house.questions_of(held, report.size.questions)
    asked, rows = house.HouseReply(report.device, "auto"), list[dict[str, Any]]()
    for arm in report.size.sweep_arms:
        seen = timing.busy(
            partial(asked.answers, arm, questions, batch=16, share=True), report.device, report.size.busy_repeats
        )
        rows.append({"arm": arm.label, **_shares(seen), "questions_per_s": 1000 * len(questions) / seen.wall_ms})
        report.failed += _unseen(arm.label, seen)
        report.result |= {"questions": len(questions), "rows": rows, "busy_share": _mean_share(rows)}
        report.save()
    freed()


def _shares(seen: timing.BusyTime) -> dict[str, Any]:
    return {**seen._asdict(), "busy_share": seen.busy_share, "gap_share": 1 - seen.busy_share}


def _mean_share(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(row["busy_share"] * row["wall_ms"] for row in rows) / sum(row["wall_ms"] for row in rows))


def _unseen(label: str, seen: timing.BusyTime) -> list[str]:
    return (
        []
        if seen.n
        else [f"{label}: expected kernels in the profile, found none: the profiler does not see this device"]
    )


# ---------------------------------------------------------------------------------------------------------------- bench


def bench(report: Report) -> None:
    """`prunebench bench` at real sizes with random weights, repeats by the time that is left, then the host's gaps in
    each prefill."""
    settings = {**report.size.bench, "device": report.device}
    gaps: list[dict[str, Any]] = []
    for prefill in house.prefills(settings):
        seen = timing.busy(prefill.run, report.device, report.size.busy_repeats)
        gaps.append({"contender": prefill.label, "batch": prefill.batch, **_shares(seen)})
        report.failed += _unseen(f"{prefill.label} at batch {prefill.batch}", seen)
    report.result["host_gaps"] = gaps
    freed()
    began = time.monotonic()
    first = house.measured({**settings, "repeats": 1, "warmup": 1}, report.out / "bench")
    took = time.monotonic() - began
    report.result |= {"repeats": 1, **_kept(first)}
    report.save()
    freed()
    # one turn of all contenders is at most half of what the first measurement took; a tenth is kept for the model and
    # for writing
    repeats = min(report.size.repeats, int(0.9 * report.left() / (took / 2)) - 1)
    if repeats > 1:
        result = house.measured({**settings, "repeats": repeats, "warmup": 1}, report.out / "bench")
        report.result |= {"repeats": repeats, **_kept(result)}
        first = result
    report.failed += timing.bench_faults(first)
    freed()


def families(report: Report) -> None:
    """A model whose images differ in tokens, with random weights: `none` against the bare model, and each method's
    times at a share of the tokens."""
    settings = house.of_family({**report.size.family, "device": report.device}, report.out / "family")
    gap = house.none_from_bare(settings)
    allowed = plan.LOGITS_SHARE[settings["dtype"]]
    report.result |= {"model": report.size.family["model"], "none_from_bare": gap}
    if not gap <= allowed:
        report.failed.append(f"`none` and the bare model differ by {gap:.1e} of the largest logit, allowed {allowed}")
    report.save()
    freed()
    result = house.measured({**settings, "warmup": 1}, report.out / "families")
    report.result |= _kept(result)
    report.failed += timing.bench_faults(result)
    freed()


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage's own file repeats of bench.json."""
    names = (
        "name",
        "budget",
        "prefill_speedup",
        "decode_speedup",
        "flops_ratio",
        "realised_share",
        "peak_bytes",
        "kv_bytes",
    )
    medians = ("vision_ms", "prefill_ms", "decode_ms_per_token")
    batches = [
        {
            "batch": one["batch"],
            "overhead": one["overhead"],
            "rows": [{**{n: row[n] for n in names}, **{m: row[m]["median"] for m in medians}} for row in one["rows"]],
        }
        for one in result["batches"]
    ]
    return {"command": result["command"], "weights_bytes": result["weights_bytes"], "batches": batches}


STAGES: Mapping[str, Callable[[Any], None]] = {
    "equal": equal,
    "goldens": goldens,
    "sweep": sweep,
    "families": families,
    "bench": bench,
}
