"""Who may import whom (see the README's layout), read from the source."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import HEAVY, imported_with

from harness.core.shape import SHAPES

ROOT = Path(__file__).resolve().parents[2]
#: modules of rooms with torch that work without torch, transformers and lmms-eval; whole rooms: test_rooms
TORCH_FREE = [
    "analysis.stages",
    "cost.papers",
    "proof.gate.command",
    "proof.golden_files",
    "runner.request",
    "upkeep.migrate",
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ("harness", "harness.core"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_methods_import_torch_the_method_interface_and_selections_only() -> None:
    allowed = {
        "harness.method",
        "harness.core.budget",
        "harness.core.errors",
        "harness.core.shape",
        "harness.core.flops",
        "harness.core.spelling",
        "methods._select",
        "methods._stages",
        "methods._tiles",
    }
    for path in (ROOT / "methods").glob("*.py"):
        if path.name == "__init__.py":
            continue
        ours = {
            i for i in imports(path) if i.split(".")[0] in ("harness", "methods", "tasks", "transformers", "lmms_eval")
        }
        assert ours <= allowed, (path.name, ours - allowed)


def test_lmms_eval_is_imported_by_the_bridge_and_the_plugin() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("harness", "methods", "tasks")
        for path in (ROOT / folder).rglob("*.py")
        if any(i.split(".")[0] == "lmms_eval" for i in imports(path))
    }
    assert users == {
        "tasks/lmms.py",
        "tasks/rules.py",
        "tasks/scoring.py",
        "tasks/upstream.py",
        "harness/plugin/__init__.py",
        "harness/plugin/cache.py",
        "harness/plugin/model.py",
        "harness/plugin/command.py",
    }


def test_tables_budgets_and_costs_work_without_torch() -> None:
    assert imported_with("".join(f"import harness.{m}\n" for m in TORCH_FREE), *HEAVY) == []


def test_tables_are_written_without_torch_and_without_matplotlib(tmp_path: Path) -> None:
    """The tables are written after every `make eval`; figures are asked for."""
    code = f"""
from pathlib import Path
sys.path.insert(0, "tests")
from factories import answered
from harness.tables import leaderboard
root = Path({str(tmp_path)!r})
asked = ("none", "none"), ("random", "64"), ("fastv", "64")
leaderboard.write([answered(root, method, budget, [1.0, 0.0] * 5) for method, budget in asked], root)
"""
    assert imported_with(code, *HEAVY, "matplotlib") == []
    assert (tmp_path / "LEADERBOARD.md").is_file()


def trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """(path, syntax tree) of every module below these folders of the repository."""
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_number_that_depends_on_a_model_or_prompt() -> None:
    # 35, 611: where LLaVA's long prompt puts the image; 576: its visual tokens. Official code has all three.
    # known sizes, papers' prompts and recorded runs are data; a command's default is a paper's prompt
    data = {
        "harness/core/shape.py",
        "harness/cost/papers.py",
        "harness/tables/published.py",
        "harness/cli/understand.py",
    }
    for path, tree in trees("methods", "harness"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and type(node.value) is int and path not in data:
                assert node.value not in (35, 576, 577, 611), (path, node.lineno, node.value)


#: classes of transformers that are models, towers or configs of a family, and the attributes under which families keep
#: their parts
FAMILY = re.compile(
    r"(?<!\w)(?:\w*For(?:ConditionalGeneration|CausalLM)|(?:Llava|Qwen|InternVL|CLIP|Siglip|Llama|Mistral)\w*(?:Model|Config)\w*"
    r"|language_model|vision_tower|vision_model|text_model|text_projection|multi_modal_projector|mm_projector)(?!\w)"
)
#: a visual token is `visual` everywhere; a module of that name is reached as part of a model
PART = re.compile(r"\b(?:model|core)\.visual\b|\bvisual\.(?:blocks|merger|patch_embed)\b")


def names_of_families(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of whatever code and strings spell of a family's classes and attribute paths; docstrings may."""
    said = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Name):
            words = [node.id]
        elif isinstance(node, ast.Attribute):
            words = [] if ast.unparse(node.value) == "flops" else [node.attr]  # flops.vision_tower counts one
            if PART.search(ast.unparse(node)):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.alias):
            words = [node.name]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            words = node.value.split()
        for word in words:
            if found := FAMILY.search(word):
                yield getattr(node, "lineno", 0), found[0]


def test_only_adapters_spell_class_names_and_attribute_paths_of_models() -> None:
    # the mini model is a LLaVA, which its own scripts make and train
    allowed = ("harness/models/adapters/", "tasks/mini/")
    found = {
        path: names for path, tree in trees("harness", "methods", "tasks") if (names := [*names_of_families(tree)])
    }
    assert {path: names for path, names in found.items() if not path.startswith(allowed)} == {}
    assert "harness/models/adapters/llava.py" in found, "the rule would find nothing"
    for text in (
        "from transformers import LlavaForConditionalGeneration",
        "model.language_model.layers",
        "x = model.model.visual.blocks",
        "if 'language_model' in name: pass",
        "getattr(model, 'vision_tower')",
        "model.model.multi_modal_projector(x)",
        "isinstance(model, transformers.Qwen2_5_VLForConditionalGeneration)",
    ):
        assert [*names_of_families(ast.parse(text))], text


def test_nobody_asks_a_model_for_its_number_of_visual_tokens() -> None:
    """A prompt has one: `prompt.n_visual`, `usual.n_visual`, `own.n_visual`; so has a sample as it is shown."""
    owners = {"prompt", "own", "usual", "self", "sample", "shown"}

    def asked(tree: ast.Module) -> set[str]:
        found = (ast.unparse(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "n_visual")
        return {owner.rpartition(".")[2].partition("[")[0].removesuffix("s") for owner in found}

    for path, tree in trees("harness", "methods", "tasks"):
        assert asked(tree) <= owners, (path, asked(tree))
    assert asked(ast.parse("shape.n_visual + loaded.adapter.shape.n_visual + run.shape.n_visual")) == {"shape"}
    decoder = SHAPES["llava-1.5-7b"].decoder
    assert "n_visual" not in {f.name for f in dataclasses.fields(decoder)}
    with pytest.raises(
        AttributeError, match=r"a decoder has no n_visual since prunebench 0\.2: .*see docs/migrating\.md"
    ):
        _ = decoder.n_visual
