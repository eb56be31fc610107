"""Write the mini Qwen from a training checkpoint: `prunebench dev mini export --model mini-qwen DIR`.

float16 safetensors, tokenizer, processor and chat template under tasks/mini/qwen/weights/. The joint phase's checkpoint
is the source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)

from harness.core.errors import PrunebenchError
from tasks.mini.qwen import model as mini

FOLDER = Path(__file__).parent / "weights"


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the training with the names of its tokens of images, as files of Qwen2.5-VL have them."""
    made = mini.build_tokenizer()
    names = {"image_token": mini.IMAGE_TOKEN, "video_token": mini.VIDEO_TOKEN}
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        **{name: token for name, token in made.special_tokens_map.items() if name not in names},
        extra_special_tokens=names | {"vision_start_token": mini.START, "vision_end_token": mini.END},
        padding_side=made.padding_side,
        model_max_length=made.model_max_length,
        model_input_names=made.model_input_names,
        chat_template=made.chat_template,
    )


def processor() -> Any:
    """The processor of the shipped files: tokenizer, images, and the chat template."""
    tok = tokenizer()
    images = mini.image_processor()
    # a processor of this class needs one of videos; prompts with videos are refused
    videos = Qwen2VLVideoProcessor(patch_size=mini.PATCH, merge_size=mini.MERGE)
    return Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=tok, video_processor=videos, chat_template=tok.chat_template
    )


def export(checkpoint: Path, out: Path = FOLDER) -> None:
    """Write the model in `checkpoint` (joint.pt) to `out`; raises PrunebenchError where there is none."""
    if not checkpoint.is_file():
        raise PrunebenchError(
            f"expected the joint phase's checkpoint at {checkpoint}: run `prunebench dev mini train --model mini-qwen"
            f" --out {checkpoint.parent}` first"
        )
    model: Any = Qwen2_5_VLForConditionalGeneration(mini.config(mini.build_tokenizer()))
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["modules"]["qwen"])
    settings = model.generation_config
    settings.do_sample, settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = False, 1, 2, 3
    model.half().save_pretrained(out)
    processor().save_pretrained(out)
