"""What methods see of the vision tower: softmax rows of [CLS], keys, and streams of its layers, kept while it runs.

The row is computed from the layer's own q and k for one query, so the tower keeps its fused kernel and no n x n matrix exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from harness.adapters import LlavaAdapter
from harness.errors import PrunebenchError
from harness.method import TowerLook, What

#: what the tower showed of one image
Seen = Mapping[TowerLook, Tensor]


class TowerView(dict[TowerLook, Tensor]):
    """What `Method.on_image` gets: the declared looks, for a batch of prompts."""

    def __missing__(self, look: TowerLook) -> Tensor:
        raise PrunebenchError(f"{look} was not asked for: return it from looks() as well (found {', '.join(map(str, self)) or 'nothing'})")


def check_looks(adapter: LlavaAdapter, looks: Iterable[TowerLook]) -> None:
    """Raise PrunebenchError for a look that there is not, or at a layer that the tower does not have."""
    depth = len(adapter.tower_layers)
    for look in looks:
        if not isinstance(look, TowerLook) or look.what not in get_args(What):
            raise PrunebenchError(f"expected TowerLook(what, layer) with what one of {', '.join(get_args(What))}; found {look!r}")
        if not -depth <= look.layer < depth:
            raise PrunebenchError(f"{look}: expected a layer from {-depth} to {depth - 1} (of the vision tower), found {look.layer}")


class TowerEye:
    """Hooks on a vision tower that keep `looks` of every forward pass and hand them to `give`, one mapping an image.

    Raises PrunebenchError as `check_looks`.
    """

    def __init__(self, adapter: LlavaAdapter, looks: Iterable[TowerLook], give: Callable[[list[Seen]], None]) -> None:
        self._give, self._kept = give, dict[TowerLook, Tensor]()
        self._handles: list[Any] = []
        layers = adapter.tower_layers
        looks = list(looks)
        check_looks(adapter, looks)
        wanted = sorted(set(looks))
        try:
            for look in wanted:
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

    def _watch(self, adapter: LlavaAdapter, layer: nn.Module, look: TowerLook) -> None:
        first = adapter.tower_prefix
        attention = adapter.tower_attention(layer)
        if look.what == "hidden":

            def stream(_module: nn.Module, _args: Any, out: Any) -> None:
                self._kept[look] = (out if isinstance(out, Tensor) else out[0])[:, first:]

            self._handles.append(layer.register_forward_hook(stream))
        elif look.what == "keys":

            def keys(_module: nn.Module, _args: Any, out: Tensor) -> None:
                self._kept[look] = out[:, first:]

            self._handles.append(attention.k_proj.register_forward_hook(keys))
        else:
            asked: list[Tensor] = []

            def query(_module: nn.Module, _args: Any, out: Tensor) -> None:
                asked[:] = [out[:, :1]]

            def row(_module: nn.Module, _args: Any, out: Tensor) -> None:
                q, k = (x.view(*x.shape[:2], attention.heads, -1).transpose(1, 2) for x in (asked.pop(), out))
                scores = (q @ k.transpose(-1, -2)) * attention.scaling
                self._kept[look] = scores.float().softmax(-1)[:, :, 0, first:]

            # CLIP projects queries before keys
            self._handles += [attention.q_proj.register_forward_hook(query), attention.k_proj.register_forward_hook(row)]

    def _finish(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        kept, self._kept = self._kept, {}
        images = len(next(iter(kept.values())))
        self._give([{look: values[image] for look, values in kept.items()} for image in range(images)])


def batched(seen: Sequence[Seen], images: Sequence[int], looks: Iterable[TowerLook]) -> TowerView:
    """The looks at a batch of prompts with `images` images each, in order: patches of a prompt one after the other, 0 beyond a row's count.

    The tensors are copies: what a method writes into them stays its own.
    """
    view = TowerView()
    for look in looks:
        patches = -1 if look.what == "cls_row" else 0
        rows, start = [], 0
        for n in images:
            rows.append(torch.cat([one[look] for one in seen[start : start + n]], patches).movedim(patches, 0))
            start += n
        view[look] = nn.utils.rnn.pad_sequence(rows, batch_first=True).movedim(1, -1 if patches else 1)
    return view
