"""Log-probabilities of answers, continuations (causal LM) or masked spans (masked LM), and of texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Example, collate
from stemformer.data.tokenization.tokenizer import Encoding, Tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.inference import batch_slices, hidden_states, masked_example
from stemformer.models.body import Body
from stemformer.models.model import Model

WITHIN_WORD_L2R = "within_word_l2r"
# About as many in the prompts and answers of a batch.
_BATCH_TOKENS = 4096
# About as many in the masked copies of texts that are made at a time.
_BLOCK_TOKENS = 16 * _BATCH_TOKENS
# In memory at a time: 32 MiB in float32.
_MAX_LOGITS = 2**23
# Prompts with a common prefix of this length share its cache.
_MIN_SHARED_PREFIX = 16


@dataclass(frozen=True)
class ScoringRequest:
    """Ids of a prompt and of its possible answers, none of them empty."""

    prompt: Int[np.ndarray, "n"]
    answers: tuple[np.ndarray, ...]


class Blank(NamedTuple):
    """Ids of a text without [CLS] and [SEP], and the part `start` to `stop` of it that is scored."""

    ids: Int[np.ndarray, "n"]
    start: int
    stop: int


@dataclass(frozen=True)
class AnswerScore:
    """Sum of an answer's log-probabilities (nats), and whether each token is the most likely one."""

    log_probability: float
    num_tokens: int
    is_greedy: bool


@torch.inference_mode()
def score_answers(model: Model, requests: Sequence[ScoringRequest]) -> list[list[AnswerScore]]:
    """Score each answer as a continuation of its prompt, whose key-value cache the answers share.

    Prompt and answer must fit into the model's positions, except for the last token. The model is
    causal, with its head, in evaluation mode, under the caller's autocast.
    """
    assert "causal_lm" in model.heads, "a causal model with its head"
    assert all(len(r.prompt) and all(map(len, r.answers)) for r in requests), "prompts and answers are not empty"
    sizes = [len(r.prompt) + sum(len(answer) - 1 for answer in r.answers) for r in requests]
    parts = batch_slices(sizes, _BATCH_TOKENS)
    return [scores for part in parts for scores in _score_batch(model, requests[part])]


@torch.inference_mode()
def score_blanks(model: Model, tokenizer: Tokenizer, blanks: Sequence[Blank]) -> list[AnswerScore]:
    """Score words or answers inside texts from left to right: a token is masked together with the later ones.

    A word of several tokens is thus never predicted from its own end, which masking one token at a time
    (Salazar et al. 2020) allows. The model has a masked-LM head, and is in evaluation mode, under the
    caller's autocast.

    Source: Kauf and Ivanova 2023, section 2 (PLL-word-l2r).
    """
    requests = []
    for ids, start, stop in blanks:
        for position in range(start, stop):
            masked = ids.copy()
            masked[position:stop] = tokenizer.mask_token_id
            requests.append(masked_example(masked, np.array([position]), ids[position : position + 1], tokenizer))
    scores = iter(_score_masks(model, requests))
    tokens = [[next(scores) for _ in range(start, stop)] for _, start, stop in blanks]
    return [AnswerScore(sum(s.log_probability for s in t), len(t), all(s.is_greedy for s in t)) for t in tokens]


def score_texts(
    model: Model, tokenizer: Tokenizer, texts: Sequence[Encoding], *, pll: str = WITHIN_WORD_L2R
) -> list[float]:
    """Return the log-likelihood (nats) of each text, none of them empty; texts of equal tokens have exactly equal ones.

    A causal model reads the end-of-text token before a text. Under a masked language model it is the
    pseudo-log-likelihood of the text between [CLS] and [SEP]. The end of the text is not scored. Other texts of the
    call change a score by rounding only. The model has its head, and is in evaluation mode, under the caller's autocast.

    Args:
        pll: `within_word_l2r` masks a token and the later ones of its word, `original` each token alone,
            which favors rare words of several pieces, since these predict each other. No effect on a causal model.

    Source: Kauf and Ivanova 2023, section 2 (within_word_l2r); Salazar et al. 2020, section 2 (original).
    """
    is_causal, has_words = "causal_lm" in model.heads, pll == WITHIN_WORD_L2R
    keys = [(t.ids.tobytes(), t.word_starts.tobytes() if has_words and not is_causal else b"") for t in texts]
    distinct = dict(zip(keys, texts, strict=True))
    # Texts of similar length share a batch; of a minimal pair, both masked copies of a word that differs.
    order = sorted(distinct, key=lambda key: len(key[0]))
    lengths = [len(distinct[key].ids) for key in order]
    sizes = lengths if is_causal else [n * (n + 2) for n in lengths]
    scores: dict[tuple[bytes, bytes], float] = {}
    for part in batch_slices(sizes, _BATCH_TOKENS if is_causal else _BLOCK_TOKENS):
        encodings = [distinct[key] for key in order[part]]
        if is_causal:
            start = tokenizer.start_prompt(np.array([], np.int64), model.config.eos_token_id or 0)
            [found] = score_answers(model, [ScoringRequest(start, tuple(e.ids for e in encodings))])
            values = [score.log_probability for score in found]
        else:
            values = _pseudo_log_likelihoods(model, tokenizer, encodings, has_words=has_words)
        scores |= zip(order[part], values, strict=True)
    return [scores[key] for key in keys]


def check_pll(pll: str, *, is_causal: bool) -> None:
    """Raise ConfigError if a causal model is to be scored by a pseudo-log-likelihood; the default has no effect."""
    if is_causal and pll != WITHIN_WORD_L2R:
        raise ConfigError("--pll applies to masked language models, and this is a causal one. Remove it.")


def _pseudo_log_likelihoods(
    model: Model, tokenizer: Tokenizer, encodings: Sequence[Encoding], *, has_words: bool
) -> list[float]:
    blanks, counts = [], []
    for encoding in encodings:
        n = len(encoding.ids)
        starts = np.flatnonzero(encoding.word_starts).tolist() if has_words else range(n)
        blanks += [Blank(encoding.ids, start, stop) for start, stop in pairwise([*starts, n])]
        counts.append(len(starts))
    scores = iter(score_blanks(model, tokenizer, blanks))
    return [sum(next(scores).log_probability for _ in range(count)) for count in counts]


def _score_masks(model: Model, requests: Sequence[Example]) -> Iterator[AnswerScore]:
    """Yield the score of the only label of each example; equal inputs of a batch share a forward pass."""
    device = next(model.parameters()).device
    for part in batch_slices([len(request.input_ids) for request in requests], _BATCH_TOKENS):
        keys = [(request.input_ids.tobytes(), int(request.label_positions[0])) for request in requests[part]]
        distinct = dict(zip(keys, requests[part], strict=True))
        batch = collate(list(distinct.values()), range(len(distinct))).to(device)
        states = hidden_states(model, batch, rows=batch.label_positions)  # (M, D)
        row = {key: np.array([i]) for i, key in enumerate(distinct)}
        yield from _score_tokens(model, states, [row[key] for key in keys], [r.labels for r in requests[part]])


def _score_batch(model: Model, requests: Sequence[ScoringRequest]) -> list[list[AnswerScore]]:
    body = model.body
    # Common prefix of all prompts.
    prompts = [request.prompt for request in requests]
    prefix, shared, parents = common_prefix(prompts, min(map(len, prompts)) - 1), None, None
    if len(prompts) > 1 and prefix >= _MIN_SHARED_PREFIX:
        _, shared = body.prefill(*_flatten([prompts[0][:prefix]], body))
        prompts = [prompt[prefix:] for prompt in prompts]
        parents = torch.zeros(len(prompts), dtype=torch.int64, device=shared.cu_seqlens.device)

    # Prompts; their last states predict the first token of each answer.
    ids, cu_seqlens = _flatten(prompts, body)
    states, cache = body.prefill(ids, cu_seqlens, after=shared, parents=parents)
    states = states.index_select(0, cu_seqlens[1:].long() - 1)  # (S, D)

    # Answers of several tokens.
    owners = [number for number, request in enumerate(requests) for _ in request.answers]
    answers = [answer for request in requests for answer in request.answers]
    longer = [(number, answer[:-1]) for number, answer in zip(owners, answers, strict=True) if len(answer) > 1]
    if longer:
        ids, cu_seqlens = _flatten([answer for _, answer in longer], body)
        parents = torch.tensor([number for number, _ in longer], device=ids.device)
        states = torch.cat([states, body.prefill(ids, cu_seqlens, after=cache, parents=parents)[0]])

    # The first token of an answer is predicted by the prompt, the others by the answer.
    starts = len(prompts) + np.cumsum([0, *(len(answer) - 1 for answer in answers)])
    rows = [np.append(number, np.arange(a, b)) for number, (a, b) in zip(owners, pairwise(starts), strict=True)]
    scores = iter(_score_tokens(model, states, rows, answers))
    return [[next(scores) for _ in request.answers] for request in requests]


def _score_tokens(
    model: Model, states: Float[Tensor, "R D"], rows: Sequence[np.ndarray], answers: Sequence[np.ndarray]
) -> list[AnswerScore]:
    """Score answers; `rows` are the states that predict the tokens of each."""
    row = torch.from_numpy(np.concatenate(rows)).to(states.device)
    tokens = torch.from_numpy(np.concatenate(answers).astype(np.int64)).to(states.device)
    log_p = torch.zeros(len(row), device=states.device)
    is_best = torch.zeros(len(row), dtype=torch.bool, device=states.device)
    size = max(1, _MAX_LOGITS // model.config.vocab_size)
    for begin in range(0, len(states), size):
        logits = model.lm_logits(states[begin : begin + size]).float()
        chunk = ((row >= begin) & (row < begin + size)).nonzero()[:, 0]
        local = row[chunk] - begin
        log_p[chunk] = logits[local, tokens[chunk]] - logits.logsumexp(-1)[local]
        is_best[chunk] = logits.argmax(-1)[local] == tokens[chunk]
    values, best = log_p.double().cpu().numpy(), is_best.cpu().numpy()
    if not np.isfinite(values).all():
        raise CheckpointError(
            "The model's scores are not finite: its weights are damaged, or overflow in this precision.", damaged=True
        )
    bounds = np.cumsum([0, *map(len, answers)]).tolist()
    return [AnswerScore(float(values[a:b].sum()), b - a, bool(best[a:b].all())) for a, b in pairwise(bounds)]


def _flatten(texts: Sequence[np.ndarray], body: Body) -> tuple[Int[Tensor, "N"], Int[Tensor, "S1"]]:
    device = body.embeddings.word.weight.device
    cu_seqlens = torch.from_numpy(np.cumsum([0, *map(len, texts)]).astype(np.int32))
    return torch.from_numpy(np.concatenate(texts).astype(np.int64)).to(device), cu_seqlens.to(device)


def common_prefix(texts: Sequence[np.ndarray], limit: int) -> int:
    """Return the number of first ids that texts of at least `limit` ids share, at most `limit`."""
    block = np.stack([text[:limit] for text in texts])
    is_equal = (block == block[0]).all(0)
    return limit if is_equal.all() else int(is_equal.argmin())
