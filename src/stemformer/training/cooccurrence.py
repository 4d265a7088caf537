"""Word embeddings from co-occurrence counts, as a start of pre-training.

For many steps a language model learns little more than which tokens occur together, which counting finds much
sooner (`docs/log.md`, 2026-11-30).

Source: Levy and Goldberg 2014, section 4 (factorized pointwise mutual information, PMI); Pennington et al.
2014, section 4.2 (pairs weighted by distance).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32
from scipy import sparse
from torch import Tensor, nn

from stemformer.data.shards.reader import Shards

# Tokens that are counted, in windows spread evenly over the text.
_NUM_TOKENS, _NUM_WINDOWS = 5_000_000, 1_000
# Distance of the farthest tokens that count as nearby, for a masked LM.
_WINDOW = 4
# Weight of a source token with all tokens of its target, about that of the tokens near it.
_ACROSS_WEIGHT = 4.0
# Tokens of sources times those of their targets that are counted, and of one block.
_NUM_MEETINGS, _BLOCK_MEETINGS = 20_000_000, 2_000_000
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

Vectors = Float[Tensor, "V D"]


def init_from_nearby_tokens(word: nn.Embedding, shards: Shards, *, generator: torch.Generator) -> None:
    """Set embeddings whose inner products approximate the positive PMI of tokens near each other.

    The squared error of a pair is weighted by the product of the tokens' frequencies. Embeddings of tokens that
    were not counted, such as `[MASK]`, start near zero.
    """
    counts = _count_nearby(_sample(shards), shards.vocab_size)
    _init_from_counts(word, counts, generator, uncounted_scale=_UNCOUNTED_SCALE)


def init_from_pairs(
    word: nn.Embedding,
    sources: Sequence[Int[np.ndarray, "_"]],
    targets: Sequence[Int[np.ndarray, "_"]],
    *,
    generator: torch.Generator,
) -> None:
    """Set embeddings of an encoder-decoder as `init_from_nearby_tokens`, from pairs of texts.

    Each token of a source is also near all of its target, however far, so that translations get similar embeddings.
    Those of tokens that were not counted, such as languages, stay as they are.
    """
    counts = sum(_count_nearby(_sample_of(texts), word.num_embeddings) for texts in (sources, targets))
    across = _count_across(sources, targets, word.num_embeddings)
    _init_from_counts(word, (counts + across + across.T).tocsr(), generator, uncounted_scale=1.0)


def _init_from_counts(
    word: nn.Embedding, counts: "sparse.csr_matrix", generator: torch.Generator, *, uncounted_scale: float
) -> None:
    frequency, _, pmi = _pmi(counts)
    pmi.data = np.maximum(pmi.data, 0)
    weight = np.sqrt(frequency).astype(np.float32)
    scale = sparse.diags(weight)
    vectors = _divide_rows(_symmetric_factors(scale @ pmi @ scale, word.embedding_dim, generator), weight)
    is_counted = vectors.any(1)
    if not is_counted.any():
        return
    rotated = _rotate(vectors * (_NORM / vectors[is_counted].square().sum(1).mean().sqrt()), generator=generator)[0]
    word.weight.data = torch.where(is_counted[:, None], rotated, word.weight.data * uncounted_scale)


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
    token `eos` is between documents; `is_backward`: the next token is the one to the left. Tokens that were not
    counted get the mean vector of the rarest that were.
    """
    counts = _count_next(_sample(shards), shards.vocab_size, eos)
    counts = counts.T.tocsr() if is_backward else counts
    frequency, next_frequency, pmi = _pmi(counts)
    pmi.data = np.maximum(pmi.data, _LOWEST_PMI) - np.float32(_UNSEEN_PMI)
    logs = np.log(next_frequency + 1 / counts.sum())
    offsets = torch.from_numpy((_UNSEEN_PMI + logs - (logs * next_frequency).sum()).astype(np.float32))
    weight, next_weight = (np.sqrt(x).astype(np.float32) for x in (frequency, next_frequency))
    rows, columns = (torch.from_numpy(x)[:, None] for x in (weight, next_weight))

    def multiply(x: Vectors) -> Vectors:
        x = columns * x
        return rows * (_multiply(pmi, x) + offsets @ x)

    def multiply_transposed(x: Vectors) -> Vectors:
        x = rows * x
        return columns * (_multiply(pmi.T, x) + offsets[:, None] * x.sum(0))

    inputs, outputs = _singular_factors(multiply, multiply_transposed, shards.vocab_size, word.embedding_dim, generator)
    inputs = _fill_uncounted(_divide_rows(inputs, weight), frequency)
    outputs = _fill_uncounted(_divide_rows(outputs, next_weight), next_frequency)
    # States are normed before the output.
    rms = float(torch.from_numpy(frequency).float() @ inputs.square().mean(1).sqrt())
    scaled = _rotate(inputs * (_INPUT_RMS / rms), outputs * rms, generator=generator)
    for embedding, values in zip((word, output), scaled, strict=True):
        embedding.weight.data = values


@dataclass(frozen=True)
class _Sample:
    """Tokens of the text; those of one segment are neighbors in one document."""

    tokens: Int32[np.ndarray, "n"]
    segments: Int[np.ndarray, "n"]
    # Whether a token starts or ends its document.
    is_first: Bool[np.ndarray, "n"]
    is_last: Bool[np.ndarray, "n"]


def _sample(shards: Shards) -> _Sample:
    """Return at most `_NUM_TOKENS` tokens, in windows spread evenly over the text."""
    number = _NUM_WINDOWS if shards.num_tokens > _NUM_TOKENS else 1
    length = min(shards.num_tokens, _NUM_TOKENS // number)
    window_starts = np.linspace(0, shards.num_tokens - length, number).astype(np.int64)
    tokens = np.concatenate([shards.tokens_across(start, start + length) for start in window_starts.tolist()])
    positions = (window_starts[:, None] + np.arange(length)).ravel()
    documents = np.searchsorted(shards.document_starts, positions, side="right") - 1
    return _Sample(
        tokens=tokens.astype(np.int32),
        segments=documents + np.repeat(np.arange(number), length),
        is_first=positions == shards.document_starts[documents],
        is_last=positions + 1 == shards.document_starts[documents + 1],
    )


def _sample_of(texts: Sequence[Int[np.ndarray, "_"]]) -> _Sample:
    """Return texts, each as a document."""
    lengths = np.array([len(text) for text in texts])
    positions = np.concatenate([np.arange(length) for length in lengths])
    numbers = np.repeat(np.arange(len(texts)), lengths)
    is_last = positions + 1 == lengths[numbers]
    return _Sample(np.concatenate(texts).astype(np.int32), numbers, positions == 0, is_last)


def _count_across(
    sources: Sequence[Int[np.ndarray, "_"]], targets: Sequence[Int[np.ndarray, "_"]], vocab_size: int
) -> "sparse.csr_matrix":
    """Return how often each token of a source meets each of its target, (V, V).

    All tokens of a target together have the same weight for each token of its source. Of much text some pairs are
    counted, evenly apart.
    """
    sizes = np.array([len(source) * len(target) for source, target in zip(sources, targets, strict=True)])
    number = int(len(sizes) * min(1, _NUM_MEETINGS / max(1, sizes.sum())))
    chosen = np.linspace(0, len(sizes) - 1, max(1, number)).astype(np.int64)
    blocks = np.array_split(chosen, max(1, math.ceil(sizes[chosen].sum() / _BLOCK_MEETINGS)))
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for pairs in ([(sources[i], targets[i]) for i in block.tolist()] for block in blocks if len(block)):
        left = np.concatenate([np.repeat(source, len(target)) for source, target in pairs])
        right = np.concatenate([np.tile(target, len(source)) for source, target in pairs])
        weights = [np.full(len(s) * len(t), _ACROSS_WEIGHT / max(1, len(t)), np.float32) for s, t in pairs]
        total += sparse.coo_matrix((np.concatenate(weights), (left, right)), shape=(vocab_size,) * 2).tocsr()
    return total


def _count_nearby(sample: _Sample, vocab_size: int) -> "sparse.csr_matrix":
    """Return how often each two tokens are at most `_WINDOW` apart in a document, weighted by 1 / distance; (V, V)."""
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, _WINDOW + 1):
        total += _count_at(sample, distance, vocab_size) / distance
    return (total + total.T).tocsr()


def _count_next(sample: _Sample, vocab_size: int, eos: int) -> "sparse.csr_matrix":
    """Return how often each token follows another; before and after each document is `eos`; (V, V)."""
    firsts, lasts = sample.tokens[sample.is_first], sample.tokens[sample.is_last]
    left = np.concatenate([np.full_like(firsts, eos), lasts])
    right = np.concatenate([firsts, np.full_like(lasts, eos)])
    return _count_at(sample, 1, vocab_size) + _count_pairs(left, right, vocab_size)


def _count_at(sample: _Sample, distance: int, vocab_size: int) -> "sparse.csr_matrix":
    """Return how often each token is at a distance to the right of another in a document; (V, V)."""
    is_pair = sample.segments[distance:] == sample.segments[: len(sample.segments) - distance]
    left, right = sample.tokens[: len(sample.tokens) - distance][is_pair], sample.tokens[distance:][is_pair]
    return _count_pairs(left, right, vocab_size)


def _count_pairs(left: Int32[np.ndarray, "m"], right: Int32[np.ndarray, "m"], vocab_size: int) -> "sparse.csr_matrix":
    ones = np.ones(len(left), np.float32)
    return sparse.coo_matrix((ones, (left, right)), shape=(vocab_size, vocab_size)).tocsr()


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
        basis, _ = torch.linalg.qr(_multiply(matrix, basis) + shift * basis)
        # In float32 it fails for few distinct values, as of texts of a dozen words.
        values, vectors = (x.float() for x in torch.linalg.eigh((basis.T @ _multiply(matrix, basis)).double()))
        shift = max(shift, -float(values[0]))
    factors = basis @ vectors.flip(1)[:, :size] * values.flip(0)[:size].clamp(min=0).sqrt()
    return _pad_columns(factors * _signs(factors), size)


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
        left, _ = torch.linalg.qr(multiply(basis))
        basis, upper = torch.linalg.qr(multiply_transposed(left))
    # The matrix is about left @ upper.T @ basis.T.
    u, values, vt = torch.linalg.svd(upper.T)
    scale = values[:size].sqrt()
    factors = left @ u[:, :size] * scale
    signs = _signs(factors)
    return _pad_columns(factors * signs, size), _pad_columns(basis @ vt[:size].T * scale * signs, size)


def _signs(factors: Vectors) -> Float[Tensor, "E"]:
    """Return the sign of the largest entry of each column: which one a factorization gives depends on rounding."""
    largest = factors.abs().argmax(0, keepdim=True)
    return torch.where(factors.gather(0, largest)[0] < 0, -1.0, 1.0)


def _random_basis(vocab_size: int, size: int, generator: torch.Generator) -> Vectors:
    return torch.randn(vocab_size, min(size + _NUM_MORE_VECTORS, vocab_size), generator=generator)


def _multiply(matrix: "sparse.spmatrix", vectors: Vectors) -> Vectors:
    return torch.from_numpy(matrix @ vectors.numpy())


def _pad_columns(vectors: Float[Tensor, "V E"], size: int) -> Vectors:
    return nn.functional.pad(vectors, (0, size - vectors.shape[1]))


def _divide_rows(vectors: Vectors, weight: Float32[np.ndarray, "V"]) -> Vectors:
    """Divide each row by its weight; rows of weight 0 become 0."""
    inverse = np.divide(1, weight, out=np.zeros_like(weight), where=weight > 0)
    return vectors * torch.from_numpy(inverse)[:, None]


def _fill_uncounted(vectors: Vectors, frequency: Float64[np.ndarray, "V"]) -> Vectors:
    """Set the rows of tokens that were not counted to the mean of those that were counted least."""
    is_rarest = torch.from_numpy(frequency == frequency[frequency > 0].min())
    is_counted = torch.from_numpy(frequency > 0)
    return torch.where(is_counted[:, None], vectors, vectors[is_rarest].mean(0))


def _rotate(*matrices: Vectors, generator: torch.Generator) -> list[Tensor]:
    """Rotate rows at random, so that no coordinate matters more than others; inner products stay."""
    size = matrices[0].shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    return [matrix @ rotation for matrix in matrices]
