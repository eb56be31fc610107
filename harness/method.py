"""What a pruning method is: a frozen dataclass of knobs and a few hooks; what it may ask for and what it may return.

Eyes (`on_attention`) look and return nothing; hands (`edit_attention`, `at_boundary`) return what to do; the engine owns every
tensor of the model. A method speaks visual coordinates 0..v-1, `v` being the visual tokens present now, in order; it never sees
a sequence index. State of one prompt batch lives in `run.memo`, which dies with the prefill.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from harness.budget import Budget, lowest, solve
from harness.cell import SHIPPED
from harness.errors import PrunebenchError, unknown
from harness.shape import ModelShape

Positions = Literal["original", "compact"]
DecodePositions = Literal["original", "compact", "per_layer"]
#: named text rows: the prompt's last token; every text token behind the image; every visual token
Rows = Literal["last", "after", "visual"]
What = Literal["cls_row", "keys", "hidden"]


@dataclass(frozen=True)
class AttentionEdit:
    """Change what some queries get from some visual keys in one layer of the prefill.

    `rows`: "after" (text behind the image) or "visual". `cols (b, v)` bool, None = all visual tokens. `how`:
    "mask" removes the columns before softmax; "zero" removes their probability after softmax, nothing renormalised;
    "redirect" gives their whole probability to visual token `sink` (one index, or (b,) long), nothing renormalised.
    """

    rows: Literal["after", "visual"]
    cols: Tensor | None
    how: Literal["mask", "zero", "redirect"]
    sink: int | Tensor = 0


@dataclass(frozen=True)
class Reduction:
    """What stays of the visual tokens at a boundary.

    `keep (b, v)` bool over the visual tokens present now; text cannot be lost. `added (b, m, d)`: merged or recycled tokens,
    placed behind the last kept one, `added_valid (b, m)` bool where rows differ in number. `positions`: RoPE positions of what
    stays from here on, kept ("original") or renumbered ("compact"). `decode_positions`: where generated tokens stand: the
    absolute count of the unpruned prompt, the length of the final sequence, or each layer's own cache length.
    """

    keep: Tensor
    added: Tensor | None = None
    added_valid: Tensor | None = None
    positions: Positions = "original"
    decode_positions: DecodePositions = "original"


class Probabilities(NamedTuple):
    """Softmax rows: `values (b, heads, r, v)` float32, 0 beyond a row's count; `rows (b, r)` bool marks real query rows."""

    values: Tensor
    rows: Tensor


class TowerLook(NamedTuple):
    """Something of the vision tower that a method asks to see: `what` of its layer `layer`, counted from 0, or back from -1, the last.

    "cls_row": the softmax row of [CLS] over all tokens, without [CLS] itself; one row a head, float32. "keys": what the layer's key
    projection says of the patches, heads side by side. "hidden": the stream leaving the layer at the patches; that of layer -2 is what
    LLaVA-1.5 projects.
    """

    what: What
    layer: int


class Attention(Protocol):
    """What `on_attention` sees of one layer's prefill: the real post-RoPE tensors, by visual coordinates."""

    def visual_probs(self, rows: Literal["last"] | Tensor, of: Tensor | None = None) -> Probabilities:
        """Exact softmax probabilities of the asked query rows on the visual tokens (over all keys, before any edit).

        `rows`: "last", or (b, t) bool over the text tokens behind the image. `of (b,)` bool: the prompts of the batch that need it;
        the others read 0 and are not charged. Its cost is added to the trace.
        """

    def visual_values(self) -> Tensor:
        """(b, heads, v, head_dim): value vectors of the visual tokens, grouped heads repeated."""

    def last_output(self) -> Tensor:
        """(b, heads, head_dim): the attention output of the last token before o_proj."""

    def ones_rotated(self, rows: Tensor) -> Tensor:
        """(b, r, v) float32: RoPE's own bias, the dot product of rotated all-ones query and key over sqrt(head_dim)."""


class Stream(Protocol):
    """The residual stream entering a layer, by token kind."""

    @property
    def visual(self) -> Tensor:
        """(b, v, d): hidden states of the visual tokens present now, 0 beyond a row's count."""

    @property
    def after(self) -> Tensor:
        """(b, t, d): hidden states of the text behind the image."""

    @property
    def after_valid(self) -> Tensor:
        """(b, t) bool."""


class Run(Protocol):
    """The engine as a method sees it during one prefill."""

    memo: MutableMapping[str, Any]

    @property
    def shape(self) -> ModelShape: ...

    @property
    def visual_valid(self) -> Tensor:
        """(b, v) bool: which of the v slots hold a visual token of this row, at the current boundary."""

    @property
    def n_prompt_visual(self) -> Tensor:
        """(b,) long: visual tokens of the prompt before any reduction."""

    def generator(self, row: int) -> torch.Generator:
        """A CPU generator that depends on (seed, sample of this row) only: the same draw at any batch size and device."""

    def matmul(self, a: Tensor, b: Tensor, *, row: int | None = None, entries: Sequence[int] | None = None) -> Tensor:
        """`a @ b`, its FLOPs added to the trace as scoring; a method makes its matrix products here.

        `row`: the product belongs to this row of the batch alone. Otherwise it is batched, and `entries` says how many of each
        row's output numbers are no padding (default: all).
        """

    def note(self, name: str, values: Tensor | Sequence[float | int | bool]) -> None:
        """Record one number per row with the sample's result (fusion layer, forced, ...)."""


class ScoresError(PrunebenchError):
    """Scores that cannot be ranked, in `row` of the batch; found where tokens are selected, the engine says by whom and where."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Traits:
    """What a table says about a method; declared by the method, checked by the conformance tests.

    `keeps_most_attended`: at a budget, a visual token that all text attends to most, in every head and layer, stays. `image_only`: what it keeps
    and merges depends on the image alone, not on text or a draw, so that questions about an image share the prefill behind
    its reductions if the first is before layer 0 (harness/prefix.py).
    """

    query_aware: bool
    needs_vision_attention: bool = False
    adaptive: bool = False
    edits_attention: bool = False
    merges: bool = False
    random: bool = False
    keeps_most_attended: bool = False
    image_only: bool = False


@dataclass(frozen=True)
class Method:
    """Base of all methods: knobs are dataclass fields with the paper's defaults. Without hooks it prunes nothing.

    Subclasses set `name` (lower case, as the paper is called), `paper` and `traits`, and override the hooks they need.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    traits: ClassVar[Traits] = Traits(query_aware=False)
    #: knobs that the budget sets; giving one by hand beside a budget is refused
    budget_knobs: ClassVar[tuple[str, ...]] = ("keep",)

    # ------------------------------------------------------------------------------------------------ budget and checks

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], shape: ModelShape) -> Self:
        """The method with its knobs set for a budget; raises PrunebenchError where the method cannot reach it.

        The default takes `kept` budgets into the knob `keep` and refuses `native` and `calibrated`; `avg` and `flops` have been
        solved for a kept count before they come here.
        """
        if budget.unit == "none":
            return cls(**knobs)
        if budget.unit == "kept":
            return cls(**{"keep": budget.tokens, **knobs})
        if budget.unit == "native":
            raise PrunebenchError(f"{cls.name} has no published defaults, so BUDGET=native means nothing: give a number, as in BUDGET=64")
        if budget.unit == "calibrated":
            raise PrunebenchError(f"{cls.name} has nothing to calibrate, so BUDGET=calibrated means nothing: give a number (BUDGET=64)")
        raise PrunebenchError(f"{cls.name} takes a number of visual tokens as budget (BUDGET=64); found {budget}")

    def for_model(self, shape: ModelShape) -> Self:
        """The method with depth-dependent defaults filled in for this model, checked: raises PrunebenchError on a bad knob."""
        return self

    def knobs(self) -> dict[str, Any]:
        """All knobs with their values, defaults included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def uses_seed(self) -> bool:
        """Does the seed change anything? A method that draws nothing is one cell whatever the seed."""
        return self.traits.random

    def prefix_key(self) -> str:
        """Names what this method's attention edits do to visual rows, where that depends on knobs only; "" for nothing.

        Questions about one image share the prefill of the image up to the first reduction (harness/prefix.py), among all methods of one
        key. Methods that edit visual rows and leave it empty are right as well, and slower: they share up to their first such edit.
        """
        return ""

    # ------------------------------------------------------------------------------------------------------ before any run

    def plan(self, shape: ModelShape, n_text: int) -> list[int] | None:
        """Visual tokens entering each decoder layer for one image and `n_text` text tokens: what the trace will say.

        One number per layer; merged tokens included. None where the content of the prompt decides (adaptive methods) or the
        method does not say. Ask a method that went through `for_model(shape)`; plain Python, no tensors.
        """
        return None

    def plan_with(self, shape: ModelShape, n_text: int, fusion_layer: int, exit_layer: int | None) -> list[int]:
        """`plan` of an adaptive method, had it chosen these layers; they mean what the method notes under these names.

        `exit_layer` None: it never exits. Raises PrunebenchError for layers that the method cannot choose.
        """
        raise PrunebenchError(f"{self.name} chooses no fusion and exit layer: leave fusion_layer and exit_layer out")

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int | None:
        """FLOPs of one prompt's scoring under the plan `visual`: what `trace.scoring` will say; None where the prompt decides.

        The default knows that a method without eyes and without reductions scores nothing.
        """
        silent = type(self).on_attention is Method.on_attention and type(self).at_boundary is Method.at_boundary
        return 0 if silent else None

    # --------------------------------------------------------------------------------------------------------------- hooks

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        """What `on_image` wants to see of the vision tower. It is kept with the image's features, which are computed once.

        Each "cls_row" costs one query's product with all keys and image, `flops.cls_row(shape.vision)`, and is added to the trace.
        """
        return ()

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        """Eye, before boundary 0, for methods with `looks`: "cls_row" as (b, heads, v) float32, "keys" and "hidden" as (b, v, width).

        `v` as in `run.visual_valid`: the patches of a prompt's images in order, 0 beyond a row's count.
        """

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        """Hand, before a layer's attention in the prefill; the edits of one layer must not share rows."""
        return ()

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        """Eye, after a layer's attention in the prefill, before o_proj."""

    def on_pixels(self, pixels: Tensor) -> Tensor | None:
        """Hand, before the vision tower: `pixels (images, 3, h, w)` as the processor made them -> same shape, or None."""
        return None

    def hide_in_decode(self, run: Run, layer: int) -> Tensor | None:
        """Hand, once per layer after the prefill: `(b, v)` bool over the visual tokens in this layer's cache that generated
        tokens must not attend, or None."""
        return None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        """Hand, at the stream entering `layer` in the prefill; boundary 0 is the language model's input."""
        return None


# ----------------------------------------------------------------------------------------------------------------- registry


def check_layer(method: str, knob: str, layer: int, low: int, depth: int) -> None:
    """Raise PrunebenchError unless `low <= layer < depth`."""
    if not low <= layer < depth:
        expected = f"expected {low} to {depth - 1}" if low < depth else f"it takes at least {low + 1} layers"
        raise PrunebenchError(f"{method}: {knob}={layer} does not fit this model: {expected} (it has {depth} decoder layers)")


_REGISTRY: dict[str, type[Method]] = {}
_PLUGINS_LOADED = False
ENTRY_POINT_GROUP = "prunebench.methods"


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: enrol a method under its `name`. A clash raises."""
    _check_class(cls)
    _REGISTRY[cls.name] = cls
    return cls


def _check_class(cls: type[Method]) -> None:
    """Raise PrunebenchError for a class that cannot be a method, and for a name that another method has."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", cls.name):
        raise PrunebenchError(f"{where}: expected a `name` of lower-case letters, digits, _ . + and -, found {cls.name!r}")
    # a subclass of a dataclass looks like one without being one
    if "__dataclass_params__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PrunebenchError(f"{where}: a method is a frozen dataclass; decorate the class with @dataclass(frozen=True)")
    if cls.traits.image_only and (cls.traits.query_aware or cls.traits.random):
        raise PrunebenchError(f"{where}: its traits say image_only, and query_aware or random as well: it cannot be both, drop one")
    knobs = {f.name for f in dataclasses.fields(cls)}
    source_of(cls)  # of what was just imported, not of what may stand in the file by the time a result is filed
    lacking = [knob for knob in cls.budget_knobs if knob not in knobs]
    if lacking:
        raise PrunebenchError(
            f"{where}: a budget sets the knob {lacking[0]!r}, and the class has no such field: add `{lacking[0]}: int`, or set "
            "`budget_knobs` to the fields that a budget sets, () for none, and override at_budget"
        )
    other = _REGISTRY.get(cls.name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        both = f"{other.__module__}.{other.__qualname__} and {where}"
        raise PrunebenchError(f"two methods are called {cls.name!r}: {both}; give one of them another `name`")


_SOURCES: dict[type, str] = {}
_DIGESTS: dict[tuple[int, str], tuple[ModuleType, str]] = {}
_FILE_MODULE = "prunebench_method_"
_SHIPPED_FILES = Path(__file__).resolve().parent.parent / "methods" / "shipped.json"


def source_of(cls: type[Method]) -> str:
    """Names the code of a method: `SHIPPED` for ours as released, else 12 hex of SHA-256 over the Python files behind it.

    Those are the files of the class and its bases and what they import outside functions, except Python's own, installed packages and the
    harness; of a package, all its files. Ours are as released if they are as methods/shipped.json says. Raises PrunebenchError for a class
    without a file, as in a notebook.
    """
    if cls not in _SOURCES:
        digests: dict[str, str] = {}
        for base in cls.__mro__:
            if base.__module__.partition(".")[0] in {"harness", *sys.stdlib_module_names}:
                continue
            if not Path(getattr(sys.modules.get(base.__module__), "__file__", None) or "").is_file():
                raise PrunebenchError(f"{base.__qualname__}: expected a class in a file, whose code its results are filed under: put it in one")
            _add_files(base.__module__, digests, installed=True)
        known = json.loads(_SHIPPED_FILES.read_text())
        released = all(known.get(name) == digest for name, digest in digests.items())
        _SOURCES[cls] = SHIPPED if released else hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]
    return _SOURCES[cls]


def record_shipped() -> Path:
    """Take the files in methods/ for released as they are: for a change that moves no number (otherwise `NUMERICS_VERSION` moves too)."""
    files = sorted(p for p in _SHIPPED_FILES.parent.glob("*.py") if p.name != "__init__.py")
    _SHIPPED_FILES.write_text(json.dumps({f"methods.{p.stem}": _digest(p) for p in files}, indent=1) + "\n")
    return _SHIPPED_FILES


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _digest_of(module: ModuleType, file: Path) -> str:
    """Of the file as it was when this module was first looked at: an edit changes the module only once it is imported again."""
    # the module is kept with it: its id would be another's one day
    return _DIGESTS.setdefault((id(module), str(file)), (module, _digest(file)))[1]


def _add_files(name: str, digests: dict[str, str], installed: bool = False) -> None:
    """Put the digest of a loaded module's file into `digests` under its name, with those that it imports; of a package, of all files.

    Installed packages count where the method is one of them.
    """
    module, top = sys.modules.get(name), name.partition(".")[0]
    where = getattr(module, "__file__", None)
    if module is None or where is None or top in ("harness", "tasks") or top in sys.stdlib_module_names:
        return
    file = Path(where)
    if not installed and {"site-packages", "dist-packages"} & set(file.parts):
        return
    if name.startswith(_FILE_MODULE):  # a name made from a path would tell folders apart
        name = f"{file.name} {_digest_of(module, file)}"
    if name in digests:
        return
    folders = () if top == "methods" else getattr(sys.modules[top], "__path__", ())
    for folder in folders:
        digests |= {f"{top}/{p.relative_to(folder)}": _digest_of(module, p) for p in Path(folder).rglob("*.py")}
    if folders:
        return
    digests[name] = _digest_of(module, file)
    todo = list(ast.parse(file.read_bytes()).body) if file.suffix == ".py" else []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                _add_files(alias.name, digests)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for imported in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                _add_files(imported, digests)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)  # type: ignore[arg-type]


def registered() -> dict[str, type[Method]]:
    """All methods by name: ours, and third parties' through the entry-point group `prunebench.methods`."""
    global _PLUGINS_LOADED
    if not _PLUGINS_LOADED:
        _PLUGINS_LOADED = True
        import methods  # noqa: F401  (importing it registers every file in methods/)

        for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
            loaded = point.load()
            if isinstance(loaded, type) and issubclass(loaded, Method):
                register(loaded)
    return dict(sorted(_REGISTRY.items()))


def method_class(name: str) -> type[Method]:
    """The method registered under `name`, or the class behind `path/to/file.py:Class` or `package.module:Class`."""
    if ":" in name:
        return _load(name)
    known = registered()
    if name.endswith(".py"):
        raise PrunebenchError(f"{name!r} is a file: name the class in it as well, as in {name}:Class")
    if name not in known:
        raise unknown("method", name, known)
    return known[name]


def _load(spec: str) -> type[Method]:
    where, _, attribute = spec.partition(":")
    if not where or not attribute:
        raise PrunebenchError(f"{spec!r}: expected path/to/file.py:Class or package.module:Class")
    if where.endswith(".py") and not Path(where).is_file():
        raise PrunebenchError(f"expected a Python file before ':' in {spec!r}; {Path(where).absolute()} does not exist")
    try:
        module = _file_module(Path(where).resolve(), Path(where).read_bytes()) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        beside = isinstance(error, ModuleNotFoundError) and error.name and Path(where).with_name(f"{error.name}.py").is_file()
        hint = f"; it lies beside the file: set PYTHONPATH={Path(where).parent}" if beside else ""
        raise PrunebenchError(f"{spec!r} does not load: {raised(error)}{hint}") from error
    cls = getattr(module, attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise PrunebenchError(f"{spec!r}: expected a subclass of harness.method.Method called {attribute!r} there, found {cls!r}")
    registered()
    _check_class(cls)
    return cls


def raised(error: Exception) -> str:
    """What went wrong and where, in one line: `IndexError: ... (mine.py, line 12)`."""
    frames = traceback.extract_tb(error.__traceback__)
    # neither ours, nor of Python or a package
    others = (str(Path(__file__).parent), str(Path(ast.__file__).parent), "<frozen importlib")
    own = [f for f in frames if not f.filename.startswith(others) and "site-packages" not in f.filename]
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    else:
        file, line = (own[-1].filename, own[-1].lineno) if own else (None, None)
    said = str(error).strip().splitlines()
    place = f" ({Path(file).name}, line {line})" if file else ""
    return f"{type(error).__name__}{': ' + said[0] if said else ''}{'' if isinstance(error, SyntaxError) else place}"


@cache
def _file_module(file: Path, _content: bytes) -> ModuleType:
    """The module in a file, loaded once for what is in it; files of one name in two folders are two modules."""
    name = f"{_FILE_MODULE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def check_budget(cls: type[Method], budget: Budget, knobs: Iterable[str]) -> None:
    """Raise PrunebenchError unless a budget and the knobs that a budget would set are given one at a time.

    A method without such knobs takes no budget; any other needs one of the two.
    """
    given = [k for k in cls.budget_knobs if k in knobs]
    if budget.unit == "none":
        if cls.budget_knobs and not given:
            raise PrunebenchError(f"{cls.name} needs a budget, as in BUDGET=64 (visual tokens)")
    elif not cls.budget_knobs:
        raise PrunebenchError(f"{cls.name} prunes nothing to a count, so it takes no budget; found BUDGET={budget}: leave BUDGET out")
    elif given:
        either = f"give either BUDGET={budget} or {given[0]}, not both"
        raise PrunebenchError(f"{cls.name}: knob {given[0]!r} is what the budget sets; {either}")


def build(name: str, budget: Budget, knobs: Mapping[str, Any], shape: ModelShape, n_text: int | None = None) -> Method:
    """The method `name` at `budget` with `knobs` (values or strings), checked against the model.

    `n_text`: the text length, in tokens, at which a `flops` budget is solved. Raises PrunebenchError for unknown methods and
    knobs, values of the wrong type, and budgets out of reach.
    """
    cls = method_class(name)
    typed = dict(typed_knobs(cls, knobs))
    check_budget(cls, budget, typed)
    if budget.tokens is not None and budget.tokens > shape.n_visual:
        raise PrunebenchError(f"budget {budget}: expected 1 to {shape.n_visual}, an image of this model has {shape.n_visual} visual tokens")

    def at(keep: int) -> Method:
        return cls.at_budget(Budget("kept", keep), typed, shape).for_model(shape)

    if budget.unit in ("avg", "flops"):
        # for errors: the knobs that say where the method prunes, which are layers and sizes, not what is derived from the count
        given = cls.at_budget(Budget("kept", shape.n_visual), typed, shape).knobs()
        placed = [k for k, v in given.items() if k not in cls.budget_knobs and type(v) in (int, tuple)]
        now = at(shape.n_visual).knobs()
        label = cls.name + (" with " + ", ".join(f"{k}={now[k]}" for k in placed) if placed else "")
        return at(solve(budget, at, shape, n_text, label))
    built = cls.at_budget(budget, typed, shape).for_model(shape)
    try:
        built.plan(shape, n_text or 0)
    except PrunebenchError as error:
        if budget.unit != "kept":
            raise
        least = lowest(at, shape)
        raise PrunebenchError(f"{name} cannot keep {budget} visual tokens: expected a budget of at least {least} ({error})") from None
    return built


def typed_knobs(cls: type[Method], knobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(knob, value of the declared type) for each of `knobs`; raises PrunebenchError for unknown knobs and unfit values."""
    from typing import get_type_hints

    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    for key, value in knobs.items():
        if key not in fields:
            raise unknown(f"knob of {cls.name}", key, fields)
        try:
            if isinstance(value, str) and "," in value:
                value = [part.strip() for part in value.split(",")]
            yield key, TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise PrunebenchError(f"{cls.name}: knob {key}={value!r} is not valid: {error.errors()[0]['msg']}") from None
