"""Beam search over many texts at once.

Source: Wu et al. 2016, section 7 (length penalty); the rules for stopping are those of Hugging Face's `generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.config import check_at_least, check_fields
from stemformer.errors import ConfigError

# Score of what must not be chosen.
_NEVER = -1e9


@runtime_checkable
class TextDecoder(Protocol):
    """What beam search requires of `GptDecoder` and `BartTextDecoder`."""

    config: Any

    def prefill(self, prompts: Sequence[Sequence[int]], max_length: int) -> Float[Tensor, "S V"]:
        """Start a new batch and return the logits of each first token."""

    def decode_step(self, tokens: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to each text and return the logits of the next."""

    def select(self, rows: Int[Tensor, "Q"]) -> None:
        """Keep these texts in this order."""


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

    def __post_init__(self) -> None:
        check_at_least(1, self, "", "num_beams", "max_new_tokens")
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
    decoder: TextDecoder, prompts: Sequence[Sequence[int]], config: BeamConfig, *, prompt_length: int = 0
) -> list[list[Hypothesis]]:
    """Return the best continuations of each prompt, or texts of each source, the best first.

    The result of a prompt does not depend on the others.

    Args:
        prompt_length: Tokens that the cache holds before the first new one.
    """
    num_beams, eos = config.num_beams, decoder.config.eos_token_id
    logits = decoder.prefill(prompts, prompt_length + config.max_new_tokens)  # (S, V)
    vocab_size = logits.shape[1]
    if 2 * num_beams > vocab_size:
        raise ConfigError(f"num_beams is {num_beams}: expected at most half of the {vocab_size} ids.")
    device = logits.device
    searches = [_Search() for _ in prompts]
    # Numbers of the texts in progress, the running beams of each, (A, B, length), and their scores (A, B).
    active = torch.arange(len(prompts), device=device)
    running = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)
    scores = torch.zeros(len(prompts), 1, device=device)
    for step in range(config.max_new_tokens):
        # Rank all extensions of all beams. Twice the beams suffice, as one for each beam may be the end.
        num_rows = scores.shape[1]
        totals = (logits.log_softmax(-1).view(len(active), num_rows, vocab_size) + scores[..., None]).flatten(1)
        best, index = totals.topk(2 * num_beams)  # (A, 2 B)
        rows, tokens = index // vocab_size, index % vocab_size
        is_end = tokens == eos
        is_last = step == config.max_new_tokens - 1

        # Keep the texts that ended among the best, or all at the maximum length.
        divisor = (step + 1) ** config.length_penalty
        ended = is_end | is_last
        ends: dict[int, list[Hypothesis]] = {}
        for slot, beam in ended[:, :num_beams].nonzero().tolist():
            row = int(rows[slot, beam])
            ids = running[slot, row].tolist()
            ids += [] if bool(is_end[slot, beam]) else [int(tokens[slot, beam])]
            found = Hypothesis(ids, float(best[slot, beam]) / divisor, bool(is_end[slot, beam]))
            ends.setdefault(int(active[slot]), []).append(found)
        for number, found_here in ends.items():
            searches[number].add(found_here, config)

        # The best beams that go on.
        going = best.masked_fill(ended, _NEVER)
        scores, order = going.topk(num_beams)
        rows, tokens = rows.gather(1, order), tokens.gather(1, order)
        history = running.gather(1, rows[..., None].expand(-1, -1, running.shape[2]))
        running = torch.cat([history, tokens[..., None]], 2)
        for slot, number in enumerate(active.tolist()):
            searches[number].update(float(scores[slot, 0]), step + 1, config)
        kept = torch.tensor([not searches[number].is_done for number in active.tolist()], device=device).nonzero()[:, 0]
        if is_last or not len(kept):
            break

        # The next logits of the texts that are not done.
        flat = (torch.arange(len(active), device=device)[:, None] * num_rows + rows)[kept].view(-1)
        active, running, scores, tokens = active[kept], running[kept], scores[kept], tokens[kept]
        decoder.select(flat)
        logits = decoder.decode_step(tokens.reshape(-1))
    return [search.best(config.num_return_sequences) for search in searches]


class _Search:
    """Ended texts of one prompt, at most as many as beams, and whether better ones may come."""

    def __init__(self) -> None:
        self._found: list[Hypothesis] = []
        self.is_done = False

    def add(self, found: list[Hypothesis], config: BeamConfig) -> None:
        """Add the texts that ended in one step."""
        if not self.is_done:
            self._found = sorted([*self._found, *found], key=lambda x: -x.score)[: config.num_beams]

    def update(self, best_running: float, length: int, config: BeamConfig) -> None:
        """Note whether the best running beam may still improve the ended texts."""
        if len(self._found) < config.num_beams:
            return
        if config.stops_early:
            self.is_done = True
            return
        longest = config.early_stopping == "never" and config.length_penalty > 0
        attainable = best_running / (config.max_new_tokens if longest else length) ** config.length_penalty
        self.is_done = self.is_done or attainable <= self._found[-1].score

    def best(self, number: int) -> list[Hypothesis]:
        return self._found[:number]
