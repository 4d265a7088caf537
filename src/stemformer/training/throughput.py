"""Compilation, floating-point operations of a step, and the device's peak rate."""

import time

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch
from stemformer.models.bart import Bart
from stemformer.models.model import Model
from stemformer.objectives.objective import Objective, num_scored_positions, num_softmax_ids


def compile_blocks(model: Model) -> None:
    """Compile each layer of the body in place, for any number of tokens."""
    for layer in model.body.blocks:
        layer.compile(dynamic=True)


def matmul_rate(device: torch.device, precision: str, *, size: int = 4096) -> float:
    """Measure peak floating-point operations per second by products of square matrices."""
    # On a GPU, small products measure the time that it takes to start them.
    size, repeats = (max(size, 4096), 20) if device.type == "cuda" else (size, 1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(repeats):
            product = a @ a
        product.sum().item()
        best = min(best, time.perf_counter() - start)
    return repeats * 2 * size**3 / best


def step_flops(model: Model, batch: Batch, objective: Objective) -> float:
    """Return the floating-point operations of a forward and backward pass.

    6 x parameters x tokens in the layers, the head on scored positions only, attention by the
    actual lengths. Last states and scores are computed of those tokens and ids that the objective needs.
    """
    config, num_rows, num_ids = model.config, num_scored_positions(objective, batch), num_softmax_ids(objective)
    lengths = _lengths(batch.cu_seqlens)
    num_tokens = float(lengths.sum())
    if batch.decoder is not None:
        return _flops_of_both_halves(model, batch) + 6.0 * len(batch.labels) * config.hidden_size * config.vocab_size
    body = 6.0 * model.num_parameters(embeddings=False) * num_tokens
    width = sum(layer.attention.out.in_features for layer in model.body.layers)  # type: ignore[union-attr,misc]
    attention = 12.0 * width * float((lengths**2).sum())
    if num_rows is not None and config.num_hidden_layers:
        # The last layer computes all keys and values, but the rest for `num_rows` tokens only.
        per_row = sum(p.numel() for name, p in model.body.layers[-1].named_parameters() if "qkv" not in name)
        body -= 6.0 * per_row * float(lengths.sum() - num_rows)
    head = config.hidden_size * (num_ids or config.vocab_size) if {"masked_lm", "causal_lm"} & set(model.heads) else 0
    head += config.hidden_size**2 if "masked_lm" in model.heads else 0
    return body + attention + 6.0 * len(batch.labels) * head


def _flops_of_both_halves(model: Model, batch: Batch) -> float:
    """Return the operations of the layers of an encoder-decoder, forward and backward."""
    assert batch.decoder is not None and isinstance(model.body, Bart)
    sources, targets = _lengths(batch.cu_seqlens), _lengths(batch.decoder.cu_seqlens)
    decoder, width = model.body.decoder, model.config.hidden_size
    from_memory = sum(p.numel() for name, p in decoder.layers.named_parameters() if "key_value" in name)
    encoder = sum(p.numel() for p in model.body.layers.parameters()) + from_memory
    own = sum(p.numel() for p in decoder.layers.parameters()) - from_memory
    # Scores of the encoder, of the decoder's own tokens, and of these with the encoder's.
    pairs = len(model.body.layers) * sources**2 + len(decoder.layers) * (targets**2 + targets * sources)
    return 6.0 * (encoder * float(sources.sum()) + own * float(targets.sum())) + 12.0 * width * float(pairs.sum())


def _lengths(cu_seqlens: Int[Tensor, "S1"]) -> Float64[np.ndarray, "S"]:
    return np.diff(cu_seqlens.cpu().numpy()).astype(np.float64)
