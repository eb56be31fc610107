"""The analyses of a results folder, as the page shows them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError

_PNG, _SVG = "image/png", "image/svg+xml"


def read_analyses(results: Path) -> dict[str, dict[str, Any]]:
    """What `<results>/analysis/*/analysis.json` says, by model, figures inlined as data URLs.

    Raises PrunebenchError for a file that is not what the analysis writes, naming the command that writes it again.
    """
    found = {}
    for path in sorted((results / "analysis").glob("*/analysis.json")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            json.dumps(raw, allow_nan=False)  # the page holds it, and JSON knows neither NaN nor infinity
            figures = [
                # the PNG, where there is one: half of the bytes
                {
                    **{k: str(f.get(k, "")) for k in ("title", "alt")},
                    "src": _data_url(path.parent, str(f.get("png") or f["file"])),
                }
                for f in raw["figures"]
            ]
            # nothing where the analysis was restricted to some layers
            parts = ("shallow_end", "fusion", "not_needed_from", "rule", "uncertainty")
            stages = {name: raw["stages"][name] for name in parts} if raw["stages"] else None
            kept = {name: raw.get(name) for name in ("fingerprint", "n_samples", "tasks", "command", "depth")}
            tables = {name: [_scalars(row) for row in raw.get(name, [])] for name in ("layers", "knockouts")}
            found[str(raw["model"])] = {**kept, **tables, "stages": stages, "figures": figures}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PrunebenchError(
                f"{path}: expected the analysis of a model with its figures, found {type(error).__name__}: {error}; "
                "`make analyze` writes it again, or move the folder elsewhere"
            ) from None
    return found


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a row that fit a table's cell."""
    return {name: value for name, value in row.items() if isinstance(value, str | int | float)}


def _data_url(folder: Path, name: str) -> str:
    path = (folder / name).resolve()
    kind = {".svg": _SVG, ".png": _PNG}.get(path.suffix)
    if kind is None or not path.is_relative_to(folder.resolve()):
        raise ValueError(f"figure {name!r}: expected an SVG or PNG beside the file")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
