"""Word embeddings from co-occurrence counts, as a start of pre-training.

A masked LM predicts a token from those around it. For many steps it learns little more than which tokens
occur together, which counting finds in seconds (`docs/log.md`, 2026-11-30).
"""

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from scipy import sparse
from torch import Tensor, nn

from stemformer.data.shards.reader import Shards

# Tokens that are counted, from documents spread over the text, and the distance of the farthest that count.
_NUM_TOKENS, _WINDOW = 5_000_000, 4
# Root mean square of the embeddings: twice that of random ones.
_STD = 0.04
# Exponent of the frequency of a token as context.
_SMOOTHING = 0.75
# Iterations of the eigenvectors, and vectors besides those that are needed.
_NUM_ITERATIONS, _NUM_MORE_VECTORS = 4, 32


def init_from_cooccurrence(word: nn.Embedding, shards: Shards, *, generator: torch.Generator) -> None:
    """Set the embeddings of the tokens that were counted, scaled to `_STD`; others are left as they are."""
    vectors = cooccurrence_vectors(shards, word.weight.shape[1], generator=generator)
    is_counted = vectors.any(1)
    if is_counted.any():
        std = vectors[is_counted].square().mean().sqrt()
        word.weight.data[is_counted] = vectors[is_counted] * (_STD / std)


def cooccurrence_vectors(shards: Shards, size: int, *, generator: torch.Generator) -> Float[Tensor, "V D"]:
    """Return vectors whose inner products approximate the positive PMI of nearby tokens; 0 for tokens not counted.

    Source: Levy and Goldberg 2014, section 5 (positive pointwise mutual information, symmetric
    factorization); Levy et al. 2015, section 3 (smoothed frequency of contexts; weight by distance).
    """
    tokens, documents = _sample_documents(shards)
    vectors = _leading_factors(_positive_pmi(_count_pairs(tokens, documents, shards.vocab_size)), size, generator)
    # Rotated at random, so that no coordinate matters more than others.
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return torch.from_numpy(vectors) @ rotation


def _sample_documents(shards: Shards) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"]]:
    """Return tokens of documents spread evenly over the text, and the number of each one's document."""
    starts = shards.document_starts
    stride = max(1, round(shards.num_tokens / _NUM_TOKENS))
    spans = list(zip(starts[:-1:stride].tolist(), starts[1::stride].tolist(), strict=True))
    tokens = np.concatenate([shards.tokens(start, stop)[:_NUM_TOKENS] for start, stop in spans])
    lengths = [min(stop - start, _NUM_TOKENS) for start, stop in spans]
    return tokens.astype(np.int32), np.repeat(np.arange(len(spans), dtype=np.int32), lengths)


def _count_pairs(
    tokens: Int32[np.ndarray, "n"], documents: Int32[np.ndarray, "n"], vocab_size: int
) -> "sparse.csr_matrix":
    """Return how often each two tokens are at most `_WINDOW` apart in a document, weighted by 1 / distance; (V, V)."""
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, _WINDOW + 1):
        is_pair = documents[distance:] == documents[: len(documents) - distance]
        left, right = tokens[: len(tokens) - distance][is_pair], tokens[distance:][is_pair]
        weights = np.full(len(left), 1 / distance, np.float32)
        total += sparse.coo_matrix((weights, (left, right)), shape=total.shape).tocsr()
    return (total + total.T).tocsr()


def _positive_pmi(counts: "sparse.csr_matrix") -> "sparse.csr_matrix":
    """Return log p(a, b) / (p(a) p(b)) where it is positive, with smoothed p of one side, averaged over both; (V, V)."""
    sums = np.asarray(counts.sum(1), np.float64).ravel()
    frequency = sums / max(1.0, sums.sum())
    smoothed = frequency**_SMOOTHING
    smoothed /= max(1e-300, smoothed.sum())
    with np.errstate(divide="ignore"):
        expected = (np.log(frequency) + np.log(smoothed)) / 2
    pairs = counts.tocoo()
    pmi = np.log(pairs.data / max(1.0, sums.sum())) - expected[pairs.row] - expected[pairs.col]
    keep = pmi > 0
    values = pmi[keep].astype(np.float32)
    return sparse.csr_matrix((values, (pairs.row[keep], pairs.col[keep])), shape=counts.shape)


def _leading_factors(
    matrix: "sparse.csr_matrix", size: int, generator: torch.Generator
) -> Float32[np.ndarray, "V D"]:
    """Return X, for which X Xᵀ approximates a symmetric matrix by its largest positive eigenvalues.

    Subspace iteration (Halko et al. 2011, algorithm 4.4), shifted so that negative eigenvalues come last.
    """
    number = min(size + _NUM_MORE_VECTORS, matrix.shape[0])
    basis = torch.randn(matrix.shape[0], number, generator=generator).numpy()
    shift = 0.0
    for _ in range(_NUM_ITERATIONS):
        basis = np.linalg.qr(matrix @ basis + shift * basis)[0]
        values, vectors = np.linalg.eigh(basis.T @ (matrix @ basis))
        shift = max(shift, -float(values[0]))
    vectors = basis @ vectors[:, ::-1][:, :size]
    factors = vectors * np.sqrt(np.maximum(values[::-1][:size], 0))
    return np.pad(factors, ((0, 0), (0, size - factors.shape[1]))).astype(np.float32)
