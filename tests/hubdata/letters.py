"""Fixtures of tasks whose answers are letters of options, most of them."""

from __future__ import annotations

import datasets

from hubdata.made import LETTERS, NOTHING_RIGHT, PICTURE, TEXT, TEXTS, WHOLE, Column, HubTask, another, picture, task


def mmbench() -> HubTask:
    """Four questions, two of them in two rows: MMBench turns the options and adds a million to the index."""
    answers, rows = "ACBDAB", []
    for number, (index, answer) in enumerate(zip((3, 8, 21, 40, 1000021, 1000040), answers, strict=True)):
        shown = number if number < 4 else number - 2
        named = ["a red kite", "a green boat", "a blue hut", "a grey owl"]
        rows.append(
            {
                "index": index,
                "image": picture(shown),
                "question": f"Which thing is in the middle of picture {shown}?",
                "hint": (None, "nan", "Look twice.")[number % 3],
                "answer": answer,
                **dict(zip(LETTERS, named[number:] + named[:number], strict=False)),
                "category": ("object_localization", "image_topic")[shown % 2],
                "L2-category": ("finegrained_perception", "coarse_perception")[shown % 2],
                "source": "made up",
                "split": "dev",
            }
        )
    for row in rows:
        for letter in LETTERS:
            row.setdefault(letter, "a white goat")
    # two options only: the code leaves out those that are the text "nan"
    rows[0] |= {"C": "nan", "D": "nan"}
    utils = "mmbench/en_utils.py"
    columns = {
        "index": Column(WHOLE, f"{utils}:62"),
        "image": Column(PICTURE, f"{utils}:43"),
        "question": Column(TEXT, f"{utils}:56"),
        "hint": Column(TEXT, f"{utils}:63"),
        "answer": Column(TEXT, f"{utils}:57"),
        **{letter: Column(TEXT, f"{utils}:51") for letter in LETTERS},
        "category": Column(TEXT, f"{utils}:59"),
        "L2-category": Column(TEXT, f"{utils}:60"),
        "source": Column(TEXT, f"{utils}:64"),
        "split": Column(TEXT, f"{utils}:65"),
    }
    hub = "lmms-lab-encoder/MMBench en dev"
    return task("mmbench_en_dev_static", hub, columns, rows, list(answers), another(answers, 2))


def mmstar() -> HubTask:
    """Every category at least once, and finer categories of unlike sizes."""
    categories = [
        ("coarse perception", "image emotion"),
        ("coarse perception", "image scene and topic"),
        ("coarse perception", "image scene and topic"),
        ("fine-grained perception", "recognition"),
        ("instance reasoning", "single-instance reasoning"),
        ("logical reasoning", "diagram reasoning"),
        ("science & technology", "geography & earth science & agriculture"),
        ("math", "geometry"),
        ("math", "geometry"),
    ]
    answers = "ABCDDCBAA"
    rows = [
        {
            "index": number,
            "question": f"What is in picture {number % 6}?\nOptions: A: a hut, B: a kite, C: a boat, D: an owl",
            "image": picture(number % 6, "JPEG"),
            "answer": answer,
            "category": category,
            "l2_category": finer,
        }
        for number, (answer, (category, finer)) in enumerate(zip(answers, categories, strict=True))
    ]
    columns = {
        "index": Column(WHOLE, "mmstar/utils.py:123"),
        "question": Column(TEXT, "mmstar/utils.py:64"),
        "image": Column(PICTURE, "mmstar/utils.py:26"),
        "answer": Column(TEXT, "mmstar/utils.py:118"),
        "category": Column(TEXT, "mmstar/utils.py:121"),
        "l2_category": Column(TEXT, "mmstar/utils.py:122"),
    }
    return task("mmstar", "Lin-Chen/MMStar - val", columns, rows, list(answers), another(answers))


def scienceqa() -> HubTask:
    counts, indices = (2, 3, 4, 2, 3, 4, 2), (0, 2, 3, 1, 0, 1, 1)
    rows = [
        {
            "image": picture(number % 5),
            "question": f"Which of these is a property of thing {number}?",
            "choices": ["hard", "soft", "rough", "smooth"][:count],
            "answer": index,
            "hint": ("", "The thing was left in the rain.")[number % 2],
        }
        for number, (count, index) in enumerate(zip(counts, indices, strict=True))
    ]
    columns = {
        "image": Column(PICTURE, "scienceqa/utils.py:23"),
        "question": Column(TEXT, "scienceqa/utils.py:2"),
        "choices": Column(TEXTS, "scienceqa/utils.py:2"),
        "answer": Column(WHOLE, "scienceqa/utils.py:31"),
        "hint": Column(TEXT, "scienceqa/utils.py:2"),
    }
    right = [LETTERS[index] for index in indices]
    hub = "lmms-lab-encoder/ScienceQA ScienceQA-IMG test"
    return task("scienceqa_img", hub, columns, rows, right, another(right, 2))


def seedbench() -> HubTask:
    """Questions about pictures, and two about videos, whose frames stand in one list."""
    answers, rows = "BADCBACA", []
    for number, answer in enumerate(answers):
        frames = [picture(number % 5)] if number < 6 else [picture(number), picture(number + 1), picture(number)]
        choices = dict(
            zip(("choice_a", "choice_b", "choice_c", "choice_d"), ("one", "two", "three", "four"), strict=True)
        )
        rows.append(
            {
                "image": frames,
                "question": f"How many birds are in picture {number}?",
                **choices,
                "answer": answer,
                "data_type": "image" if number < 6 else "video",
                "question_id": f"q{number}",
            }
        )
    columns = {
        "image": Column(datasets.List(PICTURE), "seedbench/utils.py:5"),
        "question": Column(TEXT, "seedbench/utils.py:9"),
        "choice_a": Column(TEXT, "seedbench/utils.py:10"),
        "choice_b": Column(TEXT, "seedbench/utils.py:11"),
        "choice_c": Column(TEXT, "seedbench/utils.py:12"),
        "choice_d": Column(TEXT, "seedbench/utils.py:13"),
        "answer": Column(TEXT, "seedbench/utils.py:21"),
        "data_type": Column(TEXT, "seedbench/utils.py:22"),
        "question_id": Column(TEXT, "seedbench/utils.py:24"),
    }
    return task("seedbench", "lmms-lab-encoder/SEED-Bench - test", columns, rows, list(answers), another(answers))


def ai2d() -> HubTask:
    answers = "0312203"
    rows = [
        {
            "image": picture(number % 3),
            "question": f"Which letter names part {number}?",
            "options": ["leaf", "stem", "root", "seed"],
            "answer": answer,
        }
        for number, answer in enumerate(answers)
    ]
    columns = {
        "image": Column(PICTURE, "ai2d/utils.py:27"),
        "question": Column(TEXT, "ai2d/utils.py:7"),
        "options": Column(TEXTS, "ai2d/utils.py:7"),
        "answer": Column(TEXT, "ai2d/utils.py:34"),
    }
    right = [LETTERS[int(answer)] for answer in answers]
    return task("ai2d", "lmms-lab-encoder/ai2d - test", columns, rows, right, another(right))


def realworldqa() -> HubTask:
    answers = ["A", "C", "0", "Downhill", "B", "Yes"]
    asked = "\nPlease answer directly with only the letter of the correct option and nothing else."
    rows = [
        {
            "image": picture(number % 4),
            "question": f"What does sign {number} say?" + (asked if answer in LETTERS else ""),
            "answer": answer,
        }
        for number, answer in enumerate(answers)
    ]
    columns = {
        "image": Column(PICTURE, "realworldqa/utils.py:10"),
        "question": Column(TEXT, "realworldqa/utils.py:18"),
        "answer": Column(TEXT, "realworldqa/utils.py:38"),
    }
    return task("realworldqa", "lmms-lab-encoder/RealWorldQA - test", columns, rows, answers)


def mmmu() -> HubTask:
    """Questions of five subjects with one to three images, between the words, in the options, and out of order."""
    asked = [
        ("Accounting_1", "<image 1> What is the sum?", ["$6", "$63", "$90", "$12"], "B", (0,)),
        ("Accounting_2", "Compare <image 1> with <image 2>. Which grows?", ["the first", "the second"], "A", (1, 2)),
        ("Art_3", "Which picture is older?", ["<image 1>", "<image 2>", "<image 3>"], "C", (3, 4, 5)),
        ("Math_4", "See <image 2> before <image 1>. What is the angle in degrees?", [], "45", (6, 7)),
        ("Physics_5", "What is the unit in <image 1>?", [], "newton", (0,)),
        ("Clinical_Medicine_6", "What does <image 1> show?", ["a bone", "a lung", "a heart", "a hand"], "D", (8,)),
        ("Math_7", "<image 1> Find y.", ["1", "2", "3", "4"], "A", (6,)),
    ]
    rows = [
        {
            "id": f"validation_{name}",
            "question": question,
            "question_type": "multiple-choice" if options else "open",
            "options": repr(options),
            "answer": answer,
            **{f"image_{i + 1}": picture(shown[i]) if i < len(shown) else None for i in range(7)},
        }
        for name, question, options, answer, shown in asked
    ]
    columns = {
        "id": Column(TEXT, "mmmu/utils.py:204"),
        "question": Column(TEXT, "mmmu/utils.py:75"),
        "question_type": Column(TEXT, "mmmu/utils.py:76"),
        "options": Column(TEXT, "mmmu/utils.py:78"),
        "answer": Column(TEXT, "mmmu/utils.py:205"),
        **{f"image_{i}": Column(PICTURE, "mmmu/utils.py:177", "doc[image_token]") for i in range(1, 8)},
    }
    right = [answer for *_, answer, _ in asked]
    wrong = [another(answer, 2 if answer in "AB" else 3)[0] if answer in LETTERS else NOTHING_RIGHT for answer in right]
    return task("mmmu_val", "lmms-lab-encoder/MMMU - validation", columns, rows, right, wrong)
