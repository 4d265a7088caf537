"""Beam search over many texts at once.

Source: Wu et al. 2016, section 7 (length penalty); the rules for stopping are those of Hugging Face's `generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stemformer.config import check_at_least, check_fields
from stemformer.errors import CheckpointError, ConfigError
from stemformer.generation.constraints import check_constraints, constrain, pad_left

# Scores that `top_scores` compares by their maximum first.
_BLOCK_SIZE = 64


@runtime_checkable
class TextDecoder(Protocol):
    """What beam search requires of `GptDecoder` and `BartTextDecoder`.

    A batch has S texts (prompts or sources) with B beams each, R = S * B rows.
    """

    config: Any

    def start(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the tokens before the first new one of each text."""

    def prefill(self, prompts: Sequence[Sequence[int]], max_length: int, *, num_beams: int = 1) -> Float[Tensor, "S V"]:
        """Start a new batch and return the logits of each first token."""

    def decode_step(self, tokens: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to each beam and return the logits of the next."""

    def select(self, texts: Int[Tensor, "Q"]) -> None:
        """Keep these texts in this order, with all their beams."""

    def reorder(self, parents: Int[Tensor, "S B"]) -> None:
        """Let each beam continue a beam of its text."""


@dataclass(frozen=True)
class BeamConfig:
    """Settings of beam search."""

    num_beams: int = 4
    max_new_tokens: int = 128
    # Scores are log probabilities divided by the number of tokens, the end included, to this power.
    length_penalty: float = 1.0
    # When a text is done: as soon as as many ends as beams are found; when the best running beam, at its present
    # length, is no better than the worst of them (False); or when it could not become so at any length (`never`).
    # One beam is greedy decoding, and stops at its first end.
    early_stopping: bool | Literal["never"] = False
    # Number of texts returned for each prompt.
    num_return_sequences: int = 1
    # No text ends before this many tokens.
    min_new_tokens: int = 0
    # No n tokens in a row occur twice, those before the first new one included; 0 allows it.
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, self, "", "num_beams", "max_new_tokens")
        check_constraints(self)
        check_fields(self, "", "a number from -10 to 10", lambda x: -10 <= x <= 10, "length_penalty")
        if not 1 <= self.num_return_sequences <= self.num_beams:
            problem = f"num_return_sequences is {self.num_return_sequences}: expected 1 to {self.num_beams}, num_beams"
            raise ConfigError(problem)

    @property
    def stops_early(self) -> bool:
        return self.early_stopping is True or self.num_beams == 1


@dataclass(frozen=True)
class Hypothesis:
    """Text found by beam search, without its end, and its score."""

    ids: list[int]
    score: float
    # Whether it ended by itself, not by its length.
    is_complete: bool


@torch.inference_mode()
def search_beams(
    decoder: TextDecoder,
    prompts: Sequence[Sequence[int]],
    config: BeamConfig,
    *,
    limits: Sequence[int] | None = None,
    num_forced: int = 0,
) -> list[list[Hypothesis]]:
    """Return the best continuations of each prompt, or texts of each source, the best first.

    The result of a prompt does not depend on the others, but for rounding. There are fewer than
    `config.num_return_sequences` if constraints leave fewer.

    Args:
        limits: Maximum number of new tokens of each text; default: `config.max_new_tokens` of each.
        num_forced: Tokens of `start` that count in the length of a text, as those forced by Hugging Face's `generate`.

    Raises:
        CheckpointError: The model's scores are not finite.
        ConfigError: There are more beams than half of the ids.
    """
    num_beams, eos = config.num_beams, decoder.config.eos_token_id
    started = decoder.start(prompts)
    last_steps = np.array([config.max_new_tokens] * len(prompts) if limits is None else limits) - 1  # (S,)
    num_steps = int(last_steps.max()) + 1
    logits = decoder.prefill(prompts, max(map(len, started)) + num_steps, num_beams=num_beams)  # (S, V)
    if 2 * num_beams > logits.shape[1]:
        raise ConfigError(f"num_beams is {num_beams}: expected at most half of the {logits.shape[1]} ids.")
    searches = [_Search(config, last + 1 + num_forced) for last in last_steps.tolist()]
    history = pad_left(started) if config.no_repeat_ngram_size else None
    # Numbers of the A texts in progress; the tokens of their beams (A, B, length), one beam at first, and scores (A, B).
    active = np.arange(len(prompts))
    running = np.empty((len(prompts), 1, 0), np.int64)
    scores = np.zeros((len(prompts), 1), np.float32)
    for step in range(num_steps):
        # Rank all extensions of all beams. Twice the beams suffice, as one for each beam may be the end.
        log_probabilities = logits.log_softmax(-1)  # (A * B, V)
        texts = None
        if history is not None:
            past = history[active].repeat(running.shape[1], 0)
            texts = np.concatenate([past, running.reshape(len(past), -1)], 1)  # (A * B, P)
        if history is not None or step < config.min_new_tokens:
            constrain(log_probabilities, texts, config, step=step, eos=eos)
        log_probabilities += torch.from_numpy(scores.reshape(-1, 1)).to(logits.device)
        best, rows, tokens = top_scores(log_probabilities.view(*scores.shape, -1), 2 * num_beams)  # (A, 2 B) each
        check_scores(best[:, 0])
        is_end, is_last = tokens == eos, last_steps[active] == step

        # Keep the texts that ended among the best, or all at the maximum length.
        length = step + 1 + num_forced
        divisor = length**config.length_penalty
        ended = (is_last[:, None] | is_end) & (best > -np.inf)
        for slot, beam in np.argwhere(ended[:, :num_beams]).tolist():
            is_complete = bool(is_end[slot, beam])
            ids = [*running[slot, rows[slot, beam]].tolist(), *([] if is_complete else [int(tokens[slot, beam])])]
            searches[active[slot]].add(Hypothesis(ids, float(best[slot, beam]) / divisor, is_complete))

        # The best beams that are not at their end.
        order = np.argsort(is_end, axis=1, kind="stable")[:, :num_beams]
        slots = np.arange(len(active))[:, None]
        scores, rows, tokens = best[slots, order], rows[slots, order], tokens[slots, order]
        running = np.concatenate([running[slots, rows], tokens[..., None]], 2)

        # Leave the texts that are done.
        best_running = zip(active.tolist(), scores[:, 0].tolist(), strict=True)
        is_done = np.array([searches[text].is_done(score, length) for text, score in best_running])
        is_kept = ~(is_last | is_done)
        if not is_kept.any():
            break
        if not is_kept.all():
            kept = _close_gaps(is_kept)
            active, running, scores, rows, tokens = (x[kept] for x in (active, running, scores, rows, tokens))
            decoder.select(torch.from_numpy(kept).to(logits.device))
        if step > 0:
            decoder.reorder(torch.from_numpy(rows).to(logits.device))
        logits = decoder.decode_step(torch.from_numpy(tokens.reshape(-1)).to(logits.device))
    return [search.best() for search in searches]


class _Search:
    """Ended texts of one prompt, at most as many as beams."""

    def __init__(self, config: BeamConfig, limit: int) -> None:
        self._config, self._limit = config, limit
        self._found: list[Hypothesis] = []

    def add(self, found: Hypothesis) -> None:
        self._found = sorted([*self._found, found], key=lambda x: -x.score)[: self._config.num_beams]

    def is_done(self, best_running: float, length: int) -> bool:
        """Return whether the search ends, as the rule of `generate` says or as nothing better can come.

        Args:
            best_running: Log probability of the best running beam.
            length: Its number of new tokens, forced ones included.
        """
        config, found = self._config, self._found
        # Log probabilities only fall, so that this is the best score of any longer text.
        longest = self._limit if config.length_penalty > 0 else length
        attainable = best_running / longest**config.length_penalty
        number = config.num_return_sequences
        if len(found) >= number and attainable <= found[number - 1].score:
            return True
        if len(found) < config.num_beams:
            return False
        if config.early_stopping == "never":
            return attainable <= found[-1].score
        return config.stops_early or best_running / length**config.length_penalty <= found[-1].score

    def best(self) -> list[Hypothesis]:
        return self._found[: self._config.num_return_sequences]


def top_scores(scores: Float[Tensor, "A B V"], number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best scores of each text, the best first, with their beams and tokens, (A, number) each.

    The best are in the blocks with the largest maxima, of which there are as many at most: finding these takes a
    tenth of the time of `topk` over all scores.
    """
    vocab_size, flat = scores.shape[2], scores.flatten(1)
    size = flat.shape[1]
    if size < 2 * number * _BLOCK_SIZE:
        best, index = flat.topk(number)
    else:
        blocks = flat[:, : size - size % _BLOCK_SIZE].view(len(flat), -1, _BLOCK_SIZE).amax(-1).topk(number).indices
        candidates = (blocks[..., None] * _BLOCK_SIZE + torch.arange(_BLOCK_SIZE, device=flat.device)).flatten(1)
        rest = torch.arange(size - size % _BLOCK_SIZE, size, device=flat.device).expand(len(flat), -1)
        candidates = torch.cat([candidates, rest], 1)
        best, where = flat.gather(1, candidates).topk(number)
        index = candidates.gather(1, where)
    found = index.cpu().numpy()
    return best.cpu().numpy(), found // vocab_size, found % vocab_size


def check_scores(scores: Float[np.ndarray, "..."]) -> None:
    """Raise `CheckpointError` if a log probability is not a number, or infinite."""
    if not (scores < np.inf).all():
        problem = "The model's scores are not finite: its weights are damaged, or overflow in this precision."
        raise CheckpointError(problem, damaged=True)


def _close_gaps(is_kept: Bool[np.ndarray, "A"]) -> Int[np.ndarray, "Q"]:
    """Return the slots that are kept, the last of them in place of those that are not: few move."""
    number = int(is_kept.sum())
    slots = np.arange(number)
    slots[~is_kept[:number]] = number + np.flatnonzero(is_kept[number:])
    return slots
