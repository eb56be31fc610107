"""Figures of an analysis, drawn from its JSON document alone: attention, lenses, knock-outs with the stages,
contributions.

The same document gives the same bytes: no dates, fixed ids, text as text.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis.stages import TEXT, VISION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by everyone
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
#: shallow, fusion, not needed: pale enough to read lines on
BANDS = {"shallow": "#E8EEF4", "fusion": "#FDF0D5", "not needed": "#E7F3EA"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 16,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "prunebench",
}
DPI = 120


def draw(document: Mapping[str, Any], out: Path) -> list[dict[str, str]]:
    """Write every figure of `document` to `out` as SVG and PNG; -> file (the SVG, relative to `out`), png, title and
    alternative text."""
    drawn = []
    for name, title, make in (
        ("attention", "Attention to visual tokens per layer", _attention),
        ("lens", "When the answer becomes readable", _lens),
        ("knockouts", "What is lost when attention is cut", _knockouts),
        ("contributions", "What single visual tokens contribute", _contributions),
    ):
        with _figure() as plt:
            figure, alt = make(document, plt)
            figure.savefig(out / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            _save_png(figure, out / f"{name}.png")
            plt.close(figure)
        drawn.append({"file": f"{name}.svg", "png": f"{name}.png", "title": title, "alt": alt})
    return drawn


def _save_png(figure: Figure, file: Path) -> None:
    """With a palette: a third of the size, and no difference to see."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(file, optimize=True)


@contextmanager
def _figure() -> Iterator[Any]:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        matplotlib.use("Agg")
        from matplotlib import pyplot

        yield pyplot


def _column(entries: Sequence[Mapping[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if e.get(name) is None else e[name] for e in entries], dtype=float)


def _line(
    axes: Axes,
    entries: Sequence[Mapping[str, Any]],
    name: str,
    colour: str,
    label: str,
    marker: str = "o",
    scale: float = 1,
) -> None:
    """A mean per layer with its 95 % interval as a band."""
    at = np.flatnonzero(~np.isnan(_column(entries, name)))
    mean, low, high = (scale * _column(entries, n)[at] for n in (name, f"{name}_low", f"{name}_high"))
    axes.plot(at, mean, color=colour, marker=marker, label=label)
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)


def _layers_axis(axes: Axes, depth: int, label: str = "decoder layer") -> None:
    step = 1 if depth <= 16 else 2 if depth <= 26 else 4
    axes.set_xticks(range(0, depth, step))
    axes.set_xlim(-0.5, depth - 0.5)
    axes.set_xlabel(label)


def _bands(axes: Axes, document: Mapping[str, Any]) -> None:
    """The stages as shaded layers, named above the axes."""
    found = document["stages"]
    if not found:
        return
    depth = document["depth"]
    spans = [("shallow", l) for l in range(found["shallow_end"])]
    spans += [("not needed", l) for l in range(found["not_needed_from"], depth)]
    spans += [("fusion", l) for l in found["fusion"]]
    for stage, layer in spans:
        axes.axvspan(layer - 0.5, layer + 0.5, color=BANDS[stage], linewidth=0, zorder=0)
    for stage in BANDS:
        at = [l for s, l in spans if s == stage]
        if at:
            axes.text(
                (min(at) + max(at)) / 2,
                1.015,
                stage,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=GREY,
            )


def _head(document: Mapping[str, Any]) -> str:
    n, images = document["n_samples"], document["split"]["images"]
    return f"{document['model']}, {n} questions about {images} images. Around the lines: 95 % intervals over images"


def _caption(figure: Figure, text: str) -> None:
    figure.text(0.01, -0.01, text, fontsize=7.5, color=GREY, va="top", linespacing=1.35)


def _attention(document: Mapping[str, Any], plt: Any) -> tuple[Figure, str]:
    layers, depth = document["layers"], document["depth"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.2, 2.9), layout="constrained")
    for axes in (left, middle, right):
        _bands(axes, document)
        _layers_axis(axes, depth)
    _line(left, layers, "mass_visual_last", BLUE, "last token")
    _line(left, layers, "mass_visual_question", ORANGE, "all text behind the image", "s")
    left.set_ylim(0, 1)
    left.set_title("Attention mass on visual tokens")
    _line(middle, layers, "entropy", BLUE, "last token")
    _line(middle, layers, "entropy_question", ORANGE, "all text behind the image", "s")
    most = float(document.get("entropy_uniform", np.log(document["n_visual"])))
    middle.axhline(most, color=GREY, linewidth=0.9, linestyle=":")
    middle.text(depth - 0.6, most, f"uniform: {most:.2f}", ha="right", va="bottom", fontsize=7.5, color=GREY)
    middle.set_ylim(0, 1.12 * most)
    middle.set_title("Entropy over visual tokens (nats)")
    _line(right, layers, "sink_share", PURPLE, "share of visual attention on sinks")
    right.set_ylim(0, max(0.05, 1.25 * float(np.nanmax(_column(layers, "sink_share_high")))))
    right.set_title("Last token's share on sinks")
    most_on_sinks = float(np.nanmax(_column(layers, "sink_share")))
    if most_on_sinks < 0.005:
        said = (
            f"at most {100 * most_on_sinks:.2g} % goes to sinks"
            if _column(layers, "n_sinks").any()
            else "no visual token is a sink"
        )
        right.text(0.5, 0.5, said, transform=right.transAxes, ha="center", fontsize=8.5, color=GREY)
    left.legend(loc="best")
    middle.legend(loc="lower right")
    counts, rules = _column(layers, "n_sinks"), document["rules"]
    _caption(
        figure,
        f"{_head(document)}.\nSinks: residual norm over {rules['sink_norm']:g} x the median visual token's, or a place"
        f" that draws over {rules['sink_draw']:g} x its share in half of the samples; {counts.min():.1f} to"
        f" {counts.max():.1f} tokens a layer.",
    )
    mass = _column(layers, "mass_visual_last")
    alt = (
        f"Three line charts over {depth} decoder layers. The last token's attention mass on visual tokens goes from"
        f" {mass[0]:.2f} in layer 0 to {mass[-1]:.2f} in the last, largest in layer {int(mass.argmax())}"
        f" ({mass.max():.2f}); its entropy over visual tokens is smallest in layer"
        f" {int(_column(layers, 'entropy').argmin())}; the share on sinks is at most {most_on_sinks:.2g}."
    )
    return figure, alt


def _lens(document: Mapping[str, Any], plt: Any) -> tuple[Figure, str]:
    layers, depth = document["layers"], document["depth"]
    figure, axes = plt.subplots(figsize=(6.4, 3.3), layout="constrained")
    _bands(axes, document)
    _line(axes, layers, "lens_answer_p", BLUE, "residual stream behind the layer (logit lens)")
    _line(axes, layers, "value_lens_answer_p", ORANGE, "attention output alone (value-output lens)", "s")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("probability of the answer's first token")
    _layers_axis(axes, depth)
    axes.legend(loc="best")
    lines = textwrap.wrap(
        f"Most frequent top token behind each layer: {_runs([e['lens_top'][0][0] for e in layers])}", 108
    )
    _caption(figure, "\n".join([f"{_head(document)}.", *lines]).replace("$", r"\$"))
    p = _column(layers, "lens_answer_p")
    first = next((l for l in range(depth) if p[l] >= 0.5), None)
    alt = (
        f"Line chart over {depth} decoder layers of the probability that a lens gives the final answer's first token."
        " In the residual stream it "
        + (f"passes one half behind layer {first}" if first is not None else "stays below one half")
        + f" and ends at {p[-1]:.2f}."
    )
    return figure, alt


def _runs(words: Sequence[str]) -> str:
    """`["a", "a", "b"]` -> `0-1 "a", 2 "b"`."""
    out, start = [], 0
    for end in range(1, len(words) + 1):
        if end == len(words) or words[end] != words[start]:
            out.append(f'{start if end - start == 1 else f"{start}-{end - 1}"} "{words[start]}"')
            start = end
    return ", ".join(out)


def _knockouts(document: Mapping[str, Any], plt: Any) -> tuple[Figure, str]:
    depth = document["depth"]
    cuts = {(k["kind"], k["start"], k["end"]): k for k in document["knockouts"]}
    figure, panels = plt.subplots(1, 3, figsize=(10.2, 3.1), layout="constrained", sharey=True)
    spans = (
        ("Cut in this layer alone", [(l, l + 1) for l in range(depth)]),
        ("Cut in layers 0 to this one", [(0, l + 1) for l in range(depth)]),
        ("Cut from this layer on", [(l, depth) for l in range(depth)]),
    )
    for axes, (title, layers) in zip(panels, spans, strict=True):
        _bands(axes, document)
        _layers_axis(axes, depth)
        axes.set_title(title)
        axes.axhline(100 * document["accuracy"]["mean"], color=GREY, linewidth=0.9, linestyle=":")
        for kind, colour, label, marker in (
            (TEXT, BLUE, "text to vision", "o"),
            (VISION, ORANGE, "vision to vision", "s"),
        ):
            found = [cuts.get((kind, *span), {}) for span in layers]
            entries = [
                {"accuracy": k.get("accuracy"), "accuracy_low": k.get("low"), "accuracy_high": k.get("high")}
                for k in found
            ]
            known = [(l, k) for l, k in enumerate(found) if k]
            if len(known) == depth:
                _line(axes, entries, "accuracy", colour, label, marker, 100)
                continue
            # measured some layers apart: nothing is claimed between the points
            middle = np.array([100 * k["accuracy"] for _, k in known])
            spread = np.abs(np.array([[100 * k["low"], 100 * k["high"]] for _, k in known]).T - middle)
            at = [l for l, _ in known]
            axes.errorbar(at, middle, spread, color=colour, marker=marker, linestyle="none", elinewidth=1, label=label)
    panels[0].set_ylim(0, 103)
    panels[0].set_ylabel("accuracy (%)")
    panels[0].legend(loc="lower right")
    _caption(
        figure,
        f"{_head(document)}. Dotted: unpruned, {100 * document['accuracy']['mean']:.1f} %.\nText cut from a layer on is"
        " the same as all visual tokens leaving there. Points without a line: not measured in between.",
    )
    found = document["stages"]
    alt = (
        f"Three charts of accuracy over {depth} decoder layers when attention is cut in one layer, in all layers up to"
        " it, and from it on."
    )
    if found:
        alt += (
            f" Stages: {found['shallow_end']} shallow layers; fusion layers"
            f" {', '.join(map(str, found['fusion'])) or 'none'}; vision not needed from layer"
            f" {found['not_needed_from']}."
        )
    return figure, alt


def _contributions(document: Mapping[str, Any], plt: Any) -> tuple[Figure, str]:
    depth, rules = document["depth"], document["rules"]
    entries = [e["contribution"] for e in document["layers"]]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.2, 2.9), layout="constrained")
    for axes in (left, middle, right):
        _bands(axes, document)
        _layers_axis(axes, depth)
    # log scale, since thresholds lie at 0.9 as well as at 0.999
    change = [
        {"x": 1 - e["cosine_lowest"], "x_low": 1 - e["cosine_lowest_high"], "x_high": 1 - e["cosine_lowest_low"]}
        for e in entries
    ]
    _line(left, change, "x", RED, "largest of any token")
    left.set_yscale("log")
    left.axhline(1 - rules["cosine"], color=GREY, linewidth=0.9, linestyle=":")
    left.text(
        depth - 0.6,
        1 - rules["cosine"],
        f"cosine {rules['cosine']:g}",
        ha="right",
        va="bottom",
        fontsize=7.5,
        color=GREY,
    )
    left.set_title("1 - cosine, largest of any token")
    _line(middle, entries, "norm_max", BLUE, "largest")
    for rank, colour, marker in (("8", GREEN, "^"), ("64", ORANGE, "s")):
        if rank in entries[0]["norm_at_rank"]:
            middle.plot(
                range(depth),
                [e["norm_at_rank"][rank] for e in entries],
                color=colour,
                marker=marker,
                label=f"{rank}th largest",
            )
    middle.axhline(rules["norm"], color=GREY, linewidth=0.9, linestyle=":")
    middle.set_title("Norm of contributions")
    middle.set_yscale("log")
    middle.set_ylim(top=12 * middle.get_ylim()[1])
    middle.legend(loc="upper right")
    _line(right, entries, "n_cosine_below", RED, f"cosine below {rules['cosine']:g}")
    _line(right, entries, "n_norm_above", BLUE, f"norm above {rules['norm']:g}", "s")
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(0, 6 * max(1.0, right.get_ylim()[1]))
    right.set_title("Tokens past VisiPruner's defaults")
    right.legend(loc="upper right")
    _caption(figure, f"{_head(document)}. Dotted: VisiPruner's default thresholds.")
    lowest = _column(entries, "cosine_lowest")
    alt = (
        f"Three charts over {depth} decoder layers of what removing one visual token changes in the last token's"
        f" attention output. The change is largest in layer {int(lowest.argmin())}, where the lowest cosine is"
        f" {lowest.min():.3f} on average."
    )
    return figure, alt
