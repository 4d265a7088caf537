"""Decoding: the next tokens of some texts, chosen one after the other with a cache of keys and values.

Source: temperature and top-k: Fan et al. 2018, section 5.1; top-p: Holtzman et al. 2020, section 3.1; min-p: Nguyen et al. 2024, section 3;
repetition penalty: Keskar et al. 2019, section 4.1; beam search with a length penalty: Wu et al. 2016, section 7.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stemformer.config import check_seed
from stemformer.data.examples.sampling import example_generator
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model

_COLDEST = 1e-6
"""Below it, scores that are divided would overflow."""


@dataclass(frozen=True)
class DecodingConfig:
    """How the next tokens are chosen.

    Attributes:
        max_new_tokens: At most so many for each text.
        temperature: Scores are divided by it; 0 always takes the likeliest token.
        top_k: Only the so many likeliest tokens can be drawn; 0 for all.
        top_p: Only the fewest likeliest tokens that have this share together, in (0, 1].
        min_p: Only tokens at least so likely as this share of the likeliest one, in [0, 1).
        repetition_penalty: Scores of tokens that were there, also where the window has passed on, are divided by it (multiplied if
            negative); 1 changes nothing.
        num_beams: With more than one, the likeliest whole text among so many that are followed; nothing is drawn.
        length_penalty: A beam's log-probability is divided by its length to this power.
        overflow: What happens where a text reaches the model's last position: an `error` beforehand, or the window `slides`: its later
            half is read again as if it were the beginning.
        seed: Of what is drawn; each text has a stream of its own, so what becomes of it does not depend on the others.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    overflow: Literal["error", "slide"] = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "num_beams", "seed"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: expected a whole number")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"):
            if not isinstance(getattr(self, name), int | float):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: expected a number")
        check_seed(self.seed)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}: expected at least 1")
        if self.temperature != 0 and not _COLDEST <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}: expected 0 (the likeliest) or a number from {_COLDEST} on"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}: expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: expected a share above 0, at most 1")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"min_p is {self.min_p}: expected a share from 0 up to, but not including, 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}: expected a positive number")
        if self.num_beams < 1:
            raise ConfigError(f"num_beams is {self.num_beams}: expected at least 1")
        if self.num_beams > 1 and (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0):
            raise ConfigError("num_beams draws nothing: leave top_k, top_p and min_p out")
        if self.num_beams > 1 and (self.temperature not in (0, 1) or self.repetition_penalty != 1):
            raise ConfigError("num_beams takes the model's own scores: leave temperature and repetition_penalty out")
        if not -math.inf < self.length_penalty < math.inf or (self.num_beams == 1 and self.length_penalty != 1):
            raise ConfigError(
                f"length_penalty is {self.length_penalty}: it is of beams alone, a finite number: give num_beams of 2 or more too"
            )
        if self.num_beams > 1 and self.overflow == "slide":
            raise ConfigError(
                "beams do not go on where the model has no further position: leave the sliding window (--slide) out"
            )


@dataclass
class Decoded:
    """What became of a text.

    Attributes:
        ids: New tokens, without the one that ended it.
        log_probability: Of all of them, and of the end where it was chosen, by the model's own scores; in nats.
        ended: Why there are no more: `eos`, `stop` (the caller's), or `length`.
    """

    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    ended: Literal["eos", "stop", "length"] = "length"


def filtered(
    scores: Float[Tensor, "S V"], config: DecodingConfig, seen: Bool[Tensor, "S V"] | None = None
) -> Float[Tensor, "S V"]:
    """Returns scores of which the softmax is drawn from: -inf for what is ruled out.

    Args:
        scores: The model's.
        config: Penalty, temperature (not 0), and the three cuts, in this order.
        seen: Tokens that were in each text; needed for a penalty.

    Example:
        >>> import torch
        >>> filtered(torch.tensor([[2.0, 1.0, 0.0]]), DecodingConfig(top_k=2, temperature=0.5))
        tensor([[4., 2., -inf]])
    """
    scores = scores.float()
    if config.repetition_penalty != 1 and seen is not None:
        penalised = torch.where(scores > 0, scores / config.repetition_penalty, scores * config.repetition_penalty)
        scores = torch.where(seen, penalised, scores)
    if config.temperature not in (0, 1):
        scores = scores / config.temperature
    if 0 < config.top_k < scores.shape[1]:
        scores = scores.masked_fill(scores < scores.topk(config.top_k).values[:, -1:], -torch.inf)
    if config.top_p < 1:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < _least_of_nucleus(probabilities, config.top_p), -torch.inf)
    if config.min_p > 0:
        scores = scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(config.min_p), -torch.inf)
    return scores


@torch.inference_mode()
def decode(
    model: Model | GptDecoder,
    prompts: Sequence[Int[Tensor, "_"]],
    config: DecodingConfig,
    *,
    on_token: Callable[[int, int], bool] | None = None,
    first: int = 0,
) -> list[Decoded]:
    """Returns the continuation of each prompt, drawn or the likeliest token by token.

    Prompts go through the model together, whatever their lengths; a text that has ended leaves the batch.

    Args:
        model: A GPT with its head; or one that is laid out already, which spares who decodes several times doing it anew.
        prompts: Ids of each; none is empty.
        config: How the next token is chosen.
        on_token: Told the number of a text and its new token; True ends that text.
        first: Number of the first text, where these are a part of all: what is drawn for each depends on its number.

    Raises:
        ConfigError: The model writes no text.
        DataError: An empty prompt, or one that with the new tokens is longer than the model has positions where the window does not slide.
    """
    if not prompts:
        return []
    positions = model.config.max_position_embeddings
    check_lengths(prompts, config, positions)
    reader = _reader(model, rows=len(prompts), steps=config.max_new_tokens)
    told = [Decoded() for _ in prompts]
    streams = [example_generator(config.seed, 0, number) for number in range(first, first + len(prompts))]
    windows = [_within(prompt.tolist(), positions) for prompt in prompts]
    active = list(range(len(prompts)))
    room = min(positions, max(map(len, windows)) + config.max_new_tokens)
    scores = reader.begin(windows, room)
    seen = None if config.repetition_penalty == 1 else _tokens_in(prompts, like=scores)
    for step in range(config.max_new_tokens):
        chosen = _choose(scores, config, [streams[i] for i in active], seen)
        gained = _taken(scores.log_softmax(-1), chosen)
        stay = []
        for row, (i, token, gain) in enumerate(zip(active, chosen.tolist(), gained, strict=True)):
            _check_finite(gain)
            told[i].log_probability += gain
            if token == reader.config.eos_token_id:
                told[i].ended = "eos"
                continue
            told[i].ids.append(token)
            windows[i].append(token)
            if on_token is not None and on_token(first + i, token):
                told[i].ended = "stop"
                continue
            stay.append(row)
        active = [active[row] for row in stay]
        if not active or step == config.max_new_tokens - 1:
            break
        if len(stay) < len(chosen):
            rows = torch.tensor(stay, device=chosen.device)
            reader.cache.select(rows)
            chosen, seen = chosen[rows], None if seen is None else seen[rows]
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        if reader.cache.longest < room:
            scores = reader.step(chosen)
        else:  # the window slides: of texts that fill it, the later half becomes the beginning
            for i in active:
                windows[i] = _within(windows[i], positions)
            scores = reader.begin([windows[i] for i in active], room)
    return told


@torch.inference_mode()
def beam_search(
    model: Model | GptDecoder, prompts: Sequence[Int[Tensor, "_"]], config: DecodingConfig
) -> list[Decoded]:
    """Returns the likeliest continuation of each prompt that a search along `num_beams` texts finds.

    Args:
        model: A GPT with its head; or one that is laid out already, which spares who decodes several times doing it anew.
        prompts: Ids of each; none is empty.
        config: Beams, length penalty and number of tokens.

    Raises:
        ConfigError: As for `decode`, like the next.
        DataError: An empty or overlong prompt.
    """
    check_lengths(prompts, config, model.config.max_position_embeddings)
    reader = _reader(model, rows=config.num_beams, steps=config.max_new_tokens * len(prompts))
    return [_search(reader, prompt.tolist(), config) for prompt in prompts]


def _search(reader: GptDecoder, prompt: list[int], config: DecodingConfig) -> Decoded:
    beams = config.num_beams
    logits = reader.begin([prompt], len(prompt) + config.max_new_tokens)
    sums = torch.zeros(1, device=logits.device)
    texts: list[list[int]] = [[]]
    finished: list[tuple[float, Decoded]] = []

    def finish(text: list[int], total: float, ended: Literal["eos", "length"]) -> None:
        length = len(text) + (ended == "eos")
        finished.append((total / max(1, length) ** config.length_penalty, Decoded(text, total, ended)))

    for step in range(config.max_new_tokens):
        scores = logits.log_softmax(-1) + sums[:, None]  # (beams, V)
        best, places = scores.flatten().topk(min(2 * beams, scores.numel()))
        rows, tokens = places // scores.shape[1], places % scores.shape[1]
        kept: list[tuple[float, int, int]] = []
        for rank, (total, row, token) in enumerate(zip(best.tolist(), rows.tolist(), tokens.tolist(), strict=True)):
            _check_finite(total)
            if token == reader.config.eos_token_id:
                if rank < beams:
                    finish(texts[row], total, "eos")
            elif len(kept) < beams:
                kept.append((total, row, token))
        texts = [[*texts[row], token] for _, row, token in kept]
        worst = min((score for score, _ in sorted(finished, key=lambda x: -x[0])[:beams]), default=-math.inf)
        hope = kept[0][0] / (step + 1) ** config.length_penalty
        if step == config.max_new_tokens - 1 or (len(finished) >= beams and hope <= worst):
            for total, text in zip([total for total, *_ in kept], texts, strict=True):
                finish(text, total, "length")
            break
        sums = sums.new_tensor([total for total, *_ in kept])
        reader.cache.select(rows.new_tensor([row for _, row, _ in kept]))
        logits = reader.step(tokens.new_tensor([token for *_, token in kept]))
    return max(finished, key=lambda item: item[0])[1]


# ------------------------------------------------------------------------------------------------------------------------ small parts


def _reader(model: Model | GptDecoder, *, rows: int, steps: int) -> GptDecoder:
    return model if isinstance(model, GptDecoder) else GptDecoder(model, rows=rows, steps=steps)


def check_lengths(prompts: Sequence[Tensor], config: DecodingConfig, positions: int) -> None:
    """Refuses prompts that are empty, or that have no room for the new tokens.

    Raises:
        DataError: Which one, and what to do.
    """
    for number, prompt in enumerate(prompts, start=1):
        which = f"prompt {number} of {len(prompts)}"
        if len(prompt) == 0:
            raise DataError(f"{which} is empty: give at least one token")
        if len(prompt) >= positions and config.overflow == "error":
            raise DataError(
                f"{which} has {len(prompt)} tokens, the model {positions} positions: shorten it, or let the window slide (--slide)"
            )
        if config.overflow == "error" and len(prompt) + config.max_new_tokens > positions:
            raise DataError(
                f"{which} has {len(prompt)} tokens; with {config.max_new_tokens} new ones that is more than the model's "
                f"{positions} positions: ask for at most {positions - len(prompt)} (--max-new-tokens), or let the window slide (--slide)"
            )


def _check_finite(log_probability: float) -> None:
    if not math.isfinite(log_probability):
        raise CheckpointError(
            "the model's scores are not finite: its weights are damaged, or overflow in this precision", damaged=True
        )


def _within(text: list[int], positions: int) -> list[int]:
    """Returns a text that the model has positions for: itself, or its last tokens, half as many as there are positions."""
    return text if len(text) <= positions else text[-(positions // 2) :]


def _tokens_in(texts: Sequence[Int[Tensor, "_"]], *, like: Float[Tensor, "S V"]) -> Bool[Tensor, "S V"]:
    """Returns which tokens are in each text."""
    seen = torch.zeros(like.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        seen[row, text.tolist()] = True
    return seen.to(like.device)


def _choose(
    logits: Float[Tensor, "S V"],
    config: DecodingConfig,
    streams: Sequence[np.random.Generator],
    seen: Bool[Tensor, "S V"] | None,
) -> Int[Tensor, "S"]:
    """Returns the next token of each text."""
    if config.temperature == 0 and seen is None:  # no cut rules the likeliest out
        return _likeliest(logits)
    scores = filtered(logits, config, seen)
    if config.temperature == 0:
        return _likeliest(scores)
    up_to = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    drawn = torch.tensor([stream.random() for stream in streams], dtype=torch.float64, device=logits.device)
    chosen: Tensor = torch.searchsorted(up_to, drawn[:, None] * up_to[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[1] - 1)


def _least_of_nucleus(probabilities: Float[Tensor, "S V"], share: float) -> Float[Tensor, "S 1"]:
    """Returns the lowest probability among the fewest tokens of each row that have this share together."""
    if probabilities.device.type != "cpu":
        ordered = probabilities.sort(descending=True).values
        among = (ordered.cumsum(-1) - ordered < share).sum(-1, keepdim=True)
        return ordered.gather(1, among - 1)
    # All tokens below the floor together have less than what is left over, so they need no sorting.
    floor = (1 - share) / probabilities.shape[1]
    least = []
    for row in probabilities.numpy():
        few = np.sort(row[~(row < floor)])[::-1]  # what is no number stays, and is told by who takes the token
        least.append(few[(few.cumsum(dtype=np.float64) - few < share).sum() - 1])
    return torch.tensor(np.array(least))[:, None]


def _likeliest(scores: Float[Tensor, "S V"]) -> Int[Tensor, "S"]:
    """Returns the first highest of each row; on the CPU torch's own argmax takes ten times as long as NumPy's."""
    return torch.from_numpy(scores.numpy().argmax(-1)) if scores.device.type == "cpu" else scores.argmax(-1)


def _taken(table: Float[Tensor, "S V"], columns: Int[Tensor, "S"]) -> list[float]:
    """Returns the entry of each row in its column."""
    if table.device.type == "cpu":  # in a quarter of the time that torch takes for a few
        return [float(row[column]) for row, column in zip(table.numpy(), columns.tolist(), strict=True)]
    return table.gather(1, columns[:, None])[:, 0].tolist()
