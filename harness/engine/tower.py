"""What methods see of the vision tower: softmax rows of [CLS], column sums, keys, and streams of its layers, kept while
it runs.

Softmax rows are computed from the layer's own q and k, a block of queries at a time, so the tower keeps its fused
kernel and no n x n matrix exists. A look is delivered in the order of the language model's visual tokens. Where a
projector joins patches into one visual token, its column sum and its stream are the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from harness.core.errors import PrunebenchError
from harness.method import TowerLook, What
from harness.method.fits import unseen
from harness.models.adapters import Adapter
from harness.models.adapters.base import ROWS

#: what the tower showed of one image
Seen = Mapping[TowerLook, Tensor]
#: queries whose softmax rows are held at once
QUERIES_AT_ONCE = 64


class TowerView(dict[TowerLook, Tensor]):
    """What `Method.on_image` gets: the declared looks, for a batch of prompts."""

    def __missing__(self, look: TowerLook) -> Tensor:
        raise PrunebenchError(
            f"{look} was not asked for: return it from looks() as well (found {', '.join(map(str, self)) or 'nothing'})"
        )


def check_looks(adapter: Adapter, looks: Iterable[TowerLook]) -> None:
    """Raise PrunebenchError for a look that there is not, or at a layer that the tower does not have."""
    depth, vision = len(adapter.tower_layers), adapter.usual.images[0].vision
    for look in looks:
        if not isinstance(look, TowerLook) or look.what not in get_args(What) or type(look.layer) is not int:
            raise PrunebenchError(
                f"expected TowerLook(what, layer) with what one of {', '.join(get_args(What))}; found {look!r}"
            )
        if not -depth <= look.layer < depth:
            raise PrunebenchError(
                f"{look}: expected a layer from {-depth} to {depth - 1} (of the vision tower), found {look.layer}"
            )
        why = unseen(look.what, vision)
        if why is not None:
            raise PrunebenchError(f"{look}: {why} in {type(adapter.model).__name__}")


class TowerEye:
    """Hooks on a vision tower that keep `looks` of every forward pass and hand them to `give`, one mapping an image.

    `facts` says how the images of a pass were cut, as `Adapter.images` takes it. Raises PrunebenchError as
    `check_looks`.
    """

    def __init__(
        self,
        adapter: Adapter,
        looks: Iterable[TowerLook],
        give: Callable[[list[Seen]], None],
        facts: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._adapter, self._give, self._facts, self._kept = adapter, give, facts, dict[TowerLook, Tensor]()
        self._handles: list[Any] = []
        #: of a tower that is joined, the patches of each visual token, image by image
        self._order: list[Tensor] = []
        layers = adapter.tower_layers
        looks = list(looks)
        check_looks(adapter, looks)
        wanted = sorted({adapter.plain(look) for look in looks})
        try:
            if wanted and adapter.joined:
                self._handles.append(adapter.tower.register_forward_pre_hook(self._start, with_kwargs=True))
            for look in wanted:
                layer = layers[look.layer]
                if look.what == "mean_hidden":
                    self._keep(layer, look, None if adapter.joined else slice(adapter.tower_prefix or 0, None))
                elif adapter.joined:
                    sums = partial(self._sums, look, adapter.tower_scaling(layer))
                    self._handles += adapter.watch_attention(layer, sums, 2 if look.what == "twice_rotated_sums" else 1)
                else:
                    self._watch(adapter, layers[look.layer], look)
            if wanted:
                self._handles.append(adapter.tower.register_forward_hook(self._finish))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, adapter: Adapter, layer: nn.Module, look: TowerLook) -> None:
        first = adapter.tower_prefix or 0
        patches, cls = slice(first, None), slice(0, 1)
        if look.what in ("hidden", "cls_hidden"):
            self._keep(layer, look, patches if look.what == "hidden" else cls)
            return
        attention = adapter.tower_attention(layer)
        if look.what in ("keys", "cls_key"):
            self._keep(attention.k_proj, look, patches if look.what == "keys" else cls)
        elif look.what == "cls_query":
            self._keep(attention.q_proj, look, cls)
        else:
            asked: list[Tensor] = []

            def query(_module: nn.Module, _args: Any, out: Tensor) -> None:
                asked[:] = [out[:, :1] if look.what == "cls_row" else out]

            def rows(_module: nn.Module, _args: Any, out: Tensor) -> None:
                q, k = (x.view(*x.shape[:2], attention.heads, -1).transpose(1, 2) for x in (asked.pop(), out))
                self._kept[look] = _summed_rows(q, k, attention.scaling)[:, :, patches]

            # queries are projected before keys
            self._handles += [
                attention.q_proj.register_forward_hook(query),
                attention.k_proj.register_forward_hook(rows),
            ]

    def _keep(self, module: nn.Module, look: TowerLook, tokens: slice | None) -> None:
        """Keep what a module says of these tokens; None: of the patches of all images, which stand in one row."""

        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            said = out if isinstance(out, Tensor) else out[0]
            self._kept[look] = said if tokens is None else said[:, tokens]

        self._handles.append(module.register_forward_hook(hook))

    def _start(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._order = self._adapter.tower_order(kwargs)

    def _sums(self, look: TowerLook, scaling: float, q: Tensor, k: Tensor, parts: list[int]) -> None:
        """Keep column sums of a layer with `q`, `k (heads, patches, d)`: within the parts in which it attends, or
        within whole images."""
        if look.what in ("whole_column_sums", "twice_rotated_sums"):
            parts = [patches.numel() for patches in self._order]
        pairs = zip(torch.split(q, parts, 1), torch.split(k, parts, 1), strict=True)
        self._kept[look] = torch.cat([_summed_rows(some[None], keys[None], scaling)[0] for some, keys in pairs], 1)

    def _finish(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        kept, self._kept = self._kept, {}
        if self._order:
            order, self._order = self._order, []
            self._give([{look: _joined(look, values, at) for look, values in kept.items()} for at in order])
            return
        facts = self._facts()
        images = [
            (self._adapter.per_tile if look.tiles else self._adapter.per_image)(look.what, values, facts)
            for look, values in kept.items()
        ]
        self._give([dict(zip(kept, values, strict=True)) for values in zip(*images, strict=True)])


def _joined(look: TowerLook, values: Tensor, at: Tensor) -> Tensor:
    """The mean of the patches `at (v, patches)` of each visual token: of `values (heads, patches)`, or of streams
    (patches, width)."""
    return values[:, at].mean(2) if look.what in ROWS else values[at].mean(1)


def _summed_rows(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    """(images, heads, tokens), float32 at least: the softmax rows of `q (images, heads, rows, d)` on all keys, summed
    over rows."""
    exact = torch.promote_types(q.dtype, torch.float32)
    total: Tensor | None = None
    for some in torch.split(q, QUERIES_AT_ONCE, 2):
        rows = ((some @ k.transpose(-1, -2)) * scaling).to(exact).softmax(-1).sum(2)
        total = rows if total is None else total + rows
    assert total is not None
    return total


def batched(seen: Sequence[Seen], images: Sequence[int], looks: Mapping[TowerLook, TowerLook]) -> TowerView:
    """The looks at a batch of prompts with `images` images each: patches (or images) of a prompt one after the other, 0
    beyond a row's count.

    `looks`: of each look as the method declares it, the look as it was kept (`Adapter.plain`). The tensors are copies:
    what a method writes into them stays its own.
    """
    view = TowerView()
    for look, kept in looks.items():
        patches = -1 if look.what in ROWS else 0
        rows, start = [], 0
        for n in images:
            rows.append(torch.cat([one[kept] for one in seen[start : start + n]], patches).movedim(patches, 0))
            start += n
        view[look] = nn.utils.rnn.pad_sequence(rows, batch_first=True).movedim(1, -1 if patches else 1)
    return view
