"""What a run computes on: device, precision, compilation, and how fast that is at best."""

import time

import numpy as np
import torch

from stemformer.data.examples.batch import Batch
from stemformer.models.model import Model


def compile_blocks(model: Model) -> None:
    """Compiles each layer of the body, in place, for any number of tokens. Embeddings and heads stay as they are."""
    for layer in model.body.layers:
        layer.compile(dynamic=True)


def matmul_rate(device: torch.device, precision: str, *, size: int = 4096) -> float:
    """Returns floating-point operations a second of a square matrix product: what the device can do at best.

    Args:
        device: Where.
        precision: `fp32` or `bf16`.
        size: Rows and columns.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def step_flops(model: Model, batch: Batch, *, num_rows: int | None = None) -> float:
    """Returns floating-point operations of a forward and backward: what is computed, not what a padded batch would need.

    6 x parameters x tokens in the layers, the masked-LM head on the scored places only, attention by the real lengths.

    Args:
        model: Body and heads.
        batch: That it sees.
        num_rows: Tokens of which the last states are computed; None for all.
    """
    config = model.config
    lengths = np.diff(batch.cu_seqlens.cpu().numpy()).astype(np.float64)
    body = 6.0 * model.num_parameters(embeddings=False) * float(lengths.sum())
    attention = 12.0 * config.hidden_size * config.num_hidden_layers * float((lengths**2).sum())
    if num_rows is not None and config.num_hidden_layers:  # what the last layer does for each token by itself
        left_out = sum(p.numel() for name, p in model.body.layers[-1].named_parameters() if "qkv" not in name)
        body -= 6.0 * left_out * float(lengths.sum() - num_rows)
    of_head = config.hidden_size * config.vocab_size if {"masked_lm", "causal_lm"} & set(model.heads) else 0
    of_head += config.hidden_size**2 if "masked_lm" in model.heads else 0
    head = 6.0 * len(batch.labels) * of_head
    return body + attention + head
