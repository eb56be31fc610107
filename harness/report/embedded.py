"""How data stand in the page: JSON without markup, and compressed chunks."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from typing import Any


def finite(value: Any) -> float | int | None:
    """JSON has no NaN; eight digits are more than a page shows."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else float(f"{number:.8g}")


def text_of(value: Any) -> str:
    """A text of a table of samples; empty where there is none, which pandas reads as None or as NaN."""
    return "" if value is None or value != value else str(value)


def embed_json(value: Any) -> str:
    """JSON that may stand inside a script element whatever its texts are: no `<`, `>`, `&`, U+2028 or U+2029
    remains."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)


def packed(value: Any) -> str:
    """JSON, gzip, base64; the same bytes for the same value."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return base64.b64encode(gzip.compress(text, 9, mtime=0)).decode()
