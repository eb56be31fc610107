"""A method that changes the model, or that ends the process, is refused by name; nobody else pays for it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run as command

from harness.core.budget import Budget
from harness.core.errors import Interrupted, PrunebenchError
from harness.engine.attach import attach
from harness.method import Method, Reduction, TowerLook, Traits, build, method_class
from harness.models.adapters import adapter_for
from harness.proof.conformance import kit, tiny
from harness.store.store import Store


def weight(model: Any) -> torch.nn.Parameter:
    return next(p for name, p in model.named_parameters() if name.endswith("layers.3.mlp.down_proj.weight"))


def owner(model: Any) -> Any:
    return next(m for name, m in model.named_modules() if name.endswith("layers.3.mlp.down_proj"))


def setitem(model: Any) -> None:
    weight(model)[0, 0] = 3.0


def replaced(model: Any) -> None:
    owner(model).weight = torch.nn.Parameter(weight(model).clone())


def moved(model: Any) -> None:
    weight(model).data = weight(model).clone()


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "mul_": (lambda model: weight(model).mul_(2), "written in place"),
    "copy_": (lambda model: weight(model).copy_(weight(model) * 2), "written in place"),
    "one number": (setitem, "written in place"),
    "a view": (lambda model: weight(model).view(-1)[:1].zero_(), "written in place"),
    "detached": (lambda model: weight(model).detach().add_(1), "written in place"),
    "init": (lambda model: torch.nn.init.zeros_(weight(model)), "written in place"),
    "swapped rows": (lambda model: weight(model).set_(weight(model).flip(0)), ""),
    "another parameter": (replaced, "another tensor"),
    "other data": (moved, "another tensor"),
    "taken away": (lambda model: delattr(owner(model), "weight"), "came or went"),
    "added": (lambda model: owner(model).register_buffer("extra", torch.zeros(1)), "came or went"),
    "training": (lambda model: owner(model).train(), "in another mode"),
    "half": (lambda model: owner(model).half(), ""),
    "norm": (lambda model: adapter_for(model).text.norm.weight.mul_(1.5), "norm.weight was written"),
    "embedding": (lambda model: model.get_input_embeddings().weight[0].zero_(), "written in place"),
    "head": (lambda model: model.lm_head.weight.add_(1), "lm_head.weight was written"),
    "tower": (lambda model: next(adapter_for(model).tower.parameters()).add_(1), "written in place"),
    "a module": (lambda model: setattr(owner(model), "inner", torch.nn.Identity().train(False)), "another module"),
    "all of it": (lambda model: [p.neg_() for p in model.parameters()], "written in place"),
    "eval off": (lambda model: model.train(), "in another mode"),
}


@dataclass(frozen=True)
class Changing(Method):
    name = "changing"
    traits = Traits(query_aware=False)
    how: str = "mul_"
    keep: int = 64

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Reduction | None:
        if layer == tiny.DEPTH - 1:  # the pass itself still works
            CHANGES[self.how][0](run._adapter.model)
        return None


@pytest.mark.parametrize("how", CHANGES)
def test_a_method_that_changes_the_model_is_named_and_the_model_answers_no_more(how: str) -> None:
    model = tiny.tiny_model.__wrapped__()
    with pytest.raises(PrunebenchError, match="changing changed the model: ") as refused:
        tiny.ask(model, Changing(how=how), tiny.PROMPTS[:1], steps=0)
    assert CHANGES[how][1] in str(refused.value)
    with pytest.raises(PrunebenchError, match="changing changed the model"):
        tiny.ask(model, method_class("none")(), tiny.PROMPTS[:1])


def test_a_change_before_an_error_is_not_forgotten() -> None:
    model = tiny.tiny_model.__wrapped__()
    with suppress(ZeroDivisionError), attach(model, Changing()):
        weight(model).data = weight(model) * 2
        raise ZeroDivisionError
    with pytest.raises(PrunebenchError, match="changing changed the model"):
        tiny.ask(model, method_class("none")(), tiny.PROMPTS[:1])


def test_a_method_that_reads_leaves_the_model_fit() -> None:
    model = tiny.tiny_model.__wrapped__()
    for _ in range(2):
        tiny.ask(model, build("fastv", Budget("kept", 16), {"boundary": 2}, adapter_for(model).usual), tiny.PROMPTS)


@dataclass(frozen=True)
class Hidden(Method):
    """Writes past the version counters."""

    name = "hidden"
    traits = Traits(query_aware=False)
    keep: int = 16

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Reduction | None:
        if layer == 0:
            weight(run._adapter.model).data.zero_()
        return None


def test_the_kit_compares_every_number() -> None:
    found = {verdict.name: verdict for verdict in kit.check(Hidden)}
    assert found["the model stays as it is"].status == "FAIL"
    assert "layers.3.mlp.down_proj.weight first" in found["the model stays as it is"].detail
    assert {v.status for v in kit.check(method_class("fastv")) if v.name == "the model stays as it is"} == {"ok"}


# -------------------------------------------------------------------------------------------- ends of the whole process


class OwnError(BaseException):
    pass


ENDS: list[Callable[[], BaseException]] = [
    lambda: SystemExit(0),
    lambda: SystemExit(),
    lambda: SystemExit("text"),
    lambda: GeneratorExit(),
    lambda: OwnError("own"),
]


@dataclass(frozen=True)
class Ending(Method):
    name = "ending"
    traits = Traits(query_aware=False)
    at: str = "at_boundary"
    number: int = 0
    keep: int = 64

    def _perhaps(self, hook: str) -> None:
        if hook == self.at:
            raise ENDS[self.number]()

    def for_model(self, shape: Any) -> Any:
        self._perhaps("for_model")
        return self

    def plan(self, prompt: Any) -> Any:
        self._perhaps("plan")
        return [prompt.n_visual] * prompt.depth

    def looks(self, shape: Any) -> Any:
        return (TowerLook("hidden", -1),) if self.at == "on_image" else ()

    def on_image(self, run: Any, tower: Any) -> None:
        self._perhaps("on_image")

    def on_pixels(self, pixels: Any) -> Any:
        self._perhaps("on_pixels")

    def edit_attention(self, run: Any, layer: int) -> Any:
        self._perhaps("edit_attention")
        return ()

    def on_attention(self, run: Any, layer: int, attn: Any) -> None:
        self._perhaps("on_attention")

    def hide_in_decode(self, run: Any, layer: int) -> Any:
        self._perhaps("hide_in_decode")

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Any:
        self._perhaps("at_boundary")


HOOKS = ("on_image", "on_pixels", "edit_attention", "on_attention", "hide_in_decode", "at_boundary")


@pytest.mark.parametrize("number", range(len(ENDS)))
@pytest.mark.parametrize("hook", HOOKS)
def test_an_end_of_the_process_in_a_hook_is_the_methods_failure(hook: str, number: int) -> None:
    with pytest.raises(PrunebenchError, match=f"^ending at .*{type(ENDS[number]()).__name__}.*line") as refused:
        tiny.ask(tiny.tiny_model(), Ending(at=hook, number=number), tiny.PROMPTS[:1])
    assert hook == "on_pixels" or "sample 'prompt 1'" in str(refused.value)


@pytest.mark.parametrize("number", range(len(ENDS)))
@pytest.mark.parametrize("hook", ["for_model", "plan"])
def test_an_end_of_the_process_while_a_method_is_made_is_its_failure(hook: str, number: int) -> None:
    usual = adapter_for(tiny.tiny_model()).usual
    for budget in (Budget("kept", 16), Budget("avg", 16)):
        with pytest.raises(PrunebenchError, match=f"^ending: {type(ENDS[number]()).__name__}"):
            build(Ending, budget, {"at": hook, "number": number}, usual)


@pytest.mark.parametrize("end", ["sys.exit(0)", "sys.exit()", "exit(3)", "raise GeneratorExit", "raise BaseException"])
def test_an_end_of_the_process_in_a_file_is_a_file_that_does_not_load(end: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(f"import sys\n{end}\n")
    with pytest.raises(PrunebenchError, match=r"m\.py:M' does not load: \w+.*\(m\.py, line 2\)"):
        method_class(f"{tmp_path}/m.py:M")


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Interrupted])
def test_an_interruption_is_nobodys_failure(signal: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_untouched.ENDS", [signal])
    with pytest.raises(signal):
        tiny.ask(tiny.tiny_model(), Ending(), tiny.PROMPTS[:1])


CODE = '''"""T."""
import sys
from dataclasses import dataclass
from harness.method import Method, Traits
@dataclass(frozen=True)
class M(Method):
    """M."""
    name = "m"
    traits = Traits(query_aware=False)
    keep: int = 64
    def at_boundary(self, run, layer, stream):
        {body}
'''


@pytest.mark.parametrize(
    ("body", "says"),
    [("sys.exit(0)", "SystemExit: 0"), ("next(run._adapter.model.parameters()).mul_(2)", "m changed the model: ")],
)
def test_the_command_seals_nothing_of_such_a_method(body: str, says: str, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "m.py").write_text(CODE.format(body=body))
    place, asked = str(tmp_path / "r"), ["--budget", "64", "--tasks", "pope", "--limit", "3"]
    code, _, err = command(capsys, monkeypatch, "eval", "--method", f"{tmp_path}/m.py:M", *asked, "--results", place)
    assert code == 2
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "m" not in {cell.cell.method for cell in Store(tmp_path / "r").cells()}
