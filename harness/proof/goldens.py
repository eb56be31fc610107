"""Replay recorded outputs of official implementations through the engine: `prunebench goldens DIR`.

A folder holds index.json, models/ (Llama weights, vision towers), inputs/ (prompts) and cases/ (one JSON per case, as
described in its README), plain or packed (harness/proof/golden_files.py). Every case runs through the same engine and
hooks as an evaluation, with a method from the same `build`: a `LlavaForConditionalGeneration` holds the recorded
weights. Where the input holds pixels they go through the recorded tower; recorded visual rows are passed as encoder
outputs. Cases of other families say so and go to harness/proof/golden_families.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from harness.core.errors import PrunebenchError
from harness.core.shown import one_line
from harness.engine.attach import attach
from harness.method import Method
from harness.models.adapters import Features
from harness.models.adapters.text_encoder import TextEncoder
from harness.proof import golden_calibrations, golden_families, golden_methods, golden_models
from harness.proof.golden_compare import LOGIT_TOLERANCE, CaseOutcome, Replayed, check_fields, compare
from harness.proof.golden_files import MEND, load_index, main, read_case
from harness.proof.golden_models import NotReplayableError, image_token, pixels_of, setup_of

CPU = torch.device("cpu")
#: variants that record how knobs were derived, and no run of a method
CALIBRATIONS = ("findk", "calibrate")
#: what a field raises that is there and holds something else
DAMAGED = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)


def method_of(folder: Path, case: Mapping[str, Any]) -> Method:
    """The method and knobs that a case recorded, built for its model as an evaluation builds it.

    Raises as `golden_methods.method_of`.
    """
    golden_methods.asked_of(case)  # a method that is not here is named before a model that is not
    return golden_methods.method_of(case, golden_models.prompt_of(folder, setup_of(folder, case)))


def replay(folder: Path, case: Mapping[str, Any], method: Method, device: torch.device = CPU) -> Replayed:
    """Run a case's prompt and its recorded decode tokens with `method`; the logits come back to the CPU.

    Raises NotReplayableError if the case is of another kind.
    """
    lacks = [field for field in ("model", "input", "tokens", "logits") if field not in case]
    if lacks:
        raise NotReplayableError(f"the case records no {', '.join(lacks)}")
    setup = setup_of(folder, case)
    if setup.tower is not None:
        check_fields(case)
    adapter = golden_models.model_of(folder, setup, device)
    model, usual = adapter.model, adapter.usual
    pre, post = setup.inputs["pre_ids"].long(), setup.inputs["post_ids"].long()
    given: dict[str, Any]
    probe = None
    if setup.tower is None:
        rows = setup.inputs["inputs_embeds"][0, pre.numel() : -post.numel()].to(device, setup.dtype)
        given, n_visual = {"mm_encoder_outputs": adapter.outputs([Features(rows)])}, len(rows)
    else:
        side = model.config.vision_config.image_size
        given, n_visual = {"pixel_values": pixels_of(setup, side).to(device)}, usual.n_visual
        probe = golden_models.tower_weights(folder, setup.tower).get("probe")
    token = image_token(usual)
    ids = torch.cat([pre, torch.full((n_visual,), token), post])[None].to(device)
    if int((ids == token).sum()) != n_visual:
        raise NotReplayableError(f"the text of input {case['input']!r} holds {token}, the id of the image token")
    norms: list[tuple[float, float]] = []
    entered: list[Tensor] = []
    positions: list[list[list[int]]] = []

    def left(_module: Any, _args: Any, out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        norms.append((float(states.norm()), float(states[0, -1].norm())))

    def enters(_module: Any, args: Any, kwargs: Any) -> None:
        positions[-1].append(kwargs["position_ids"][0].tolist())
        entered.append(args[0])

    with attach(model, method, text_encoder=_text_encoder(folder, case, setup, device)) as run, torch.inference_mode():
        run.questions = [case["question"]["prompt"]] if case.get("question") else None
        handles = [layer.register_forward_hook(left) for layer in adapter.layers]
        handles += [layer.register_forward_pre_hook(enters, with_kwargs=True) for layer in adapter.layers]
        cache = DynamicCache(config=model.config.text_config)
        positions.append([])
        try:
            out = model(input_ids=ids, past_key_values=cache, **given)
            prefill_norms, layouts = list(norms), run.layouts
            visual = entered[0][0][layouts[0].visual[0]].double().cpu()
            logits = [out.logits[0, -1].cpu()]
            for token in case["tokens"][: len(case["logits"]) - 1]:
                positions.append([])
                logits.append(
                    model(input_ids=torch.tensor([[token]], device=device), past_key_values=cache).logits[0, -1].cpu()
                )
        finally:
            for handle in handles:
                handle.remove()
        lengths = [layer.keys.shape[2] - len(logits) + 1 for layer in cache.layers]
        origins = [layout.origin[0][layout.visual[0]].tolist() for layout in layouts]
    return Replayed(
        logits=logits,
        kept=origins[-1],
        lengths=lengths,
        hidden_norms=[whole for whole, _ in prefill_norms],
        entered_norms=[float(stream.norm()) for stream in entered[: len(layouts)]],
        last_norms=[last for _, last in prefill_norms],
        positions=positions[0],
        decode_positions=[[layer[-1] for layer in step] for step in positions[1:]],
        run=run,
        origins=origins,
        visual=visual,
        probe=None if probe is None else probe.double(),
        tower=setup.tower is not None,
    )


def _text_encoder(
    folder: Path, case: Mapping[str, Any], setup: golden_models.Setup, device: torch.device
) -> Callable[[], TextEncoder] | None:
    """The text tower beside the vision tower, where a case records a question for it."""
    question, tower = case.get("question"), setup.tower
    if question is None or tower is None:
        return None
    return lambda: golden_models.text_encoder_of(folder, tower, question, setup.dtype, device)


def run_folder(
    folder: Path, device: torch.device = CPU, tolerance: float = LOGIT_TOLERANCE, n: int | None = None
) -> Iterator[CaseOutcome]:
    """Replay `n` cases of a folder, evenly spread over its index (None: all), in the recorded dtype on a device.

    A case that cannot be replayed counts as a mismatch and says why.
    """
    cases = load_index(folder)
    n = len(cases) if n is None else min(n, len(cases))
    for entry in (cases[i * len(cases) // n] for i in range(n)):
        case = read_case(folder, entry["file"])
        try:
            if case.get("variant") in CALIBRATIONS:
                yield golden_calibrations.outcome(folder, case, device)
                continue
            if "family" in case:
                yield golden_families.outcome(folder, case, device, tolerance)
                continue
            yield compare(case, replay(folder, case, method_of(folder, case), device), tolerance)
            continue
        except NotReplayableError as error:
            why = f"not replayable: {one_line(error)}"
        except PrunebenchError as error:
            why = one_line(error)
        except DAMAGED as error:
            why = f"not replayable: a damaged case ({type(error).__name__}: {one_line(error)}): {MEND}"
        yield CaseOutcome(str(case.get("id", entry["file"])), float("nan"), why)


if __name__ == "__main__":
    main(sys.argv[1:])
