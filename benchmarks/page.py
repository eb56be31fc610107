"""How large is the report page, and how soon is it there? `python benchmarks/page.py` (five minutes; `--small`: one).

The page of 20 made methods at 5 budgets on 8 tasks and 2 models, with 100 samples a task: 1,616 cells. Kept tokens are
random, which nothing compresses; images are noise with as many bytes as photographs. `--results FOLDER` takes measured
cells instead. Chromium, headless, opens the page from the disk. Printed are:

* write: seconds to make the page from sealed cells, of the processor and of the clock, without kept statistics;
* bytes: of the page, of its images, of its chunks and of what is read at once;
* table: milliseconds from the start of navigation to the drawn leaderboard and figure;
* sample: milliseconds to the first sample, unpacked and with its list.

Times to open are medians of `--repeats` fresh loads. Nothing is kept between two of them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the repository and its made cells are beside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from harness.report import page, views
from harness.store.store import Store
from harness.upkeep.chromium import started

SMALL = {"tasks": ("gqa", "pope"), "models": ("mini",)}
READY = "return document.documentElement.dataset.ready && document.querySelector('#ex-list li') ? performance.now() : 0"


def opened(path: Path, repeats: int) -> list[tuple[float, float]]:
    """Milliseconds to the drawn table and to the first sample, of each load."""
    found = []
    for _ in range(repeats):
        with started("page", 1440, 1000) as driver:
            driver.get(f"file://{path}")
            while not (sample := driver.execute_script(READY)):
                time.sleep(0.01)
            table = float(driver.execute_script("return document.documentElement.dataset.ready"))
            wrong = [entry["message"] for entry in driver.get_log("browser")]
            if wrong:
                raise SystemExit(f"the page says: {wrong[0]}")
            found.append((table, float(sample)))
    return found


def parts(html: str) -> dict[str, int]:
    """Bytes of the page by what they are."""
    images, chunks = (sum(map(len, re.findall(rf'id="{kind}-\d+">([^<]*)<', html))) for kind in ("image", "chunk"))
    whole = len(html.encode())
    return {"page": whole, "images": images, "chunks": chunks, "read at once": whole - images - chunks}


def built(root: Path, args: argparse.Namespace) -> tuple[page.Page, list[str], float, float]:
    """The page, what its maker said, and seconds of the processor and of the clock."""
    said: list[str] = []
    if args.results:
        made: Any = Store(args.results).cells([])
    else:
        import bigpage

        made = list(bigpage.cells(root / "answers", bigpage.WHOLE._replace(**SMALL if args.small else {})))
        views.Pictures.square = bigpage.Photographs().square  # type: ignore[method-assign]
    clock, processor = time.perf_counter(), time.process_time()
    # statistics are kept below a results folder: this one is empty
    found = page.fitting(made, root, args.samples, say=said.append)
    return found, said, time.process_time() - processor, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="2 tasks and 1 model: 202 cells")
    parser.add_argument("--results", type=Path, help="measured cells instead of made ones")
    parser.add_argument("--samples", type=int, default=page.SAMPLES, help="of a task")
    parser.add_argument("--repeats", type=int, default=5, help="loads of the page")
    parser.add_argument("--out", type=Path, help="keep the page in this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, said, processor, clock = built(Path(folder), args)
        path = Path(folder) / "page.html"
        path.write_text(found.html, encoding="utf-8")
        if args.out:
            shutil.copy(path, args.out)
        times = opened(path, args.repeats)
    for line in said:
        print(f"note    {line}")
    table, sample = (statistics.median(one[i] for one in times) for i in (0, 1))
    print(f"cells   {found.n_cells:,}, with {found.n_samples:,} samples to look at")
    print(f"write   {processor:.1f} s of the processor, {clock:.1f} s of the clock")
    print("bytes   " + ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in parts(found.html).items()))
    print(f"open    table {table:.0f} ms, first sample {sample:.0f} ms (medians of {len(times)})")
    print(f"loads   {json.dumps([[round(one) for one in load] for load in times])}")


if __name__ == "__main__":
    main()
