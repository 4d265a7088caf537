"""Fill-mask predictions of masked language models, and scores of texts."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stemformer.data.examples.batch import collate
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError, DataError
from stemformer.evaluation.few_shot.scoring import WITHIN_WORD_L2R, Blank, score_blanks
from stemformer.evaluation.inference import batch_slices, hidden_states, masked_example
from stemformer.models.model import Model

_BATCH_TOKENS = 16_384
# How people write a mask, whatever the vocabulary calls it.
MASK = "[MASK]"
# Texts without a mask that a warning names.
_NUM_FAULTS = 5
_OTHER_MASK = re.compile(r"[\[<(]mask[\])>]", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """Word for a mask (a continuation starts with `##`), and its share among all candidates."""

    token: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """Text with its masks filled: candidates for each mask, the most likely ones inserted; None without a mask.

    `method` is `vocabulary`, or how candidates were scored: `within_word_l2r`, by `sum` or `mean` over tokens.
    """

    text: str
    masks: list[list[Candidate]]
    filled: str | None
    method: str


@dataclass(frozen=True)
class Score:
    """Sum and mean of the log-probabilities (nats) of a text's tokens, None without any, and how they were computed."""

    text: str
    num_tokens: int
    log_likelihood: float | None
    mean_log_likelihood: float | None
    perplexity: float | None
    method: str


def make_score(text: str, num_tokens: int, log_likelihood: float | None, method: str) -> Score:
    """Return the score of a text from the sum of its log-probabilities, None if it has no score."""
    mean = None if log_likelihood is None else log_likelihood / num_tokens
    return Score(text, num_tokens, log_likelihood, mean, None if mean is None else float(np.exp(-mean)), method)


def fill_masks(
    texts: Sequence[str],
    model: Model,
    tokenizer: Tokenizer,
    *,
    top_k: int = 5,
    candidates: Sequence[str] | None = None,
    reduction: str = "sum",
    pieces: bool = False,
) -> list[Filled]:
    """Return the most likely words for each `[MASK]`, predicted independently.

    Args:
        model: Has a masked-LM head; in evaluation mode.
        candidates: Words to choose from; probabilities sum to 1 over them. One of several tokens is
            put in with as many masks, and scored from left to right (`score_blanks`).
        reduction: Score candidates by the `sum` or the `mean` over their tokens.
        pieces: Without candidates: also return parts of words (`##ing`) and special tokens.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}. Expected at least 1.")
    if reduction != "sum" and candidates is None:
        raise ConfigError("reduction applies to candidates. Pass candidates, or remove it.")
    if pieces and candidates is not None:
        raise ConfigError("pieces applies to fills from the vocabulary. Remove it: candidates may be pieces.")
    words = _encode_words(candidates, tokenizer) if candidates is not None else None
    encoded = [_encode(text.replace(MASK, tokenizer.mask_token), model, tokenizer) for text in texts]
    is_good = [tokenizer.mask_token_id in ids for ids in encoded]
    if bad := [text for text, good in zip(texts, is_good, strict=True) if not good]:
        problem = _describe_unmasked(bad, tokenizer.mask_token)
        if len(bad) == len(texts):
            raise DataError(problem)
        warnings.warn(problem, stacklevel=4)
    pairs = [(ids, text) for ids, text in zip(encoded, texts, strict=True) if tokenizer.mask_token_id in ids]
    encoded = [ids for ids, _ in pairs]
    if words is None:
        masks, method = _rank_vocabulary(encoded, model, tokenizer, top_k, pieces=pieces), "vocabulary"
    else:
        ranked = [_rank_words(ids, text, words, model, tokenizer, reduction=reduction) for ids, text in pairs]
        masks = [[ranking[:top_k] for ranking in rankings] for rankings in ranked]
        method = f"{WITHIN_WORD_L2R}_{reduction}"
    rest = iter(masks)
    found = [next(rest) if good else [] for good in is_good]
    uniform = [text.replace(tokenizer.mask_token, MASK) for text in texts]
    fills = [_fill(text, x) if x else None for text, x in zip(uniform, found, strict=True)]
    return [Filled(text, x, filled, method) for text, x, filled in zip(texts, found, fills, strict=True)]


def _describe_unmasked(texts: Sequence[str], mask: str) -> str:
    shown = ", ".join(repr(_shorten(text)) for text in texts[:_NUM_FAULTS]) + (
        ", ..." if len(texts) > _NUM_FAULTS else ""
    )
    is_other = any(_OTHER_MASK.search(text) for text in texts)
    hint = " Did you mean [MASK], in capitals and square brackets?" if is_other else ""
    names = MASK if mask == MASK else f"{MASK} or {mask}"
    return f"No [MASK] in {shown}. Put {names} where a word is to be predicted.{hint}"


def _encode(text: str, model: Model, tokenizer: Tokenizer) -> np.ndarray:
    """Return a text's ids without [CLS] and [SEP]; `[MASK]` becomes the special id."""
    ids = tokenizer.encode(text, parse_special_tokens=True).ids
    limit = model.config.max_position_embeddings - 2
    if len(ids) > limit:
        problem = f"{_shorten(text)!r} has {len(ids)} tokens; the model accepts {limit}"
        raise DataError(f"{problem}. Shorten the text.")
    model.warn_beyond_training(len(ids) + 2)
    return ids


def _encode_words(words: Sequence[str], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for word in words:
        # A vocabulary entry, so that pieces such as `##ing` are accepted; otherwise text to tokenize.
        known = None if tokenizer.is_byte_level else tokenizer.token_to_id(word)
        # The space before a word is in its first byte-level token.
        text = f" {word}" if tokenizer.is_byte_level else word
        ids = np.array([known]) if known is not None else np.asarray(tokenizer.encode(text).ids, np.int64)
        if len(ids) == 0 or tokenizer.unk_token_id in ids:
            raise ConfigError(f"--candidates {word!r}: The tokenizer cannot represent this word. Remove it.")
        out[word] = ids
    if not out:
        raise ConfigError("--candidates is empty. Pass at least one word.")
    return out


def _rank_vocabulary(
    encoded: list[np.ndarray], model: Model, tokenizer: Tokenizer, top_k: int, *, pieces: bool
) -> list[list[list[Candidate]]]:
    queries = [(ids, np.flatnonzero(ids == tokenizer.mask_token_id)) for ids in encoded]
    shown = torch.arange(tokenizer.vocab_size) if pieces else torch.from_numpy(np.flatnonzero(tokenizer.is_full_word))
    out: list[list[list[Candidate]]] = []
    for log_p in _log_probabilities(queries, model, tokenizer):
        best = log_p[:, shown].topk(min(top_k, len(shown)))
        ranked = zip(shown[best.indices].tolist(), best.values.exp().tolist(), strict=True)
        out.append([[Candidate(tokenizer.shown_tokens[i], p) for i, p in zip(*row, strict=True)] for row in ranked])
    return out


def _rank_words(
    ids: np.ndarray, text: str, words: dict[str, np.ndarray], model: Model, tokenizer: Tokenizer, *, reduction: str
) -> list[list[Candidate]]:
    """Return all candidate words for each mask of one text, most likely first."""
    out: list[list[Candidate]] = []
    names = list(words)
    longest = max(map(len, words.values()))
    if len(ids) - 1 + longest > model.config.max_position_embeddings - 2:
        raise DataError(f"{_shorten(text)!r} is too long for a word of {longest} pieces. Shorten the text.")
    for mask in np.flatnonzero(ids == tokenizer.mask_token_id).tolist():
        filled = [np.concatenate([ids[:mask], tokens, ids[mask + 1 :]]) for tokens in words.values()]
        blanks = [Blank(row, mask, mask + len(row) - len(ids) + 1) for row in filled]
        scores = score_blanks(model, tokenizer, blanks)
        log_p = torch.tensor([s.log_probability / (s.num_tokens if reduction == "mean" else 1) for s in scores])
        probabilities = torch.softmax(log_p, 0)
        order = probabilities.argsort(descending=True, stable=True).tolist()
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
    out, *rest = text.split(MASK)
    for candidates, part in zip(masks, rest, strict=True):
        word = candidates[0].token
        out = (out.rstrip(" ") + word[2:] if word.startswith("##") else out + word) + part
    return out


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
