"""Fill-mask predictions and pseudo-log-likelihoods of masked language models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stemformer.data.examples.batch import collate
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError, DataError
from stemformer.evaluation.inference import batch_slices, hidden_states, masked_example
from stemformer.models.model import Model

_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Candidate:
    """Word for a mask (a continuation starts with `##`), and its share among all candidates."""

    token: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """Text with its masks filled: candidates for each mask, the most likely ones inserted."""

    text: str
    masks: list[list[Candidate]]
    filled: str


@dataclass(frozen=True)
class Score:
    """Sum of the log-probabilities (nats) of a text's tokens, each of them masked alone."""

    text: str
    num_tokens: int
    log_likelihood: float
    perplexity: float


def fill_masks(
    texts: Sequence[str], model: Model, tokenizer: Tokenizer, *, top_k: int = 5, candidates: Sequence[str] | None = None
) -> list[Filled]:
    """Return the most likely words for each `[MASK]`, predicted independently.

    Args:
        model: Has a masked-LM head; in evaluation mode.
        candidates: Words to choose from. One of several tokens is scored by the sum of their
            log-probabilities with as many masks; probabilities sum to 1 over the candidates.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}. Expected at least 1.")
    words = _encode_words(candidates, tokenizer) if candidates is not None else None
    encoded = [_encode(text, model, tokenizer) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if tokenizer.mask_token_id not in ids:
            raise DataError(f"No [MASK] in {_shorten(text)!r}. Put [MASK] where a word is to be predicted.")
    if words is None:
        masks = _rank_vocabulary(encoded, model, tokenizer, top_k)
    else:
        masks = [_rank_words(ids, t, words, model, tokenizer, top_k) for ids, t in zip(encoded, texts, strict=True)]
    return [Filled(text, found, _fill(text, found)) for text, found in zip(texts, masks, strict=True)]


def pseudo_log_likelihood(texts: Sequence[str], model: Model, tokenizer: Tokenizer) -> list[Score]:
    """Score texts by masking one token at a time; `model` has a masked-LM head.

    Source: Salazar et al. 2020, section 2.
    """
    scores: list[Score] = []
    for text in texts:
        ids = _encode(text, model, tokenizer)
        if (n := len(ids)) == 0:
            raise DataError(f"{_shorten(text)!r} has no token. Expected at least one word.")
        masked = np.tile(ids, (n, 1))  # (n, n): row i masks token i
        np.fill_diagonal(masked, tokenizer.mask_token_id)
        rows = _log_probabilities([(row, np.array([i])) for i, row in enumerate(masked)], model, tokenizer)
        total = sum(float(row[0, token]) for row, token in zip(rows, ids.tolist(), strict=True))
        scores.append(Score(text, n, total, float(np.exp(-total / n))))
    return scores


def _encode(text: str, model: Model, tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids of a text without [CLS] and [SEP]; `[MASK]` becomes the special id."""
    ids = np.asarray(tokenizer.encode(text, parse_special_tokens=True).ids, np.int64)
    limit = model.config.max_position_embeddings - 2
    if len(ids) > limit:
        raise DataError(f"{_shorten(text)!r} has {len(ids)} tokens; the model accepts {limit}. Shorten the text.")
    model.warn_beyond_training(len(ids) + 2)
    return ids


def _encode_words(words: Sequence[str], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    if not words:
        raise ConfigError("--candidates is empty. Pass at least one word.")
    out: dict[str, np.ndarray] = {}
    for word in words:
        # A vocabulary entry, so that pieces such as `##ing` are accepted; otherwise text to tokenize.
        known = tokenizer.token_to_id(word)
        ids = np.array([known]) if known is not None else np.asarray(tokenizer.encode(word).ids, np.int64)
        if len(ids) == 0 or tokenizer.unk_token_id in ids:
            raise ConfigError(f"--candidates {word!r}: The tokenizer cannot represent this word. Remove it.")
        out[word] = ids
    return out


def _rank_vocabulary(
    encoded: list[np.ndarray], model: Model, tokenizer: Tokenizer, top_k: int
) -> list[list[list[Candidate]]]:
    queries = [(ids, np.flatnonzero(ids == tokenizer.mask_token_id)) for ids in encoded]
    out = []
    for log_p in _log_probabilities(queries, model, tokenizer):
        best = log_p[:, : tokenizer.vocab_size].topk(min(top_k, tokenizer.vocab_size))
        ranked = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        out.append([[Candidate(tokenizer.tokens[i], p) for i, p in zip(*row, strict=True)] for row in ranked])
    return out


def _rank_words(
    ids: np.ndarray, text: str, words: dict[str, np.ndarray], model: Model, tokenizer: Tokenizer, top_k: int
) -> list[list[Candidate]]:
    """Return the most likely candidate words for each mask of one text."""
    out: list[list[Candidate]] = []
    names = list(words)
    lengths = sorted(set(map(len, words.values())))
    if len(ids) - 1 + lengths[-1] > model.config.max_position_embeddings - 2:
        raise DataError(f"{_shorten(text)!r} is too long for a word of {lengths[-1]} pieces. Shorten the text.")
    for mask in np.flatnonzero(ids == tokenizer.mask_token_id).tolist():
        # One query for each number of masks.
        inserted = [np.insert(ids, mask, [tokenizer.mask_token_id] * (k - 1)) for k in lengths]
        queries = [(filled, np.arange(mask, mask + k)) for filled, k in zip(inserted, lengths, strict=True)]
        by_length = dict(zip(lengths, _log_probabilities(queries, model, tokenizer), strict=True))
        log_p = torch.stack([by_length[len(p)].gather(1, torch.from_numpy(p)[:, None]).sum() for p in words.values()])
        probabilities = torch.softmax(log_p, 0)
        order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
        out.append([Candidate(names[i], float(probabilities[i])) for i in order])
    return out


def _log_probabilities(
    queries: Sequence[tuple[np.ndarray, np.ndarray]], model: Model, tokenizer: Tokenizer
) -> Iterator[Float[Tensor, "m V"]]:
    """Yield the log-probabilities at the positions of each query of (ids, positions)."""
    device = next(model.parameters()).device
    for part in batch_slices([len(ids) + 2 for ids, _ in queries], _BATCH_TOKENS):
        examples = [masked_example(ids, positions, ids[positions], tokenizer) for ids, positions in queries[part]]
        batch = collate(examples, range(len(examples))).to(device)
        with torch.inference_mode():
            states = hidden_states(model, batch)
            logits = model.lm_logits(states.index_select(0, batch.label_positions))  # (M, V)
            log_p = torch.log_softmax(logits.float(), -1).cpu()
        yield from log_p.split([len(example.labels) for example in examples])  # type: ignore[no-untyped-call]


def _fill(text: str, masks: list[list[Candidate]]) -> str:
    out, *rest = text.split("[MASK]")
    for candidates, part in zip(masks, rest, strict=True):
        word = candidates[0].token
        out = (out.rstrip(" ") + word[2:] if word.startswith("##") else out + word) + part
    return out


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
