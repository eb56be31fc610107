"""The mini model's tokenizer: byte-level BPE in which every word of the world is one token and codes are read by
character."""

from __future__ import annotations

import itertools
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tasks.mini import questions, world

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
#: the Vicuna roles of LLaVA-1.5's prompt, one token each
ROLES = ("USER:", "ASSISTANT:")
#: same shape as the LLaVA-1.5 prompt without its system prompt; accepts string and list content
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def corpus() -> list[str]:
    """Every sentence shape of the world with every word in it; deterministic."""
    lines = []
    rng = random.Random(0)
    for seed, kind in itertools.product(range(400), questions.KINDS):
        scene = world.make_scene(seed, (6, 9), (1, 2))
        question = questions.ask(kind, scene, rng)
        if question is not None:
            lines += [question.text + questions.POST_PROMPT, " " + question.answer]
            if kind == "code":
                lines.append(question.text + questions.ocr_suffix(scene) + questions.POST_PROMPT)
    words = [*world.SHAPES, *world.COLOUR_NAMES, *world.RELATIONS, "yes", "no"]
    lines += [" " + w for w in words for _ in range(200)]
    return lines


def build() -> PreTrainedTokenizerFast:
    """Train the tokenizer from `corpus()`."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # a capital or digit that does not begin a word stands alone, so that codes are read one character at a time
            pre_tokenizers.Split(Regex(r"[A-Z0-9](?![a-z])"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=5,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    core.add_tokens([AddedToken(r, lstrip=True, special=False, normalized=False) for r in ROLES])
    core.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )
