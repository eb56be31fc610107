"""FLOPs and KV bytes as a closed form over a trace; no torch. 1 multiply-add = 2 FLOPs unless a name says MACs.

The language model's prefill, in four columns:

* `executed`: every matrix product that ran for the whole batch: padding, the extra attention calls of edits and the
  method's scoring. Equal to torch's `FlopCounterMode` to the integer under the math SDPA backend
  (tests/core/test_flops.py); on the CPU's fused SDPA that counter reads 0 for attention, so it proves nothing there.
  Silenced and hidden pairs are in it, because they are computed and thrown away. Looks at the vision tower and encoded
  questions are charged to every prompt, though an accuracy run keeps them and computes each once.
* `dense`: one sample without padding: ordinary attention kernels (n x n, the causal half that a fused kernel may skip
  is not taken off) over the tokens present, plus the method's scoring. Equals `executed` at batch 1 without edits,
  but for methods whose official code drops tokens inside a layer (`Method.drops_inside`): there the layer's output
  projection and feed-forward are counted for the tokens that the official code gives them.
  Leaves out the attention calls of edits, which a kernel made for the method would not need.
* `ideal`: `dense` less QK^T and AV of every causal pair that an edit silenced: what a paper argues, were those pairs
  never computed. No kernel of ours does that, and zeroing after softmax still needs QK^T for the denominator; read it
  as a lower bound.
* `paper_macs`: multiply-adds of the decoder layers over *visual tokens only*, SwiGLU with its three matrices, n x n
  attention among them: the "3.82 T FLOPs" convention of most papers. Leaves out all text, attention between text and
  vision, and scoring.

Apart from the prefill: vision tower and projector (per image), `lm_head` (per position that gets logits), `decode`
(per sample) and `decode_executed` (the batch with its padding), `kv_bytes`.

Left out everywhere: norms, activations, softmax, RoPE, embedding look-ups, sorting, gathers, resizing of images; they
are no matrix products. FLOPs are not wall time, which is claimed only where tokens are dropped.
"""

from __future__ import annotations

from harness.core.shape import ModelShape, VisionShape
from harness.core.trace import Trace


def linear_per_token(shape: ModelShape) -> int:
    """FLOPs of one decoder layer's projections and SwiGLU feed-forward for one token."""
    qo = 2 * shape.hidden * shape.heads * shape.head_dim
    kv = 2 * shape.hidden * shape.kv_heads * shape.head_dim
    return 2 * (qo + kv + 3 * shape.hidden * shape.mlp)


def attention_pairs(shape: ModelShape, rows: int, columns: int) -> int:
    """FLOPs of QK^T and AV for `rows` queries on `columns` keys, dense."""
    return 4 * shape.heads * shape.head_dim * rows * columns


def layer(shape: ModelShape, tokens: int) -> int:
    """FLOPs of one decoder layer over `tokens` tokens, dense attention."""
    return linear_per_token(shape) * tokens + attention_pairs(shape, tokens, tokens)


def behind_per_token(shape: ModelShape) -> int:
    """FLOPs of one decoder layer behind its attention for one token: output projection and feed-forward."""
    return 2 * (shape.hidden * shape.heads * shape.head_dim + 3 * shape.hidden * shape.mlp)


def layer_dropping(shape: ModelShape, tokens: int, behind: int) -> int:
    """FLOPs of one decoder layer that only `behind` of its `tokens` leave, the others go ahead of its output
    projection."""
    return layer(shape, tokens) - behind_per_token(shape) * (tokens - behind)


def prefill_dense(shape: ModelShape, trace: Trace, row: int) -> int:
    """Prefill FLOPs of one sample over the tokens present, plus scoring."""
    return trace.scoring[row] + sum(
        layer_dropping(shape, t.tokens[row], t.behind[row]) if t.behind else layer(shape, t.tokens[row])
        for t in trace.layers
    )


def prefill_ideal(shape: ModelShape, trace: Trace, row: int) -> int:
    """`prefill_dense` of one sample less the products of silenced (query, key) pairs."""
    silenced = sum(t.silenced[row] for t in trace.layers if t.silenced)
    return prefill_dense(shape, trace, row) - attention_pairs(shape, silenced, 1)


def prefill_paper_macs(shape: ModelShape, trace: Trace, row: int) -> int:
    """Multiply-adds (not FLOPs) of one sample's decoder layers over its visual tokens alone."""
    return sum(layer(shape, t.visual[row]) for t in trace.layers) // 2


def prefill_executed(shape: ModelShape, trace: Trace) -> int:
    """Prefill FLOPs of the whole batch as it ran; where a prefix was shared, without what its capture took."""
    total = trace.scoring_executed
    for t in trace.layers:
        rows = t.columns if t.rows is None else t.rows
        total += trace.batch * (linear_per_token(shape) * rows + attention_pairs(shape, rows, t.columns))
        total += sum(trace.batch * attention_pairs(shape, rows, t.columns) for rows in t.edit_rows)
    return total


def prefill_unpruned(shape: ModelShape, tokens: int) -> int:
    """Dense prefill FLOPs of the same prompt without pruning."""
    return shape.depth * layer(shape, tokens)


def decode(shape: ModelShape, trace: Trace, row: int, steps: int) -> int:
    """FLOPs of `steps` decode steps of one sample, LM head excluded; each layer attends its own cache."""
    per_token = shape.depth * linear_per_token(shape)
    return sum(
        per_token + sum(attention_pairs(shape, 1, t.tokens[row] + step + 1) for t in trace.layers)
        for step in range(steps)
    )


def decode_executed(shape: ModelShape, trace: Trace) -> int:
    """FLOPs of the decode steps of the whole batch as they ran, padded caches included, LM head excluded."""
    per_token = shape.depth * linear_per_token(shape)
    return trace.batch * sum(
        per_token + sum(attention_pairs(shape, 1, t.columns + step + 1) for t in trace.layers)
        for step in range(trace.decode_steps)
    )


def lm_head(shape: ModelShape, positions: int) -> int:
    """FLOPs of the logits of `positions` positions."""
    return 2 * shape.hidden * shape.vocab * positions


def vision_tower(vision: VisionShape) -> int:
    """FLOPs of the ViT for one image: patch embedding and every layer that runs, each within its own windows."""
    n, d = vision.tokens, vision.hidden
    patches = 2 * vision.patch_inputs * d * vision.patches
    per_layer = 2 * n * (4 * d * d + vision.mlp_matrices * d * vision.mlp)
    pairs = sum(part * part for layer in range(vision.layers_used) for part in vision.attended(layer))
    return vision.tiles * (patches + vision.layers_used * per_layer + 4 * d * pairs)


def cls_row(vision: VisionShape) -> int:
    """FLOPs of one tower layer's [CLS] softmax rows for one image, one a tile: one query's product with the keys of
    all tokens, all heads."""
    return 2 * vision.hidden * vision.tokens * vision.tiles


def projector(shape: ModelShape, vision: VisionShape, tokens: int | None = None) -> int:
    """FLOPs of the projectors for all tiles of one image, or for `tokens` visual tokens: two matrices, or one where
    there is no width between; each joins `vision.merge` patches."""
    n = vision.tiles * vision.patches // vision.merge if tokens is None else tokens
    width = vision.hidden * vision.merge
    between = vision.projector_hidden
    matrices = width * between + between * shape.hidden if between else width * shape.hidden
    return vision.projectors * 2 * n * matrices


def column_sums(vision: VisionShape) -> int:
    """FLOPs of the softmax rows of all tokens over all tokens in one tower layer for one image: QK^T, all heads."""
    return vision.tokens * cls_row(vision)


def look(vision: VisionShape, what: str, layer: int) -> int:
    """FLOPs of what a method asks to see of a tower layer (`TowerLook`), for one image; 0 for what the layer computes
    anyway."""
    if what == "cls_row":
        return cls_row(vision)
    if what in ("whole_column_sums", "twice_rotated_sums"):
        return column_sums(vision)
    if what == "column_sums":
        return 2 * vision.hidden * vision.tiles * sum(part * part for part in vision.attended(layer))
    return 0


def kv_bytes(shape: ModelShape, trace: Trace, row: int) -> int:
    """Bytes of one sample's KV cache after prefill, over all layers, at the model's dtype."""
    per_token = 2 * shape.kv_heads * shape.head_dim * shape.bytes_per_value
    return sum(t.tokens[row] for t in trace.layers) * per_token
