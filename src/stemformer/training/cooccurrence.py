"""Word embeddings from co-occurrence counts, as a start of pre-training.

For many steps a language model learns little more than which tokens occur together, which counting finds in
seconds (`docs/log.md`, 2026-11-30).

Source: Levy and Goldberg 2014, section 5 (factorized pointwise mutual information, PMI); Pennington et al.
2014, section 4.2 (pairs weighted by distance).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32
from scipy import sparse
from torch import Tensor, nn

from stemformer.data.shards.reader import Shards

# Tokens that are counted, from documents spread over the text.
_NUM_TOKENS = 5_000_000
# Distance of the farthest tokens that count as nearby, for a masked LM.
_WINDOW = 4
# Root mean square of the norms of a masked LM's embeddings, with which its first scores have the best scale.
_NORM = 0.64
# Factor on the random embeddings of tokens that were not counted.
_UNCOUNTED_SCALE = 0.01
# Root mean square of a causal LM's input embeddings.
_INPUT_RMS = 0.5
# PMI of pairs that were not counted, and the lowest of those that were, for a causal LM.
_UNSEEN_PMI, _LOWEST_PMI = -1.0, -2.0
# Iterations of the leading vectors, and vectors besides those that are needed.
_NUM_ITERATIONS, _NUM_MORE_VECTORS = 4, 32

Vectors = Float32[np.ndarray, "V D"]


def init_from_nearby_tokens(word: nn.Embedding, shards: Shards, *, generator: torch.Generator) -> None:
    """Set embeddings whose inner products approximate the positive PMI of tokens near each other.

    The squared error of a pair is weighted by the product of the tokens' frequencies. Embeddings of tokens that
    were not counted, such as `[MASK]`, start near zero.
    """
    tokens, documents = _sample_documents(shards)
    counts = _count_nearby(tokens, documents, shards.vocab_size)
    frequency, _, pmi = _pmi(counts)
    pmi.data = np.maximum(pmi.data, 0)
    weight = np.sqrt(frequency).astype(np.float32)
    scale = sparse.diags(weight)
    vectors = _over(_symmetric_factors(scale @ pmi @ scale, word.embedding_dim, generator), weight)
    if not vectors.any():
        return
    is_counted = torch.from_numpy(vectors.any(1))
    vectors *= _NORM / np.sqrt(np.square(vectors[vectors.any(1)]).sum(1).mean())
    rotated = _rotate([vectors], generator)[0]
    word.weight.data = torch.where(is_counted[:, None], rotated, word.weight.data * _UNCOUNTED_SCALE)


def init_from_next_tokens(
    word: nn.Embedding,
    output: nn.Embedding,
    shards: Shards,
    *,
    eos: int,
    generator: torch.Generator,
    is_backward: bool = False,
) -> None:
    """Set input and output embeddings whose inner products approximate log p(next token | token).

    More exactly, PMI plus log p(next token), up to a constant, at pairs weighted by the tokens' frequencies. The
    token `eos` is between documents; `is_backward`: the next token is the one to the left.
    """
    tokens, documents = _sample_documents(shards)
    ends = np.flatnonzero(np.diff(documents)) + 1
    tokens = np.concatenate([[eos], np.insert(tokens, ends, eos), [eos]]).astype(np.int32)
    pairs = (tokens[1:], tokens[:-1]) if is_backward else (tokens[:-1], tokens[1:])
    ones = np.ones(len(tokens) - 1, np.float32)
    counts = sparse.coo_matrix((ones, pairs), shape=(shards.vocab_size, shards.vocab_size)).tocsr()
    frequency, next_frequency, pmi = _pmi(counts)
    pmi.data = np.maximum(pmi.data, _LOWEST_PMI) - np.float32(_UNSEEN_PMI)
    logs = np.log(next_frequency + 1 / counts.sum())
    column = (_UNSEEN_PMI + logs - (logs * next_frequency).sum()).astype(np.float32)
    weight, next_weight = (np.sqrt(x).astype(np.float32)[:, None] for x in (frequency, next_frequency))

    def multiply(x: Vectors) -> Vectors:
        x = next_weight * x
        return weight * (pmi @ x + column @ x)

    def multiply_transposed(x: Vectors) -> Vectors:
        x = weight * x
        return next_weight * (pmi.T @ x + column[:, None] * x.sum(0))

    inputs, outputs = _singular_factors(multiply, multiply_transposed, shards.vocab_size, word.embedding_dim, generator)
    inputs, outputs = _over(inputs, weight[:, 0]), _over(outputs, next_weight[:, 0])
    # States are normed before the output.
    rms = float(frequency @ np.sqrt(np.square(inputs).mean(1)))
    scaled = _rotate([inputs * (_INPUT_RMS / rms), outputs * rms], generator)
    for embedding, values in zip((word, output), scaled, strict=True):
        embedding.weight.data = values


def _sample_documents(shards: Shards) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"]]:
    """Return tokens of documents spread evenly over the text, and the number of each one's document."""
    starts = shards.document_starts
    stride = max(1, round(shards.num_tokens / _NUM_TOKENS))
    spans = list(zip(starts[:-1:stride].tolist(), starts[1::stride].tolist(), strict=True))
    tokens = np.concatenate([shards.tokens(start, stop)[:_NUM_TOKENS] for start, stop in spans])
    lengths = [min(stop - start, _NUM_TOKENS) for start, stop in spans]
    return tokens.astype(np.int32), np.repeat(np.arange(len(spans), dtype=np.int32), lengths)


def _count_nearby(
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


def _pmi(
    counts: "sparse.csr_matrix",
) -> tuple[Float64[np.ndarray, "V"], Float64[np.ndarray, "V"], "sparse.csr_matrix"]:
    """Return frequencies of rows and columns, and log p(a, b) / (p(a) p(b)) of the counted pairs, (V, V)."""
    total = max(1.0, float(counts.sum(dtype=np.float64)))
    rows, columns = (np.asarray(counts.sum(axis, dtype=np.float64)).ravel() / total for axis in (1, 0))
    pairs = counts.tocoo()
    pmi = np.log(pairs.data / total) - np.log(rows[pairs.row]) - np.log(columns[pairs.col])
    return rows, columns, sparse.csr_matrix((pmi.astype(np.float32), (pairs.row, pairs.col)), shape=counts.shape)


def _symmetric_factors(matrix: "sparse.csr_matrix", size: int, generator: torch.Generator) -> Vectors:
    """Return X, for which X Xᵀ approximates a symmetric matrix by its largest positive eigenvalues.

    Subspace iteration (Halko et al. 2011, algorithm 4.4), shifted so that negative eigenvalues come last.
    """
    basis = _random_basis(matrix.shape[0], size, generator)
    shift = 0.0
    for _ in range(_NUM_ITERATIONS):
        basis = np.linalg.qr(matrix @ basis + shift * basis)[0]
        values, vectors = np.linalg.eigh(basis.T @ (matrix @ basis))
        shift = max(shift, -float(values[0]))
    return _pad(basis @ vectors[:, ::-1][:, :size] * np.sqrt(np.maximum(values[::-1][:size], 0)), size)


def _singular_factors(
    multiply: Callable[[Vectors], Vectors],
    multiply_transposed: Callable[[Vectors], Vectors],
    vocab_size: int,
    size: int,
    generator: torch.Generator,
) -> tuple[Vectors, Vectors]:
    """Return X and Y, for which X Yᵀ approximates a matrix, given as products, by its largest singular values."""
    basis = _random_basis(vocab_size, size, generator)
    for _ in range(_NUM_ITERATIONS):
        left = np.linalg.qr(multiply(basis))[0]
        basis, upper = np.linalg.qr(multiply_transposed(left))
    # The matrix is about left @ upper.T @ basis.T.
    u, values, vt = np.linalg.svd(upper.T)
    scale = np.sqrt(values[:size])
    return _pad(left @ u[:, :size] * scale, size), _pad(basis @ vt[:size].T * scale, size)


def _random_basis(vocab_size: int, size: int, generator: torch.Generator) -> Vectors:
    return torch.randn(vocab_size, min(size + _NUM_MORE_VECTORS, vocab_size), generator=generator).numpy()


def _pad(vectors: Float32[np.ndarray, "V E"], size: int) -> Vectors:
    """Append zeros to fewer than `size` coordinates."""
    return np.pad(vectors, ((0, 0), (0, size - vectors.shape[1]))).astype(np.float32)


def _over(vectors: Vectors, weight: Float32[np.ndarray, "V"]) -> Vectors:
    """Divide each row by its weight; rows of weight 0 are 0."""
    return vectors * np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0)[:, None]


def _rotate(matrices: list[Vectors], generator: torch.Generator) -> list[Tensor]:
    """Rotate rows at random, so that no coordinate matters more than others; inner products stay."""
    size = matrices[0].shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return [torch.from_numpy(matrix) @ rotation for matrix in matrices]
