"""Ask a model: prompts in batches, vision features once per image, greedy answers with the cost of each prompt's
trace."""

from __future__ import annotations

import gc
import hashlib
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import Cache

from harness.core import keeps
from harness.core.budget import NONE, Budget
from harness.core.costs import dialogue_cost
from harness.core.errors import PrunebenchError, naming
from harness.core.shape import PromptShape, Size
from harness.core.spelling import given
from harness.core.trace import Trace
from harness.engine.attach import attach
from harness.engine.prefix import Prefix, PrefixCache, prefix_kind, roomy_cache
from harness.engine.run import EngineRun
from harness.engine.tower import check_looks
from harness.method import Method
from harness.method.registry import blaming
from harness.models.generation import penalised
from harness.models.load import LoadedModel, locate_model
from harness.models.pictures import pixels_key, shrunk
from harness.models.prompt import PROBED, Content, Sizes, words
from harness.runner.ahead import Ahead, ahead
from harness.runner.clock import Clock
from harness.runner.features import EncodedImage, FeatureCache, Picture, stacked, together
from harness.runner.pace import check_batch, out_of_memory
from harness.runner.rows import alike, last_row, prefix_length
from harness.runner.second import Then, drawn_by, second_answers


class PromptImage(NamedTuple):
    """An image of a prompt. `load` is called once per `key`. `size`: its (height, width), which models whose images
    differ in tokens need beforehand; None: read off the image itself."""

    key: str
    load: Callable[[], Image.Image]
    size: Size | None = None


@dataclass(frozen=True)
class Prompt:
    """One question on one or more images. `content`: the parts of the turn in order, None standing for the next image;
    `image_key` names the images together; `until` are strings at which an answer ends; all prompts of a call have
    a question `then` or none."""

    key: str
    content: Content
    images: tuple[PromptImage, ...]
    image_key: str
    max_new_tokens: int
    until: tuple[str, ...] = ()
    then: Then | None = None

    @property
    def text(self) -> str:
        """The question: the texts without the images."""
        return words(self.content)

    @classmethod
    def of_one(
        cls,
        key: str,
        text: str,
        image: Callable[[], Image.Image],
        image_key: str,
        max_new_tokens: int,
        until: tuple[str, ...] = (),
        size: Size | None = None,
    ) -> Prompt:
        """A question behind its one image."""
        return cls(key, (None, text), (PromptImage(image_key, image, size),), image_key, max_new_tokens, until)


@dataclass(frozen=True)
class Answer:
    """`cost`: flat numbers of this prompt, see `sample_cost`; `kept`: which visual tokens were there in which layer, as
    `harness.core.keeps` writes it; `wall_s`: this prompt's share of what its batch's images, prefill and decoding took,
    seconds."""

    key: str
    text: str
    n_input_tokens: int
    n_new_tokens: int
    cost: dict[str, float]
    kept: str
    wall_s: float


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Begun(NamedTuple):
    """A batch whose prefill was given to the device: the `logits (b, vocab)` of its last tokens, the `cache`, and the
    seconds that it took so far."""

    batch: Sequence[tuple[list[int], Prompt]]
    logits: Tensor
    cache: Cache
    seconds: float


class _Said(NamedTuple):
    """An answered batch that is not accounted yet; nothing in it is on the device. `tokens`: of each prompt's answers,
    the last of a dialogue last; `seconds`: of all its prompts."""

    prompts: Sequence[Prompt]
    tokens: list[list[list[int]]]
    trace: Trace
    shapes: Sequence[PromptShape]
    stages: Sequence[Sequence[keeps.Stage]]
    seconds: float


class Answerer:
    """A loaded model with a method attached per call. Vision features outlive it, and with `prefixes` so does the
    prefill of images: questions then run their own tokens up to the first reduction (harness/engine/prefix.py). Answers
    do not depend on either.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: Method,
        *,
        batch_size: int = 8,
        seed: int = 0,
        positions: str = "method",
        features: FeatureCache | None = None,
        prefixes: PrefixCache | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_batch(batch_size)
        self.loaded, self.method, self.batch_size = loaded, method, batch_size
        self.seed, self.positions = seed, positions
        self.features = FeatureCache() if features is None else features
        self.prefixes, self.clock = prefixes, clock or Clock()
        shape = loaded.adapter.shape
        where = f"{method.name} in looks()"
        with blaming(where), naming(where):
            self._looks = tuple(method.for_model(shape).looks(shape))
            check_looks(loaded.adapter, self._looks)
        self._looks = tuple(map(loaded.adapter.plain, self._looks))
        self.features.looks.update(self._looks)
        # a cache may serve several models
        self._variant = f"/{loaded.fingerprint} {loaded.dtype} {loaded.image_backend} {pixels_key(method)}"

    @classmethod
    def open(
        cls,
        model: str,
        *,
        method: str = "none",
        budget: Budget = NONE,
        knobs: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        seed: int = 0,
        positions: str = "method",
        prompt: str | None = None,
        image: str | None = None,
        stands_for: str | None = None,
    ) -> Answerer:
        """Load `model` and build `method` at `budget`; raises PrunebenchError as `locate_model` and `Located.method`
        do."""
        located = locate_model(model, device, dtype, prompt=prompt, image=image, stands_for=stands_for)
        built = located.method(method, budget, knobs)
        return cls(located.load(), built, batch_size=batch_size, seed=seed, positions=positions)

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """Answers in any order; batches hold prompts of like length. Raises PrunebenchError naming the sample where one
        fails."""
        for batch in self.batches(prompts):
            yield from batch

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Answer]]:
        """`answer`, a batch at a time."""
        if not prompts:
            return
        with self.clock("tokenise"):
            encoded = [
                (self.loaded.asked(p.key, p.content, p.max_new_tokens, sizes), p)
                for p, sizes in zip(prompts, self._sizes(prompts), strict=True)
            ]
        # images of like-long prompts stay together, so that every image is encoded once also with a small cache
        encoded.sort(key=lambda item: (item[1].max_new_tokens, item[1].until, len(item[0]), item[1].image_key))
        loaded, start, alone, encoder = self.loaded, 0, -1, self.loaded.text_encoder(self.method)
        more: dict[str, Any] = {"text_encoder": encoder, "tokenizer": loaded.word_ids, "pictures": True}
        attached = partial(attach, loaded.model, self.method, self.seed, self.positions, self.features.looks, **more)
        while start < len(encoded):
            size, why, begun, said = 0, "", None, list[_Said]()
            try:
                # attach may try a twin, for which transformers changes torch's default dtype in all threads
                with attached() as run, ahead(self._unread(encoded[start:])) as pictures:
                    while start < len(encoded):
                        batch = self._like(encoded, start)
                        size = len(batch)
                        begun = self._begin(run, batch, pictures)
                        yield from self._accounted(said)  # the batch before, while the device works on this one
                        said.append(self._finish(run, begun))
                        begun = None  # its cache is room for the next
                        start += size
                    yield from self._accounted(said)
            except Exception as error:
                yield from self._accounted(said)
                if not size or not out_of_memory(error):
                    raise
                if size == 1 and alone == start:
                    raise PrunebenchError(
                        f"{self.method.name}: out of memory on {loaded.device} at one prompt a batch, sample"
                        f" {encoded[start][1].key} ({first_line(error)}): free the device of other processes, use"
                        f" {given('dtype', 'bfloat16')} or a device with more memory; {given('batch')} does not help"
                    ) from error
                why = first_line(error)
            if why:
                # outside the handler, whose traceback holds the tensors of the batch that did not fit
                begun, alone = None, start if size == 1 else alone
                self._shrink(size, why)

    def _sizes(self, prompts: Sequence[Prompt]) -> list[Sizes]:
        """(height, width) of each prompt's images as the processor gets them; `PROBED` where it decides nothing."""
        if self.loaded.one_size:
            return [(PROBED,) * len(p.images) for p in prompts]
        found = {image.key: image.size for p in prompts for image in p.images}
        sizes = []
        for p in prompts:
            with naming(f"sample {p.key}"):
                sizes.append(self.loaded.all_shown(self.method, [self._size(p, image, found) for image in p.images]))
        return sizes

    def _size(self, prompt: Prompt, image: PromptImage, found: dict[str, Size | None]) -> Size:
        """(height, width) of an image as its file has it, read off the image where nobody said it."""
        known = found[image.key]
        if known is None:
            width, height = self._image(prompt, image).size
            known = found[image.key] = height, width
        return known

    def _like(self, encoded: Sequence[tuple[list[int], Prompt]], start: int) -> Sequence[tuple[list[int], Prompt]]:
        """The next batch: prompts that end alike, and whose prefixes fit under one window."""
        batch = encoded[start : start + self.batch_size]
        first = batch[0][1]
        same = [b for b in batch if (b[1].max_new_tokens, b[1].until) == (first.max_new_tokens, first.until)]
        if self.prefixes is None:
            return same
        # the window of the longest question may not reach in front of any prompt's last image
        token = self.loaded.image_token_id
        behind = [len(ids) - prefix_length(ids, token) for ids, _ in same]
        room = [n + last_row(ids, token) for n, (ids, _) in zip(behind, same, strict=True)]
        taken = 1
        while taken < len(same) and max(behind[: taken + 1]) < min(room[: taken + 1]):
            taken += 1
        return same[:taken]

    def _shrink(self, size: int, why: str) -> None:
        """Go on with half as many prompts a batch, and with nothing kept from those before."""
        self.batch_size = max(1, size // 2)
        self.features.clear()
        if self.prefixes is not None:
            self.prefixes.clear()
        gc.collect()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        if size > 1:
            tqdm.write(
                f"note: {self.method.name}: out of memory at {size} prompts a batch ({why}); it goes on with"
                f" {self.batch_size}, and {given('batch', self.batch_size)} begins so",
                file=sys.stderr,
            )

    def _unread(self, asked: Sequence[tuple[list[int], Prompt]]) -> dict[str, Callable[[], Picture]]:
        """How to make the pictures that prompts need, by feature, in the order of their use; not those of images whose
        features or prefixes are here."""
        jobs: dict[str, Callable[[], Picture]] = {}
        kind = self._kind()
        for ids, p in asked:
            if self.prefixes is not None and not self._looks and self.prefixes.knows(kind, self._start(ids, p)):
                continue
            for image in p.images:
                if not self.features.knows(key := self._feature(p, image), self._looks):
                    jobs.setdefault(key, partial(self._picture, p, image))
        return jobs

    @torch.inference_mode()
    def _begin(self, run: EngineRun, batch: Sequence[tuple[list[int], Prompt]], pictures: Ahead[Picture]) -> _Begun:
        """Give the batch's prefill to the device."""
        began = time.perf_counter()
        loaded, prompts = self.loaded, [p for _, p in batch]
        ids, mask = self._padded([ids for ids, _ in batch])
        run.samples, run.questions = [*map(drawn_by, prompts)], [p.text for p in prompts]
        cache = roomy_cache(loaded.adapter.shape.depth)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.prefixes is not None:
            prefixes = self._prefixes(run, batch, pictures)
            inputs = {"input_ids": run.share(prefixes, ids, mask)}
        if self.prefixes is None or self._looks:
            images = self._encoded(run, prompts, pictures)
            run.see([image.seen for image in images])
            if self.prefixes is None:
                inputs |= loaded.adapter.inputs([image.features for image in images], ids)
        with self.clock("prefill"):
            logits = loaded.model(**inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        return _Begun(batch, logits, cache, time.perf_counter() - began)

    @torch.inference_mode()
    def _finish(self, run: EngineRun, begun: _Begun) -> _Said:
        """Decode the batch, and read from the device what its account needs."""
        began = time.perf_counter()
        prompts = [p for _, p in begun.batch]
        with self.clock("decode"):
            tokens = [self._decode(begun.logits, begun.cache, begun.batch)]
            tokens += second_answers(self.loaded, run, begun.cache, begun.batch, tokens[0], self._decode)
        run.check_model()  # before an answer reaches a journal
        with self.clock("account"):
            trace, stages = run.trace, [run.stages(row) for row in range(len(prompts))]
        return _Said(prompts, tokens, trace, run.prompts, stages, begun.seconds + time.perf_counter() - began)

    def _accounted(self, said: list[_Said]) -> Iterator[list[Answer]]:
        """Account what was answered; a batch leaves the list once its answers are there."""
        while said:
            answers = self._account(said[-1])
            said.pop()
            yield answers

    def _account(self, said: _Said) -> list[Answer]:
        """The texts, costs and kept tokens of an answered batch."""
        answers = []
        with self.clock("account"):
            for row, (prompt, generated) in enumerate(zip(said.prompts, said.tokens[-1], strict=True)):
                text = self.loaded.processor.tokenizer.decode(generated, skip_special_tokens=True)
                for stop in prompt.until:
                    text = text.split(stop)[0]
                cost = dialogue_cost(said.shapes[row], said.trace, row, [len(answers[row]) for answers in said.tokens])
                kept, n = keeps.encode(said.stages[row]), said.trace.layers[0].tokens[row]
                wall = said.seconds / len(said.prompts)
                answers.append(Answer(prompt.key, text.strip(), n, len(generated), cost, kept, wall))
        return answers

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and attention mask, (b, n) on the device."""
        width = max(len(ids) for ids in rows)
        ids = torch.full((len(rows), width), self.loaded.processor.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, prompt_ids in enumerate(rows):
            ids[row, width - len(prompt_ids) :] = torch.tensor(prompt_ids)
            mask[row, width - len(prompt_ids) :] = 1
        both = torch.stack([ids, mask]).to(self.loaded.device)  # one upload
        return both[0], both[1]

    def _encoded(self, run: EngineRun, prompts: Sequence[Prompt], pictures: Ahead[Picture]) -> list[EncodedImage]:
        """The images of the prompts, one prompt's after the other's."""
        shown = [(self._feature(p, image), p, image) for p in prompts for image in p.images]
        make = {key: partial(self._picture, p, image) for key, p, image in reversed(shown)}

        def encode(missing: list[str]) -> Iterator[EncodedImage]:
            for some in together((self._taken(pictures, key, make[key]) for key in missing), self.loaded.device):
                yield from self._encode(run, some)

        return self.features.get([key for key, _, _ in shown], encode, self._looks)

    def _feature(self, prompt: Prompt, image: PromptImage) -> str:
        """Names the features of a prompt's image, which a family may cut in another way among several."""
        return image.key + self.loaded.way_of(len(prompt.images)) + self._variant

    def _taken(self, pictures: Ahead[Picture], key: str, make: Callable[[], Picture]) -> Picture:
        with self.clock("load images"):
            return pictures.take(key, make)

    def _prefixes(
        self, run: EngineRun, batch: Sequence[tuple[list[int], Prompt]], pictures: Ahead[Picture]
    ) -> list[Prefix]:
        """One per prompt, shared by those of the same tokens up to the end of the last image; those not seen before are
        computed together."""
        assert self.prefixes is not None
        adapter, image_token = self.loaded.adapter, self.loaded.image_token_id
        names = [self._start(ids, p) for ids, p in batch]
        first = dict(zip(reversed(names), reversed(batch), strict=True))

        def capture(starts: list[str]) -> list[Prefix]:
            found: dict[str, Prefix] = {}
            lengths = {start: prefix_length(first[start][0], image_token) for start in starts}
            for names in alike(starts, lengths, self.batch_size):
                asked = [first[start] for start in names]
                encoded = self._encoded(run, [p for _, p in asked], pictures)
                if self._looks:
                    run.see([image.seen for image in encoded])
                ids, mask = self._padded([ids[: lengths[names[0]]] for ids, _ in asked])
                with self.clock("prefix"), run.capturing([drawn_by(p) for _, p in asked]):
                    cache = roomy_cache(run.shape.depth)
                    adapter.core(
                        input_ids=ids,
                        attention_mask=mask,
                        **adapter.inputs([image.features for image in encoded], ids),
                        past_key_values=cache,
                    )
                    found |= zip(names, run.prefixes(), strict=True)
            return [found[start] for start in starts]

        return self.prefixes.get(self._kind(), names, capture)

    def _kind(self) -> str:
        """The kind of prefix that the method starts from."""
        adapter = self.loaded.adapter
        # after for_model, so that defaults are filled in
        return prefix_kind(self.method.for_model(adapter.shape), adapter.usual, self.positions)

    def _start(self, ids: Sequence[int], prompt: Prompt) -> str:
        """Names the tokens of a prompt up to the end of its last image: its images, as they are shown, and the ids."""
        front = array("q", ids[: prefix_length(ids, self.loaded.image_token_id)])
        return f"{prompt.image_key} {hashlib.sha256(front.tobytes()).hexdigest()}{self._variant}"

    def _decode(self, logits: Tensor, cache: Cache, batch: Sequence[tuple[list[int], Prompt]]) -> list[list[int]]:
        """Greedy decoding, under the checkpoint's repetition penalty; a row ends at any of the model's end tokens, at a
        stop string or at its limit."""
        model, tokenizer, prompts = self.loaded.model, self.loaded.processor.tokenizer, [p for _, p in batch]
        said = [list(ids) for ids, _ in batch]  # a row that has ended goes on unheard
        generated: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        for step in range(prompts[0].max_new_tokens):
            chosen = penalised(logits, said, self.loaded.repetition_penalty).argmax(-1)
            # the one wait for the device of a step: -1 where the logits are no numbers
            tokens = torch.where(torch.isfinite(logits).all(1), chosen, -1).tolist()
            if min(tokens) < 0:
                bad = prompts[tokens.index(-1)].key
                raise PrunebenchError(f"{self.method.name}: nan or inf in the logits at step {step} of sample {bad}")
            for row, token in enumerate(tokens):
                said[row].append(token)
                if row not in open_rows:
                    continue
                if token in self.loaded.end_tokens:
                    open_rows.discard(row)
                    continue
                generated[row].append(token)
                stops = prompts[row].until
                if stops and any(s in tokenizer.decode(generated[row], skip_special_tokens=True) for s in stops):
                    open_rows.discard(row)
            if not open_rows or step == prompts[0].max_new_tokens - 1:
                break
            logits = model(input_ids=chosen[:, None], past_key_values=cache).logits[:, -1]
        return generated

    def _image(self, prompt: Prompt, image: PromptImage) -> Image.Image:
        try:
            return image.load()
        except PrunebenchError:
            raise
        except Exception as error:
            raise PrunebenchError(
                f"sample {prompt.key}: its image does not load ({type(error).__name__}: {error})"
            ) from error

    def _picture(self, prompt: Prompt, image: PromptImage) -> Picture:
        """The image as the processor makes it, in a thread of its own or in this one."""
        picture = self._image(prompt, image)
        size = (picture.height, picture.width)
        if not self.loaded.one_size and image.size not in (None, size):
            raise PrunebenchError(
                f"sample {prompt.key}: expected an image of {image.size} pixels (height, width), as its file's head"
                f" says, found {size}: replace the file"
            )
        with naming(f"sample {prompt.key}"):
            shown = shrunk(picture, self.loaded.shown(self.method, size, len(prompt.images)))
            return Picture(prompt.key, self.loaded.processed(shown, len(prompt.images)))

    @torch.inference_mode()
    def _encode(self, run: EngineRun, some: Sequence[Picture]) -> list[EncodedImage]:
        """Features of pictures of one shape, inside attach(), which lets the method change the pixels."""
        samples = dict.fromkeys(picture.sample for picture in some)
        with self.clock("vision"), naming(f"sample {', '.join(samples)}"):
            return list(map(EncodedImage, *run.encode(**self.loaded.uploaded(stacked(some)))))


def batch_for(method: Method, batch: int, device: torch.device) -> int:
    """Prompts of a batch where up to `batch` may be. Rows of an adaptive method reduce at unlike layers and a batch is
    as wide as its widest row, which costs a CPU more than small batches do (VisiPruner on the mini model: 4 takes 0.6
    of the time of 16, 0.8 of that of 8).
    """
    return min(batch, 4) if method.traits.adaptive and device.type == "cpu" else batch
