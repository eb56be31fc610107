"""Small data sets of sixteen tasks, laid out as their repositories on the hub: `write(root)` makes `root/owner/name/`.

Columns and types are those that the task's code reads; each column names the line of the installed lmms-eval that
reads it. Nothing here was compared with the hub. Rows and pictures are made up, and the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets

from hubdata import letters, words
from hubdata.made import TEXT, WHOLE, HubTask

LITE = "lmms-lab-encoder/LMMs-Eval-Lite"
_ALL = (
    letters.mmbench(),
    letters.mmstar(),
    letters.scienceqa(),
    letters.seedbench(),
    words.vqav2(),
    words.vqa("ok_vqa_val2014_lite", f"{LITE} ok_vqa_val2014 lite", "ok_vqa", {"question": "45", "reads": ""}, WHOLE),
    words.vqa(
        "vizwiz_vqa_val",
        "lmms-lab-encoder/VizWiz-VQA - val",
        "vizwiz_vqa",
        {"question": "53", "reads": "doc['question']"},
        TEXT,
    ),
    letters.ai2d(),
    words.chartqa(),
    words.documents("docvqa_val", "DocVQA", "docvqa", "_default_template_docvqa_yaml:8"),
    words.documents("infovqa_val", "InfographicVQA", "infovqa", "_default_template_infovqa_yaml:5"),
    words.ocrbench(),
    letters.realworldqa(),
    letters.mmmu(),
    words.refcoco(),
    words.flickr30k(),
)
HUB_TASKS: Mapping[str, HubTask] = {made.name: made for made in _ALL}


def write(root: Path, names: Sequence[str] = tuple(HUB_TASKS)) -> Path:
    """The data sets of these tasks below `root`, each with the list of its files in README.md, as on the hub."""
    repositories: dict[str, list[HubTask]] = {}
    for name in names:
        repositories.setdefault(HUB_TASKS[name].repository, []).append(HUB_TASKS[name])
    for repository, tasks in repositories.items():
        for made in tasks:
            path = root / repository / made.file
            path.parent.mkdir(parents=True, exist_ok=True)
            features = datasets.Features({name: column.type for name, column in made.columns.items()})
            datasets.Dataset.from_list([dict(row) for row in made.rows], features=features).to_parquet(path)
        (root / repository / "README.md").write_text("\n".join(["---", "configs:", *_listed(tasks), "---", ""]))
    return root


def _listed(tasks: Sequence[HubTask]) -> Iterator[str]:
    for made in tasks:
        yield f"- config_name: {made.config or 'default'}"
        yield "  data_files:"
        yield f"  - split: {made.split}"
        yield f"    path: {made.file.replace('00000-of-00001', '*')}"
