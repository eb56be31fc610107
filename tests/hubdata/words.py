"""Fixtures of tasks whose answers are words, boxes or captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from hubdata.made import PICTURE, REAL, TEXT, TEXTS, WHOLE, Column, HubTask, picture, size, task

SAID = ["red", "two", "a dog", "yes", "it's 3 o'clock", "blue"]


def votes(said: str, others: int) -> list[str]:
    """Ten annotators' answers: some say something else, an article alone or nothing of meaning."""
    strange = ["unanswerable", "the", "grey.", "don't know", "12,000", "a", "?", "no", "left"]
    return [said] * (10 - others) + strange[:others]


def vqav2() -> HubTask:
    rows = [
        {
            "image": picture(number % 4, "JPEG"),
            "question": f"What is thing {number}?",
            "question_id": 100 + number,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place}
                for place, answer in enumerate(votes(said, (0, 3, 7, 8, 9, 6)[number]), start=1)
            ],
        }
        for number, said in enumerate(SAID)
    ]
    # the whole entry is compared with the others, so that equal answers differ by their number
    entry = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": WHOLE}
    columns = {
        "image": Column(PICTURE, "vqav2/utils.py:12"),
        "question": Column(TEXT, "vqav2/utils.py:76", "doc['question']"),
        "question_id": Column(WHOLE, "vqav2/utils.py:47"),
        "answers": Column(datasets.List(entry), "vqav2/utils.py:38"),
    }
    return task("vqav2_val_lite", "lmms-lab-encoder/LMMs-Eval-Lite vqav2_val lite", columns, rows, SAID)


def vqa(name: str, hub: str, folder: str, lines: Mapping[str, str], id_type: Any) -> HubTask:
    """OK-VQA or VizWiz: ten answers as texts."""
    rows = [
        {
            "image": picture(number % 4),
            "question": f"what is thing {number}?",
            "question_id": number if id_type is WHOLE else f"val_{number:08d}",
            "answers": votes(said, (0, 5, 7, 8, 9, 6)[number]),
        }
        for number, said in enumerate(SAID)
    ]
    columns = {
        "image": Column(PICTURE, f"{folder}/utils.py:10"),
        "question": Column(TEXT, f"{folder}/utils.py:{lines['question']}", lines["reads"]),
        "question_id": Column(id_type, f"{folder}/utils.py:38", "doc['question_id']"),
        "answers": Column(TEXTS, f"{folder}/utils.py:19"),
    }
    return task(name, hub, columns, rows, SAID)


def chartqa() -> HubTask:
    answers = ["14", "Chile", "0.57", "25%", "Yes", "2,030", "-3.2"]
    rows = [
        {
            "image": picture(number % 4),
            "question": f"What does bar {number} show?",
            "answer": answer,
            "type": ("human_test", "augmented_test")[number % 2],
        }
        for number, answer in enumerate(answers)
    ]
    columns = {
        "image": Column(PICTURE, "chartqa/utils.py:2"),
        "question": Column(TEXT, "chartqa/utils.py:6"),
        "answer": Column(TEXT, "chartqa/utils.py:15"),
        "type": Column(TEXT, "chartqa/utils.py:14"),
    }
    return task("chartqa", "lmms-lab-encoder/ChartQA - test", columns, rows, answers)


def documents(name: str, config: str, folder: str, yaml: str) -> HubTask:
    """DocVQA or InfographicVQA: any of several answers, compared letter by letter."""
    answers = [
        ["12 May 1991"],
        ["ITC Limited", "itc"],
        ["$ 4,500"],
        ["the annual report", "annual report"],
        ["7"],
        ["Ö"],
    ]
    rows = [
        {"image": picture(number % 4), "question": f"What does line {number} say?", "answers": said}
        for number, said in enumerate(answers)
    ]
    columns = {
        "image": Column(PICTURE, f"{folder}/utils.py:9"),
        "question": Column(TEXT, f"{folder}/utils.py:13"),
        "answers": Column(TEXTS, f"{folder}/{yaml}"),
    }
    hub = f"lmms-lab-encoder/DocVQA {config} validation"
    return task(name, hub, columns, rows, [said[0] for said in answers])


def ocrbench() -> HubTask:
    kinds = [
        ("Regular Text Recognition", "IIIT5K", ["CENTRE"]),
        ("Handwriting Recognition", "IAM", ["the quick"]),
        ("Digit String Recognition", "ORAND-CAR-A", ["1904"]),
        ("Scene Text-centric VQA", "STVQA", ["exit", "way out"]),
        ("Doc-oriented VQA", "docVQA", ["12 May"]),
        ("Key Information Extraction", "SROIE", ["ＴＯＴＡＬ 9.30"]),
        ("Handwritten Mathematical Expression Recognition", "HME100k", ["x ^ { 2 } + 1"]),
    ]
    rows = [
        {
            "dataset": dataset,
            "question": f" What is written in picture {number}? ",
            "question_type": kind,
            "answer": answers,
            "image": picture(number % 5, "JPEG"),
        }
        for number, (kind, dataset, answers) in enumerate(kinds)
    ]
    columns = {
        "dataset": Column(TEXT, "ocrbench/utils.py:50"),
        "question": Column(TEXT, "ocrbench/utils.py:43"),
        "question_type": Column(TEXT, "ocrbench/utils.py:78"),
        "answer": Column(TEXTS, "ocrbench/utils.py:49"),
        "image": Column(PICTURE, "ocrbench/utils.py:36"),
    }
    return task("ocrbench", "echo840/OCRBench - test", columns, rows, [answers[0] for *_, answers in kinds])


def refcoco() -> HubTask:
    """Boxes as left, top, width and height in pixels; lmms-eval asks once for each phrase."""
    named = [["left hut", "hut"], ["the owl"], ["boat", "grey boat", "boat on the right"], ["goat"], ["small kite"]]
    boxes = [
        (8.0, 8.0, 40.0, 24.0),
        (4.5, 10.0, 30.0, 50.5),
        (0.0, 0.0, 64.0, 64.0),
        (100.0, 5.0, 60.0, 30.0),
        (8, 8, 20, 20),
    ]
    rows, right = [], []
    for number, (phrases, (left, top, width, height)) in enumerate(zip(named, boxes, strict=True)):
        rows.append(
            {
                "question_id": str(900 + number),
                "image": picture(number, "JPEG"),
                "answer": phrases,
                "bbox": [left, top, width, height],
            }
        )
        w, h = size(number)
        box = [left / w, top / h, (left + width) / w, (top + height) / h]
        right += [f"[{', '.join(f'{side:.6f}' for side in box)}]"] * len(phrases)
    columns = {
        "question_id": Column(TEXT, "refcoco/utils_rec.py:90"),
        "image": Column(PICTURE, "refcoco/utils_rec.py:14"),
        "answer": Column(TEXTS, "refcoco/utils_rec.py:27"),
        "bbox": Column(datasets.List(REAL), "refcoco/utils_rec.py:20"),
    }
    wrong = ["[0.9, 0.9, 0.99, 0.99]"] * len(right)
    return task("refcoco_bbox_rec_val", "lmms-lab-encoder/RefCOCO - val", columns, rows, right, wrong)


def flickr30k() -> HubTask:
    said = ["A man in a red coat rides a horse.", "Two dogs run over wet grass.", "A child looks at a large owl."]
    said += ["People wait for the blue bus.", "A woman paints a boat.", "Three birds sit on a wall near a hut."]
    rows = [
        {
            "image": picture(number, "JPEG"),
            "img_id": str(36979 + number),
            "caption": [
                caption,
                caption.lower().replace(".", " today"),
                f"This shows {caption[0].lower()}{caption[1:]}",
            ],
        }
        for number, caption in enumerate(said)
    ]
    columns = {
        "image": Column(PICTURE, "flickr30k/utils.py:17"),
        "img_id": Column(TEXT, "flickr30k/utils.py:34"),
        "caption": Column(TEXTS, "flickr30k/utils.py:36"),
    }
    return task("flickr30k_test_lite", "lmms-lab-encoder/LMMs-Eval-Lite flickr30k_test lite", columns, rows, said)
