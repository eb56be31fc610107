"""Write the shipped model from a training checkpoint: `prunebench dev mini export DIR`.

float16 safetensors, tokenizer, processor and chat template under tasks/mini/weights/. The joint phase's checkpoint is
the source.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

from harness.core.errors import PrunebenchError
from tasks.mini import model as mini
from tasks.mini import tokenizer, world

FOLDER = Path(__file__).parent / "weights"


def export(checkpoint: Path, out: Path = FOLDER) -> None:
    """Write the model in `checkpoint` (joint.pt) to `out`; raises PrunebenchError where there is none."""
    if not checkpoint.is_file():
        raise PrunebenchError(
            f"expected the joint phase's checkpoint at {checkpoint}: run `prunebench dev mini train --out"
            f" {checkpoint.parent}` first"
        )
    tok = tokenizer.build()
    model = LlavaForConditionalGeneration(mini.llava_config(tok))
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["modules"]["llava"])
    model.generation_config.pad_token_id = tok.pad_token_id
    images = CLIPImageProcessor(
        size={"shortest_edge": world.IMAGE_SIZE}, crop_size={"height": world.IMAGE_SIZE, "width": world.IMAGE_SIZE}
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tok,
        patch_size=world.PATCH,
        vision_feature_select_strategy="default",
        chat_template=tok.chat_template,
        image_token=mini.IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
    model.half().save_pretrained(out)
    processor.save_pretrained(out)


def main(argv: list[str] | None = None, model: str = "mini") -> None:
    """Write an embedded model, `mini` or `mini-qwen`."""
    write, folder = export, FOLDER
    if model != "mini":
        from tasks.mini.qwen import export as qwen

        write, folder = qwen.export, qwen.FOLDER
    parser = argparse.ArgumentParser(description=f"Write the shipped files of {model} from a training checkpoint.")
    parser.add_argument("folder", type=Path, help="what --out was in training")
    parser.add_argument("--out", type=Path, default=folder)
    args = parser.parse_args(argv)
    write(args.folder / "joint.pt", args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
