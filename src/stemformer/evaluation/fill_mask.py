"""Filling blanks: which words a masked model puts where `[MASK]` stands, and how likely it finds a whole sentence."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example, collate
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError, DataError
from stemformer.models.model import Model

_TOKENS_AT_ONCE = 16_384
"""How many tokens go through the model in one batch."""


@dataclass(frozen=True)
class Candidate:
    """A word that may stand in a blank.

    Attributes:
        token: The word; a piece of one begins with `##` in WordPiece.
        probability: From 0 to 1, among the vocabulary, or among the words that were asked for.
    """

    token: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text with its blanks filled.

    Attributes:
        text: As it was given.
        masks: For each `[MASK]`, in order, its candidates, likeliest first.
        filled: The text with the likeliest word in each blank.
    """

    text: str
    masks: list[list[Candidate]]
    filled: str


@dataclass(frozen=True)
class Score:
    """How likely a text is to a masked model.

    Attributes:
        text: As it was given.
        num_tokens: Tokens that were scored.
        log_likelihood: Sum over the tokens of the log-probability of each when it alone is hidden, in nats.
        perplexity: exp(-log_likelihood / num_tokens).
    """

    text: str
    num_tokens: int
    log_likelihood: float
    perplexity: float


def fill_masks(
    texts: Sequence[str], model: Model, tokenizer: Tokenizer, *, top_k: int = 5, among: Sequence[str] | None = None
) -> list[Filled]:
    """Returns the likeliest words for each `[MASK]` of each text; the blanks of one text do not see each other's words.

    Args:
        texts: Each with at least one `[MASK]`.
        model: With a masked-LM head, in evaluation mode.
        tokenizer: The model's.
        top_k: How many words a blank.
        among: Words to choose from. One that the tokenizer splits is scored by the sum of its pieces' log-probabilities in as many
            blanks; probabilities are then among these words alone.

    Raises:
        DataError: A text without `[MASK]`, or longer than the model's positions.
        ConfigError: `top_k` below 1, or a word of `among` without a token.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}: expected at least 1")
    pieces = _pieces(among, tokenizer) if among is not None else None
    encoded = [_encode(text, model, tokenizer) for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if tokenizer.mask_id not in ids:
            raise DataError(f"no [MASK] in {_short(text)!r}: put [MASK] where a word is to be filled in")
    if pieces is None:
        blanks = [np.flatnonzero(ids == tokenizer.mask_id) for ids in encoded]
        masks = _from_vocabulary(encoded, blanks, model, tokenizer, top_k)
    else:
        masks = [_from_words(ids, text, pieces, model, tokenizer)[:] for ids, text in zip(encoded, texts, strict=True)]
        masks = [[candidates[:top_k] for candidates in blank] for blank in masks]
    return [Filled(text, found, _put_in(text, found)) for text, found in zip(texts, masks, strict=True)]


def pseudo_log_likelihood(texts: Sequence[str], model: Model, tokenizer: Tokenizer) -> list[Score]:
    """Returns how likely each text is: each token is hidden in turn, and the log-probability of what stood there is summed.

    Args:
        texts: Whole sentences.
        model: With a masked-LM head, in evaluation mode.
        tokenizer: The model's.

    Raises:
        DataError: A text without a token, or longer than the model's positions.

    Source: Salazar et al. 2020, section 2.
    """
    scores: list[Score] = []
    for text in texts:
        ids = _encode(text, model, tokenizer)
        n = len(ids)
        if n == 0:
            raise DataError(f"{_short(text)!r} has no token: give a text with at least one word")
        hidden = np.tile(ids, (n, 1))
        np.fill_diagonal(hidden, tokenizer.mask_id)
        rows = _log_probabilities(((row, np.array([i])) for i, row in enumerate(hidden)), model, tokenizer)
        total = float(sum(float(row[0, token]) for row, token in zip(rows, ids.tolist(), strict=True)))
        scores.append(Score(text, n, total, float(np.exp(-total / n))))
    return scores


# -------------------------------------------------------------------------------------------------------------------------- the parts


def _encode(text: str, model: Model, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of a text without special tokens around it; `[MASK]` in it becomes the special id."""
    ids = np.asarray(tokenizer.encode(text, special=True).ids, np.int64)
    longest = model.config.max_position_embeddings - 2
    if len(ids) > longest:
        raise DataError(f"{_short(text)!r} has {len(ids)} tokens, the model takes {longest}: shorten it")
    return ids


def _pieces(words: Sequence[str], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for word in words:
        known = tokenizer.id_of(word)  # so that `##ing` and the like may be named
        ids = np.array([known]) if known is not None else np.asarray(tokenizer.encode(word).ids, np.int64)
        if len(ids) == 0 or tokenizer.unk_id in ids:
            raise ConfigError(f"--among {word!r}: not a word that this tokenizer can write; leave it out")
        out[word] = ids
    if not out:
        raise ConfigError("--among is empty: give at least one word")
    return out


def _from_vocabulary(
    encoded: list[np.ndarray], blanks: list[np.ndarray], model: Model, tokenizer: Tokenizer, top_k: int
) -> list[list[list[Candidate]]]:
    out: list[list[list[Candidate]]] = []
    for log_p in _log_probabilities(zip(encoded, blanks, strict=True), model, tokenizer):
        best = log_p[:, : tokenizer.vocab_size].topk(min(top_k, tokenizer.vocab_size))
        out.append(
            [
                [Candidate(tokenizer.tokens[i], p) for i, p in zip(row_ids, row_p, strict=True)]
                for row_ids, row_p in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            ]
        )
    return out


def _from_words(
    ids: np.ndarray, text: str, pieces: dict[str, np.ndarray], model: Model, tokenizer: Tokenizer
) -> list[list[Candidate]]:
    """Returns all words for each blank of one text, likeliest first."""
    out: list[list[Candidate]] = []
    for blank in np.flatnonzero(ids == tokenizer.mask_id).tolist():
        sizes = sorted({len(p) for p in pieces.values()})
        if len(ids) - 1 + sizes[-1] > model.config.max_position_embeddings - 2:
            raise DataError(f"{_short(text)!r} is too long for a word of {sizes[-1]} pieces: shorten it")
        widened = [
            (
                np.concatenate([ids[:blank], np.full(k, tokenizer.mask_id), ids[blank + 1 :]]),
                np.arange(blank, blank + k),
            )
            for k in sizes
        ]
        by_size = dict(zip(sizes, _log_probabilities(widened, model, tokenizer), strict=True))
        words = list(pieces)
        log_p = torch.stack([by_size[len(p)][torch.arange(len(p)), torch.from_numpy(p)].sum() for p in pieces.values()])
        share = torch.softmax(log_p, 0)
        order = share.argsort(descending=True, stable=True).tolist()
        out.append([Candidate(words[i], float(share[i])) for i in order])
    return out


def _log_probabilities(
    queries: Iterable[tuple[np.ndarray, np.ndarray]], model: Model, tokenizer: Tokenizer
) -> Iterator[Float[Tensor, "m V"]]:
    """Yields, for each (ids, places), the log-probabilities (m, V) at the places."""
    device = next(model.parameters()).device
    for batch, sizes in _batches(queries, tokenizer):
        batch = batch.to(device)
        with torch.inference_mode():
            states = model.body(
                batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen
            )
            logits = model.masked_lm_logits(states.index_select(0, batch.label_positions))
            log_p = torch.log_softmax(logits.float(), -1).cpu()
        yield from log_p.split(sizes)  # type: ignore[no-untyped-call]


def _batches(
    queries: Iterable[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer
) -> Iterator[tuple[Batch, list[int]]]:
    """Yields batches of a bounded number of tokens, and how many places each of their texts asks for."""
    waiting: list[Example] = []
    num_tokens = 0
    for ids, places in queries:
        if waiting and num_tokens + len(ids) + 2 > _TOKENS_AT_ONCE:
            yield collate(waiting, range(len(waiting))), [len(e.labels) for e in waiting]
            waiting, num_tokens = [], 0
        num_tokens += len(ids) + 2
        with_special = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])
        waiting.append(Example(with_special, np.array([len(ids) + 2]), places + 1, ids[places]))
    if waiting:
        yield collate(waiting, range(len(waiting))), [len(e.labels) for e in waiting]


def _put_in(text: str, masks: list[list[Candidate]]) -> str:
    parts = text.split("[MASK]")
    out = parts[0]
    for candidates, part in zip(masks, parts[1:], strict=True):
        word = candidates[0].token
        out = (out.rstrip(" ") + word[2:] if word.startswith("##") else out + word) + part
    return out


def _short(text: str, *, longest: int = 60) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
