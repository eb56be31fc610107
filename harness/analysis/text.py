"""An analysis as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.analysis.stages import TEXT


def report(document: Mapping[str, Any]) -> str:
    """What a terminal shows: the stages and one line per layer."""
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

    by_cut = {(k["kind"], k["start"], k["end"]): k for k in document["knockouts"]}
    depth = document["depth"]
    rows = []
    for entry in document["layers"]:
        l = entry["layer"]
        single, prefix, suffix = (by_cut.get((TEXT, *span)) for span in ((l, l + 1), (0, l + 1), (l, depth)))
        rows.append(
            [
                l,
                entry["mass_visual_last"],
                entry["entropy"],
                entry["sink_share"],
                entry["lens_answer_p"],
                entry["contribution"]["cosine_lowest"],
                *(
                    None if k is None else 100 * k[what]
                    for k, what in ((single, "flips"), (prefix, "accuracy"), (suffix, "flips"))
                ),
            ]
        )
    heads = [
        "layer",
        "visual mass\n(last row)",
        "entropy\n(nats)",
        "share on\nsinks",
        "answer\n(lens)",
        "lowest\ncosine",
        "% flips\ncut alone",
        "% accuracy\ncut 0..layer",
        "% flips\nvision gone",
    ]
    text: str = tabulate(
        rows, headers=heads, floatfmt=("d", ".3f", ".2f", ".3f", ".3f", ".4f", ".1f", ".1f", ".1f"), missingval="-"
    )
    text += f"\n\nunpruned accuracy {100 * document['accuracy']['mean']:.1f} % of {document['n_samples']} questions"
    if "n_visual_range" in document:
        fewest, most = document["n_visual_range"]
        text += f"\nprompts of {fewest} to {most} visual tokens, {document['n_visual']:.1f} on average"
    found = document["stages"]
    if found:
        text += (
            f"\nshallow: {found['shallow_end']} layers; fusion: {', '.join(map(str, found['fusion'])) or 'none'}; "
            f"vision not needed from layer {found['not_needed_from']}"
        )
    pruner = document.get("visipruner")
    if pruner is not None:
        text += f"\nvisipruner on {pruner['questions']} questions:"
        for name in ("unpruned", "calibrated", "scaled_defaults"):
            accuracy = ", ".join(f"{task} {100 * value:.1f} %" for task, value in pruner[name]["by_task"].items())
            cost = f"{100 * pruner[name]['flops']:.1f} % of unpruned FLOPs, {pruner[name]['kept']:.1f} tokens kept"
            text += f"\n  {name.replace('_', ' ')}: {accuracy}; {cost}"
    return text
