"""Body of all architectures: embeddings, layers and final norm."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stemformer.config import check_at_least, check_fields
from stemformer.errors import ConfigError
from stemformer.models.layers import ACTIVATIONS, pad_to_bucket
from stemformer.models.rotary import Rotation, rotation_at


def check_config(config: Any, *sizes: str) -> None:
    """Raise ConfigError for an invalid body config; `sizes` are further fields of at least 1."""
    sizes += ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    check_at_least(1, config, "model.", *sizes)
    check_fields(config, "model.", "a finite number, 0 or more", lambda x: 0 <= x < inf, "initializer_range")
    check_fields(config, "model.", "a positive, finite number", lambda x: 0 < x < inf, "layer_norm_eps")
    check_fields(config, "model.", "a number in [0, 1)", lambda x: 0 <= x < 1, "hidden_dropout_prob")
    # Heads of an own size need not divide the hidden size.
    if getattr(config, "head_size", None) is None and config.hidden_size % config.num_attention_heads:
        problem = f"model.hidden_size {config.hidden_size} is not divisible by {config.num_attention_heads} heads."
        raise ConfigError(f"{problem} Set model.num_attention_heads to a divisor.")
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(f"model.hidden_act is {config.hidden_act!r}; expected one of {', '.join(ACTIVATIONS)}.")


@dataclass(frozen=True)
class PromptCache:
    """Flat key-value cache of prompts, with their boundaries, shared by their continuations."""

    keys: list[Tensor]  # (N, G, K) of each layer
    values: list[Tensor]  # (N, G, K) of each layer
    cu_seqlens: Int[Tensor, "S1"]


class Body(nn.Module):
    """Body of an architecture; subclasses set `config`, `embeddings`, `layers` and `norm`."""

    config: Any
    embeddings: Any
    layers: nn.ModuleList
    norm: nn.Module

    @property
    def blocks(self) -> list[nn.Module]:
        """All layers, those of a decoder included."""
        return list(self.layers)

    def rotations(self, position_ids: Int[Tensor, "*b"]) -> dict[float, Rotation]:
        """Return the rotation at positions for each theta of the layers; {} without rotation."""
        layers: Any = self.layers
        thetas = {layer.theta: layer.attention.head_size for layer in layers if layer.theta is not None}
        return {theta: rotation_at(position_ids, size, theta) for theta, size in thetas.items()}

    def forward(
        self,
        input_ids: Int[Tensor, "N"],
        position_ids: Int[Tensor, "N"],
        token_type_ids: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        max_seqlen: int,
        *,
        return_layers: tuple[int, ...] = (),
        replace: Mapping[int, Tensor] | None = None,
        rows: Int[Tensor, "R"] | None = None,
        causal: bool = False,
    ) -> Any:
        """Return the last hidden states (N, D), or what `return_layers` or `rows` select.

        States are numbered: 0 for the embeddings, then each layer's output, the last one normed.

        Args:
            input_ids: Token ids of all sequences, concatenated.
            position_ids: Position of each token in its sequence, from 0.
            token_type_ids: Segment ids; only a BERT uses them.
            cu_seqlens: int32 sequence boundaries; the last entry is N.
            return_layers: Return `{number: states (N, D)}` for these numbers.
            replace: States (N, D) to substitute, by number.
            rows: Return the last states of these tokens only (R, D), in this order, and save three quarters
                of the last layer's work. Excludes `return_layers` and `replace`.
            causal: Let each token see the earlier ones only, also in a body that is not causal.
        """
        n, last, replace = len(input_ids), len(self.layers), replace or {}
        if wrong := {*return_layers, *replace} - set(range(last + 1)):
            raise ValueError(f"Layers {sorted(wrong)} do not exist; expected numbers from 0 to {last}.")
        if lengths := {number: len(states) for number, states in replace.items() if len(states) != n}:
            raise ValueError(f"Replaced layers have {lengths} tokens; expected {n}.")
        if cu_seqlens.device.type == "cpu" and int(cu_seqlens[-1]) != n:
            raise ValueError(f"cu_seqlens ends at {int(cu_seqlens[-1])}, but there are {n} tokens.")
        assert rows is None or not (return_layers or replace), "rows exclude return_layers and replace"

        kept: dict[int, Tensor] = {}
        x = pad_to_bucket(self.embeddings(input_ids, position_ids, token_type_ids))  # (N', D)
        rotations = self.rotations(pad_to_bucket(position_ids))
        inputs = rotations, causal
        for number in range(last + 1):
            # The last layer computes only the rows needed.
            if number == last and rows is not None:
                if not last:
                    return self.norm(x.index_select(0, rows))  # (R, D)
                return self.norm(self.layers[-1](x, cu_seqlens, max_seqlen, pad_to_bucket(rows), *inputs)[: len(rows)])
            if number:
                x = self.layers[number - 1](x, cu_seqlens, max_seqlen, None, *inputs)
            if number == last:
                x = self.norm(x)
            if number in replace:
                x = pad_to_bucket(replace[number])
            if number in return_layers:
                kept[number] = x[:n]
        return kept if return_layers else x[:n]

    def prefill(
        self,
        input_ids: Int[Tensor, "N"],
        cu_seqlens: Int[Tensor, "S1"],
        *,
        after: PromptCache | None = None,
        parents: Int[Tensor, "S"] | None = None,
    ) -> tuple[Float[Tensor, "N D"], PromptCache]:
        """Return the last states of sequences that continue cached prompts, and their cache, in a causal body.

        Continuations of one prompt share its cache, such as the demonstrations of a few-shot prompt.

        Args:
            input_ids: New tokens of all sequences, at least one each.
            cu_seqlens: int32 boundaries of the new tokens.
            after: Cache of the prompts, if any.
            parents: Index of the prompt in `after` of each sequence.
        """
        # Lengths (S,) of new tokens and prompts, and the start of each prompt in the cache.
        new = cu_seqlens.diff().long()
        old, prompt_starts = torch.zeros_like(new), torch.zeros_like(new)
        if after is not None:
            assert parents is not None, "a cache needs the prompt index of each sequence"
            old, prompt_starts = after.cu_seqlens.diff().long()[parents], after.cu_seqlens[parents].long()
        lengths = old + new
        max_length, limit = int(lengths.max()), self.config.max_position_embeddings
        if max_length > limit:
            raise ValueError(f"A sequence has {max_length} tokens; the model has {limit} positions.")

        # Index (M,) into cached, then new keys: each prompt followed by its continuation.
        cu_k = torch.cat([cu_seqlens[:1], lengths.cumsum(0).int()])
        positions = torch.arange(int(cu_k[-1]), device=input_ids.device) - cu_k[:-1].long().repeat_interleave(lengths)
        is_old = positions < old.repeat_interleave(lengths)
        new_starts = cu_seqlens[:-1].long() - old + (0 if after is None else len(after.keys[0]))
        starts = torch.where(is_old, prompt_starts.repeat_interleave(lengths), new_starts.repeat_interleave(lengths))
        order = positions + starts

        x = self.embeddings(input_ids, positions[~is_old])  # (N, D)
        rotations = self.rotations(positions[~is_old])
        keys, values = [], []
        layer: Any
        for number, layer in enumerate(self.layers):
            assert layer.attention.causal, "only causal models continue prompts"
            cached = None if after is None else (after.keys[number], after.values[number])
            arguments = (cu_seqlens, int(new.max()), cached, order, cu_k, max_length)
            x, k, v = layer.prefill(x, *arguments, rotations=rotations)
            keys.append(k)
            values.append(v)
        return self.norm(x), PromptCache(keys, values, cu_k)
