"""Who may import whom (see the README's layout), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: modules that work without torch, transformers and lmms-eval
TORCH_FREE = ("budget", "cell", "errors", "flops", "leaderboard", "published", "shape", "stats", "store", "trace")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_methods_import_torch_the_method_interface_and_selections_only() -> None:
    allowed = {"harness.method", "harness.budget", "harness.errors", "harness.shape", "harness.flops", "methods._select"}
    for path in (ROOT / "methods").glob("*.py"):
        if path.name == "__init__.py":
            continue
        ours = {i for i in imports(path) if i.split(".")[0] in ("harness", "methods", "tasks", "transformers", "lmms_eval")}
        assert ours <= allowed, (path.name, ours - allowed)


def test_lmms_eval_is_imported_by_one_module() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("harness", "methods", "tasks")
        for path in (ROOT / folder).rglob("*.py")
        if any(i.split(".")[0] == "lmms_eval" for i in imports(path))
    }
    # the manifest is the entry point that lmms-eval itself calls
    assert users == {"tasks/lmms.py", "tasks/manifest.py"}


def test_tables_budgets_and_costs_work_without_torch() -> None:
    code = "import sys\n" + "".join(f"import harness.{m}\n" for m in TORCH_FREE)
    code += "bad = [m for m in ('torch', 'transformers', 'lmms_eval') if m in sys.modules]\nsys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_number_that_depends_on_a_model_or_prompt() -> None:
    # 35, 611: where LLaVA's long prompt puts the image; 576: its visual tokens. Official code has all three.
    engine = [ROOT / "harness" / f"{m}.py" for m in ("engine", "attention", "layout", "answering", "adapters")]
    for path in [*(ROOT / "methods").glob("*.py"), *engine]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                assert node.value not in (35, 576, 577, 611), (path.name, node.lineno, node.value)
