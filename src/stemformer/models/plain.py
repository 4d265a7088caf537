"""Plain reference forward: padded, eager, with all states and attention weights.

It computes what a body's own forward computes with nothing but matrix products and softmax: for
attention maps, for graphs to be exported (`torch.export`), and as the reference in tests.

Source: Vaswani et al. 2017, sections 3.1 to 3.3; norm placement: `norm_first` of the body's layers.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from stemformer.models.bart import Bart
from stemformer.models.bert import Bert
from stemformer.models.gpt import Gpt
from stemformer.models.layers import MultiHeadAttention, repeat_heads
from stemformer.models.llama import Llama
from stemformer.models.modernbert import ModernBert
from stemformer.models.rotary import Rotation, rotate


class PlainOutput(NamedTuple):
    """States, the last one normed, and attention weights; both are meaningless for padding."""

    # L + 1 times (B, T, D).
    hidden_states: tuple[Tensor, ...]
    # L times (B, H, T, T).
    attentions: tuple[Tensor, ...]


def plain_forward(
    body: Bart | Bert | ModernBert | Gpt | Llama,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"],
    token_type_ids: Int[Tensor, "B T"] | None = None,
) -> PlainOutput:
    """Compute all hidden states and attention weights of a body on padded sequences; of a BART, those of its encoder.

    Logits: `model.lm_logits(output.hidden_states[-1])`. Dropout follows the body's training mode.

    Args:
        input_ids: Token ids; ids of padding must be in the vocabulary, but have no effect.
        attention_mask: 1 or True for tokens, 0 or False for padding, on either side.
        token_type_ids: Segment ids; all 0 by default. Only a BERT uses them.

    Example:
        >>> import torch
        >>> from stemformer.models.gpt import GptConfig
        >>> config = GptConfig(vocab_size=50, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> ids, mask = torch.tensor([[1, 5, 2], [1, 2, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> output = plain_forward(Gpt(config), ids, mask)
        >>> len(output.hidden_states), output.hidden_states[-1].shape, output.attentions[-1].shape
        (4, torch.Size([2, 3, 8]), torch.Size([2, 2, 3, 3]))
    """
    is_token = attention_mask.bool()
    token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    # Positions count the tokens of a sequence from 0, wherever its padding is.
    position_ids = (is_token.long().cumsum(1) - 1).clamp(min=0)  # (B, T)
    x = body.embeddings(input_ids, position_ids, token_type_ids)  # (B, T, D)
    rotations = body.rotations(position_ids)

    hidden_states, attentions = [x], []
    layer: Any
    for layer in body.layers:
        rotation = rotations.get(layer.theta)
        if layer.norm_first:
            # Pre-norm: x + f(norm(x)).
            attended, weights = _self_attention(layer.attention, layer.attention_norm(x), is_token, rotation)
            x = x + layer.dropout(attended)
            x = x + layer.dropout(layer.feed_forward(layer.feed_forward_norm(x)))
        else:
            # Post-norm: norm(x + f(x)).
            attended, weights = _self_attention(layer.attention, x, is_token, rotation)
            x = layer.attention_norm(x + layer.dropout(attended))
            x = layer.feed_forward_norm(x + layer.dropout(layer.feed_forward(x)))
        hidden_states.append(x)
        attentions.append(weights)
    hidden_states[-1] = body.norm(x)
    return PlainOutput(tuple(hidden_states), tuple(attentions))


def _self_attention(
    attention: MultiHeadAttention, x: Tensor, is_token: Tensor, rotation: Rotation | None
) -> tuple[Tensor, Tensor]:
    """Return the output (B, T, D) and the weights (B, H, T, T)."""
    t, num_heads, num_groups = x.shape[1], attention.num_heads, attention.num_key_value_heads
    heads = attention.qkv(x).unflatten(-1, (-1, attention.head_size))
    q, k, v = heads.split_with_sizes((num_heads, num_groups, num_groups), 2)  # (B, T, H or G, K)
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = attention.q_norm(q), attention.k_norm(k)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    k, v = (repeat_heads(part, num_heads // num_groups) for part in (k, v))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, K)

    # Mask padded keys, and those that the layer does not see, by a finite number: a query that sees no key (padding)
    # gets no NaN.
    visible = is_token[:, None, None, :]  # (B, 1, 1, T)
    all_pairs = torch.ones(t, t, dtype=torch.bool, device=x.device)
    if attention.causal:
        visible = visible & all_pairs.tril()  # (B, 1, T, T)
    if attention.window is not None:
        visible = visible & all_pairs.tril(attention.window).triu(-attention.window)
    scores = q @ k.transpose(2, 3) * attention.head_size**-0.5  # (B, H, T, T)
    weights = nn.functional.softmax(scores.masked_fill(~visible, torch.finfo(scores.dtype).min), dim=-1)

    return attention.out((weights @ v).transpose(1, 2).flatten(2)), weights
