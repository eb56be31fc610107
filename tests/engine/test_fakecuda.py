"""Every registered method on a pretend CUDA device: no tensor is made on the wrong device, and the host waits no more
than it did.

design: host reads cost a GPU its queue, and uploads too; a layer in which a method decides nothing waits for nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fakecuda
import pytest
import torch
from methods_with_settings import EVERYWHERE
from transformers import DynamicCache

from harness.bench import measure, random_model
from harness.core import budget as budgets
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.engine.layout import TokenLayout
from harness.engine.prefix import PrefixCache
from harness.gpu_check import fixture, house, plan
from harness.method import Method, Reduction, keep_top, method_class
from harness.models.adapters import LlavaAdapter, adapter_for
from harness.models.adapters.text_encoder import ClipTextEncoder
from harness.models.load import LoadedModel, locate_model
from harness.proof import golden_models, goldens
from harness.proof.conformance import reference, subject
from harness.proof.conformance.tiny import PROMPTS, STEPS, WordEncoder, ask, model_inputs, tiny_model, word_numbers
from harness.proof.golden_compare import compare
from harness.proof.golden_files import load_index, read_case
from harness.runner.answering import Answerer, Prompt


@dataclass(frozen=True)
class Mean(Method):
    """One mean in place of all visual tokens of a layer, without saying which of the added tokens are valid."""

    name = "mean"
    budget_knobs = ()

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Reduction | None:
        if layer != 3:
            return None
        return Reduction(torch.zeros_like(run.visual_valid), stream.visual.mean(1, keepdim=True))


ASKING = Path(__file__).parents[1] / "examples" / "asking.py"
CLS_TOP = f"{Path(__file__).parents[1] / 'examples' / 'cls_top.py'}:ClsTop"
#: beside the shipped methods
MORE: dict[str, tuple[str, Mapping[str, Any]]] = {
    "cls_top": (CLS_TOP, {"keep": 16}),
    # every question but the one that needs a text encoder
    **{
        name.lower(): (f"{ASKING}:{name}", {"keep": 16})
        for name in ("Coming", "Pivots", "Masses", "Sums", "Ordered", "Fronted", "Remade", "Rings")
    },
}


def cases() -> dict[str, Method]:
    """Label -> a method ready for the tiny model."""
    usual = adapter_for(tiny_model()).usual
    found = {label: setting.build(16, usual) for label, setting in EVERYWHERE.items()}
    for label, (name, knobs) in MORE.items():
        found[label] = subject.Subject(method_class(name), knobs).any()
    return {**found, "mean": Mean()}


CASES = cases()


# ----------------------------------------------------------------------------------------------------------- the device


def assigned(index: Any, value: Any) -> Callable[[torch.Tensor], None]:
    def run(x: torch.Tensor) -> None:
        x[index(x)] = value

    return run


@pytest.mark.parametrize(
    ("does", "waits"),
    [
        (lambda x: x.tolist(), ["read"]),
        (lambda x: x.cpu(), ["read"]),
        (lambda x: int(x[0, 1]), ["read"]),
        (lambda x: bool((x > 1).any()), ["read"]),
        (lambda x: f"{x[0, 0]:.2f}", ["read"]),
        (lambda x: x.nonzero(), ["read"]),
        (lambda x: x[x > 1], ["read"]),
        (lambda x: torch.equal(x, x), ["read"]),
        (lambda x: torch.allclose(x, x), ["read"]),
        (lambda x: torch.zeros(2, device=x.device).copy_(torch.ones(2)), ["upload"]),
        (lambda x: torch.tensor([1, 2], device=x.device), ["upload"]),
        (lambda x: torch.ones(2).to("cuda"), ["upload"]),
        (lambda x: x[torch.tensor([0, 1])], ["upload"]),
        (assigned(lambda x: x > 1, 0.0), []),
        (assigned(lambda x: (0, slice(None)), 1.0), []),
        (lambda x: x[:, 1:] + torch.tensor(2.0), []),
        (
            lambda x: (
                torch.where(x > 1, x, 0.0).argsort(1).gather(1, torch.zeros(2, 1, dtype=torch.long, device=x.device))
            ),
            [],
        ),
        (lambda x: torch.arange(3, device=x.device), []),
    ],
)
def test_the_device_notes_what_the_host_waits_for(does: Callable[[torch.Tensor], Any], waits: list[str]) -> None:
    with fakecuda.device() as gpu:
        does(gpu.moved(torch.arange(6.0).view(2, 3)))
        assert [w.kind for w in gpu.waits] == waits


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda x: x + torch.ones(3), "same device"),
        (lambda x: x @ torch.ones(3, 2), "same device"),
        (lambda x: torch.cat([x, torch.ones(2, 3)]), "same device"),
        (lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]), "same device"),
        (lambda x: torch.ones(3)[x[0].long()], "same device"),
        (assigned(lambda x: x[:, 0].long(), torch.ones(2, 3)), "same device"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: torch.rand(3, device=x.device, generator=torch.Generator()), "generator"),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(does: Callable[[torch.Tensor], Any], says: str) -> None:
    with fakecuda.device() as gpu, pytest.raises((RuntimeError, TypeError), match=says):
        does(gpu.moved(torch.arange(6.0).view(2, 3)))


def test_nothing_stays_behind_when_the_device_is_gone() -> None:
    lifts_only_cpu = torch._C._only_lift_cpu_tensors()
    with fakecuda.device():
        assert torch._C._only_lift_cpu_tensors()
    assert torch._C._only_lift_cpu_tensors() == lifts_only_cpu
    assert torch.ones(2).device.type == "cpu"
    assert not torch.is_inference_mode_enabled()


# ----------------------------------------------------------------------------------------------------------- the engine


class Watched(reference.Spy):
    """A method, and in `decides` the layers in which it looks or returns something."""

    def __init__(self, method: Any, decides: set[int]) -> None:
        super().__init__(
            method,
            lambda _hook, layer, returned: decides.add(layer) if returned is not None and returned != () else None,
        )
        self._decides = decides

    def for_model(self, shape: Any) -> Watched:
        return Watched(self._method.for_model(shape), self._decides)

    def on_attention(self, run: Any, layer: int, attn: Any) -> Any:
        decides = self._decides

        class Asked:
            def __getattr__(self, name: str) -> Any:
                decides.add(layer)
                return getattr(attn, name)

        return super().on_attention(run, layer, Asked())


class Ran(NamedTuple):
    """What a prefill and decode steps gave on the device: `waits` by phase (a layer's number, "before", "after",
    "step"), and by function."""

    logits: torch.Tensor
    origins: list[Any]
    waits: Counter[Any]
    functions: Counter[str]
    decides: set[int]
    said: str


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_model()


def ran(model: Any, method: Any) -> Ran:
    """Three prompts of unlike length and their decode steps on the pretend device."""
    decides: set[int] = set()
    with fakecuda.device() as gpu:
        moved = gpu.moved(model)
        for number, layer in enumerate(moved.model.language_model.layers):
            layer.register_forward_pre_hook(
                lambda _m, _a, n=number: setattr(gpu, "phase", n) if gpu.phase != "step" else None
            )
        given = gpu.moved(model_inputs(model, PROMPTS))
        next_ids = gpu.moved(torch.tensor([p.next_ids for p in PROMPTS]))
        with attach(moved, Watched(method, decides), text_encoder=WordEncoder, tokenizer=word_numbers) as run:
            run.samples = run.questions = [p.key for p in PROMPTS]
            cache = DynamicCache(config=moved.config.text_config)
            gpu.phase = "before"
            out = [moved(**given, past_key_values=cache, logits_to_keep=1).logits[:, -1]]
            gpu.phase = "after"
            assert run.trace.batch == len(PROMPTS)
            gpu.phase = "step"
            for step in range(STEPS):
                out.append(moved(input_ids=next_ids[:, step, None], past_key_values=cache).logits[:, -1])
            ours = [w for w in gpu.waits if w.ours]
            gpu.phase = "reading the results"
            origins = [
                [o[m].tolist() for o, m in zip(layout.origin, layout.visual, strict=True)] for layout in run.layouts
            ]
            waits, functions = Counter(w.phase for w in ours), Counter(w.where.rpartition(" ")[2] for w in ours)
            return Ran(torch.stack(out, 1).cpu().float(), origins, waits, functions, decides, gpu.table())


#: waits of the host (reads and uploads) that our code causes for a batch of three: in the whole prefill with its trace,
#: and the most in one layer after the first. A rise fails; write down less where it fell. Decode steps and layers
#: without a decision: none, for every method.
WAITS = {
    "cdpruner": (12, 0),
    "cdpruner without the question": (7, 0),
    "divprune": (4, 0),
    "divprune native": (4, 0),
    "downsample": (2, 0),
    "remade": (7, 0),
    "fastv": (4, 2),
    "fastv native": (4, 2),
    "first": (4, 0),
    "knockout": (2, 0),
    "none": (2, 0),
    "pooling": (10, 0),
    "random": (5, 0),
    "sparsevlm": (14, 4),
    "sparsevlm native": (14, 4),
    "uniform": (5, 0),
    "visipruner": (13, 2),
    "visipruner native": (12, 2),
    "cls_top": (4, 0),
    "random in the model": (5, 3),
    "sparsevlm plus": (14, 4),
    "visipruner paper": (15, 2),
    "visipruner half": (13, 2),
    "knockout zero": (2, 0),
    "knockout redirect, drop": (3, 1),
    "knockout redirect from layer 0": (3, 1),
    "knockout mask both ways": (2, 0),
    "visipruner without shallow": (13, 2),
    "knockout mask": (2, 0),
    "coming": (4, 2),
    "pivots": (5, 3),
    "masses": (4, 2),
    "sums": (4, 0),
    "ordered": (4, 0),
    "fronted": (6, 0),
    "rings": (5, 0),
    "mean": (3, 1),
    "pyramiddrop": (11, 3),
    "pyramiddrop native": (11, 3),
    "dart": (6, 4),
    "dart official": (6, 4),
    "v2drop": (11, 3),
    "v2drop native": (11, 3),
    "visionzip": (9, 0),
    "visionzip official": (9, 0),
    "prumerge": (10, 0),
    "prumerge native": (18, 0),
    "prumerge plus": (10, 0),
    "fastervlm": (5, 0),
    "vispruner": (9, 0),
    "vscan": (12, 3),
    "vscan native": (12, 3),
    "mmtok": (11, 0),
    "mmtok by distance": (11, 0),
    "hiprune": (11, 0),
    "hiprune native": (11, 0),
    "holov": (8, 0),
    "holov native": (9, 0),
    "fitprune": (29, 3),
    "fitprune scheme": (17, 3),
    "vtw": (3, 1),
    "vtw renumbered": (3, 1),
}


@pytest.mark.parametrize("label", CASES)
def test_methods_run_on_the_device_as_on_the_cpu(tiny: Any, label: str) -> None:
    got, want = ran(tiny, CASES[label]), ask(tiny, CASES[label], PROMPTS)
    assert got.origins == want.origins
    assert (got.logits - want.logits).abs().max() < subject.SAME
    after_first = {layer: n for layer, n in got.waits.items() if isinstance(layer, int) and layer > 0}
    idle = {layer: n for layer, n in after_first.items() if layer not in got.decides}
    assert not idle, f"waits in layers without a decision: {idle}\n{got.said}"
    assert got.waits["step"] == 0, got.said
    prefill = sum(n for phase, n in got.waits.items() if phase != "step")
    most = max(after_first.values(), default=0)
    assert label in WAITS, f'add to WAITS: "{label}": ({prefill}, {most}),'
    assert prefill <= WAITS[label][0], got.said
    assert most <= WAITS[label][1], got.said


@pytest.mark.parametrize(
    ("label", "function"),
    [
        ("fastv", "visual_probs"),
        ("knockout redirect from layer 0", "sink_columns"),
        ("knockout mask", "edit_attention"),
        ("none", "mask"),
    ],
)
def test_what_no_decision_needs_is_not_waited_for(tiny: Any, label: str, function: str) -> None:
    got = ran(tiny, CASES[label])
    assert not got.functions[function], got.said


def without_device(function: Any) -> Any:
    """The code of a function with every `device=` taken out of its calls."""
    source = textwrap.dedent(inspect.getsource(function))
    faulty = re.sub(r", device=[\w.]+", "", source)
    assert faulty != source, "the function names no device any more: seed the fault elsewhere"
    found: dict[str, Any] = {}
    source = "from __future__ import annotations\n" + faulty.replace("@cached_property\n", "")
    exec(compile(source, "seeded", "exec"), function.__globals__, found)
    return found[function.__name__].__code__


@pytest.mark.parametrize(
    ("function", "label"),
    [(keep_top, "fastv"), (TokenLayout.__dict__["mask"].func, "none")],
    ids=["a tensor made on the CPU", "a mask without a device"],
)
def test_seeded_device_faults_are_found(tiny: Any, monkeypatch: pytest.MonkeyPatch, function: Any, label: str) -> None:
    monkeypatch.setattr(function, "__code__", without_device(function))
    ask(tiny, CASES[label], PROMPTS)  # which a CPU does not notice
    with pytest.raises((RuntimeError, PrunebenchError), match="Expected all tensors to be on the same device"):
        ran(tiny, CASES[label])


def test_a_read_in_every_layer_is_found(tiny: Any) -> None:
    class Curious(method_class("none")):  # type: ignore[misc]
        name = "curious"

        def at_boundary(self, run: Any, layer: int, stream: Any) -> None:
            assert bool(run.visual_valid.any())

    got = ran(tiny, Curious())
    assert got.waits[3] == 1
    assert got.decides == set()


# ---------------------------------------------------------------------------------------------------------- an Answerer


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return locate_model("mini", "cpu", "float32").load()


@pytest.fixture(scope="module")
def questions() -> list[Prompt]:
    """Two questions of unlike length on one image."""
    from tasks import lmms
    from tasks.sources import DataSource

    samples = lmms.load_task("gqa", DataSource.parse("mini"), 6, 0).samples
    picked = [s for s in samples if s.image_key == samples[0].image_key][:2]
    return [Prompt.of_one(s.key, s.prompt + " or not" * n, s.load_image, s.image_key, 2) for n, s in enumerate(picked)]


def answered(loaded: LoadedModel, method: Any, questions: list[Prompt]) -> dict[str, tuple[str, str]]:
    answerer = Answerer(loaded, method, batch_size=2, prefixes=PrefixCache())
    return {a.key: (a.text, a.kept) for a in answerer.answer(questions)}


ASKED = {
    **{label: (s.method, s.asked(48), s.knobs) for label, s in EVERYWHERE.items()},
    "cls_top": (CLS_TOP, "48", {}),
}


@pytest.fixture
def on_cuda(mini: LoadedModel) -> Iterator[tuple[fakecuda.Device, LoadedModel]]:
    with fakecuda.device() as gpu:
        loaded = dataclasses.replace(mini, model=gpu.moved(mini.model), device=fakecuda.CUDA)
        encoder = copy.copy(mini.text_encoder(method_class("none")())())
        for part in ("_model", "_norm", "_projection"):
            setattr(encoder, part, gpu.moved(getattr(encoder, part)))
        encoder._known = {}
        loaded._text_encoders[mini.config.text_tower] = encoder
        yield gpu, loaded


@pytest.mark.parametrize("label", ASKED)
def test_questions_that_share_a_prefix_are_answered_as_on_the_cpu(
    mini: LoadedModel, questions: list[Prompt], on_cuda: tuple[fakecuda.Device, LoadedModel], label: str
) -> None:
    name, budget, knobs = ASKED[label]
    method = locate_model("mini", "cpu", "float32").method(name, budgets.parse(budget), knobs)
    assert answered(on_cuda[1], method, questions) == answered(mini, method, questions)


#: waits of one decode step of an Answerer: which tokens were chosen, -1 where the logits are not finite
STEP_WAITS = 1


def test_a_decode_step_waits_once(
    questions: list[Prompt], on_cuda: tuple[fakecuda.Device, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, loaded = on_cuda
    monkeypatch.setitem(loaded.__dict__, "end_tokens", (loaded.image_token_id,))  # which no answer holds
    waits = []
    for new_tokens in (2, 5):
        asked = [dataclasses.replace(p, max_new_tokens=new_tokens) for p in questions[:1]]
        before = len([w for w in gpu.waits if w.ours])
        list(Answerer(loaded, method_class("none")()).answer(asked))
        waits.append(len([w for w in gpu.waits if w.ours]) - before)
    assert 0 < waits[1] - waits[0] <= 3 * STEP_WAITS, gpu.table()


# ----------------------------------------------------------------------------- what `make gpu-check` runs on a real one


@pytest.mark.parametrize(
    "case",
    [
        "fv_kvcache_k2_r144_mha8_p24",
        "sv_v1_r192_mha8_p24",
        "vp_SMD_7b_t1_mha8_p24",
        "fv_vanilla_gqa_p24",
        "vz_d54c10_mha8_c212",
        "vp_t64r75f64_mha8_c212",
        "cd_t32_gqa_c277",
        "hv_440_mha8_h1",
    ],
)
def test_a_recorded_case_replays_on_the_device(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    made, encoder_of = golden_models.model_of, golden_models.text_encoder_of
    (file,) = (entry["file"] for entry in load_index(house.GOLDENS) if entry["id"] == case)

    def text_encoder(*of: Any) -> ClipTextEncoder:
        encoder = encoder_of(*of[:-1], goldens.CPU)
        parts = (encoder._model, encoder._norm, encoder._projection)
        moved: list[Any] = [gpu.moved(part) for part in parts]
        return ClipTextEncoder(moved[0], encoder._tokenizer, *moved[1:])

    recorded = read_case(house.GOLDENS, file)
    with fakecuda.device() as gpu:
        monkeypatch.setattr(
            golden_models, "model_of", lambda *of: LlavaAdapter(gpu.moved(made(*of[:2], goldens.CPU).model))
        )
        monkeypatch.setattr(golden_models, "text_encoder_of", text_encoder)
        method = goldens.method_of(house.GOLDENS, recorded)
        outcome = compare(recorded, goldens.replay(house.GOLDENS, recorded, method, fakecuda.CUDA))
    assert outcome.mismatch is None


def test_none_and_the_bare_model_are_compared_on_the_device(on_cuda: tuple[fakecuda.Device, LoadedModel]) -> None:
    asked = house.HouseReply("cpu", "float32")
    asked._loaded = on_cuda[1]
    questions = house.questions_of(fixture.read(), 2)
    bare, none = (asked.logits(questions, arm) for arm in (None, plan.NONE))
    assert bare.device.type == none.device.type == "cpu"
    assert (bare - none).abs().max() < subject.SAME


def test_a_request_of_the_bench_runs_on_the_device(on_cuda: tuple[fakecuda.Device, LoadedModel]) -> None:
    model = on_cuda[1].model
    given = random_model.random_input(model, 2, 8, 0)
    assert given.ids.device == given.images["pixel_values"].device == fakecuda.CUDA
    contender = measure.Contender("fastv", "64", method_class("fastv")(keep=64))
    ran = measure.run_once(model, contender, given, measure.Device(fakecuda.CUDA), 3, 0)
    assert ran.trace is not None
    assert ran.trace.kept(0) == 64
