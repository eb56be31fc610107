"""Who may import whom (see the README's layout), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: modules that work without torch, transformers and lmms-eval
TORCH_FREE = (
    "asked", "blocks", "budget", "cell", "command", "compare", "errors", "figures", "flops", "golden_files", "leaderboard", "lease",
    "migrate", "published", "published_results", "regress", "report", "request", "results", "shape", "show", "stats", "stages", "store",
    "trace", "views",
)  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "harness":
            found |= {f"harness.{alias.name}" for alias in node.names}
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


def test_tables_are_written_without_torch_and_without_matplotlib(tmp_path: Path) -> None:
    """The tables are written after every `make eval`; figures are asked for."""
    code = (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, 'tests')\nfrom answered import answered\nfrom harness import leaderboard\n"
        f"root = Path({str(tmp_path)!r})\n"
        "leaderboard.write([answered(root, m, b, [1.0, 0.0] * 5) for m, b in (('none', 'none'), ('random', '64'), ('fastv', '64'))], root)\n"
        "bad = [m for m in ('torch', 'transformers', 'lmms_eval', 'matplotlib') if m in sys.modules]\nsys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "LEADERBOARD.md").is_file()


def test_no_number_that_depends_on_a_model_or_prompt() -> None:
    # 35, 611: where LLaVA's long prompt puts the image; 576: its visual tokens. Official code has all three.
    engine = [ROOT / "harness" / f"{m}.py" for m in ("engine", "attention", "layout", "answering", "adapters")]
    for path in [*(ROOT / "methods").glob("*.py"), *engine]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                assert node.value not in (35, 576, 577, 611), (path.name, node.lineno, node.value)
