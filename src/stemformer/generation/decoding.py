"""Decoding of token ids with a key-value cache: greedy, sampling and beam search.

Source: temperature and top-k: Fan et al. 2018, section 5.1; top-p: Holtzman et al. 2020, section 3.1;
min-p: Nguyen et al. 2024, section 3; repetition penalty: Keskar et al. 2019, section 4.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stemformer.config import check_at_least, check_fields, check_seed
from stemformer.data.examples.sampling import example_generator
from stemformer.errors import ConfigError, DataError
from stemformer.generation.beam_search import BeamConfig, check_scores, search_beams
from stemformer.generation.constraints import check_constraints, constrain, pad_left
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model

# Dividing logits by less than this would overflow.
_MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of text generation; `options.GenerateOptions` documents those of the same name."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    # For texts longer than the model's positions: refuse them, or continue with the window's second half.
    overflow: Literal["error", "slide"] = "error"
    # Each text has a random stream of its own and does not depend on the others.
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type in (int, float) and not isinstance(value, (int, item.type)):
                expected = "an integer" if item.type is int else "a number"
                raise ConfigError(f"{item.name} is {value!r}: expected {expected}")
        check_seed(self.seed)
        greedy = f"0 (greedy) or a number of at least {_MIN_TEMPERATURE}"
        check_at_least(1, self, "", "max_new_tokens", "num_beams")
        check_constraints(self)
        check_fields(self, "", greedy, lambda x: x == 0 or _MIN_TEMPERATURE <= x < math.inf, "temperature")
        check_fields(self, "", "0 (disabled) or more", lambda x: x >= 0, "top_k")
        check_fields(self, "", "a probability in (0, 1]", lambda x: 0 < x <= 1, "top_p")
        check_fields(self, "", "a fraction in [0, 1)", lambda x: 0 <= x < 1, "min_p")
        check_fields(self, "", "a positive number", lambda x: 0 < x < math.inf, "repetition_penalty")
        penalty = "a finite number, with num_beams of at least 2"
        check_fields(self, "", penalty, lambda x: x == 1 or (self.num_beams > 1 and math.isfinite(x)), "length_penalty")
        changes_scores = self.temperature not in (0, 1) or self.repetition_penalty != 1
        conflicts = {
            "does not sample: remove top_k, top_p and min_p": (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0),
            "uses the model's own scores: remove temperature and repetition_penalty": changes_scores,
            "does not support a sliding window: remove --sliding-window": self.overflow == "slide",
        }
        for problem, applies in conflicts.items():
            if self.num_beams > 1 and applies:
                raise ConfigError(f"Beam search {problem}, or num_beams.")


@dataclass
class Decoded:
    """Generated tokens of a text, without the end-of-text token."""

    ids: list[int] = field(default_factory=list)
    # Of all new tokens and the end-of-text token, under the model's unmodified distribution, in nats.
    log_probability: float = 0.0
    # `stop`: by `on_token`.
    ended: Literal["eos", "stop", "length"] = "length"


def filter_logits(
    logits: Float[Tensor, "S V"], config: DecodingConfig, seen: Bool[Tensor, "S V"] | None = None
) -> Float[Tensor, "S V"]:
    """Return the logits to sample from, -inf for excluded tokens; `seen` are the tokens of each text so far."""
    logits = logits.float()
    if config.repetition_penalty != 1 and seen is not None:
        penalized = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(seen, penalized, logits)
    if config.temperature not in (0, 1):
        logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(config.top_k).values[:, -1:], -torch.inf)
    if config.top_p < 1:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < _nucleus_minimum(probabilities, config.top_p), -torch.inf)
    if config.min_p > 0:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(config.min_p), -torch.inf)
    return logits


@torch.inference_mode()
def decode(
    model: Model | GptDecoder,
    prompts: Sequence[Int[Tensor, "_"]],
    config: DecodingConfig,
    *,
    on_token: Callable[[int, int], bool] | None = None,
    first: int = 0,
) -> list[Decoded]:
    """Generate a continuation of each prompt by sampling, or greedily with temperature 0.

    Args:
        model: GPT with its head; or its `GptDecoder`, to prepare the weights once for several calls.
        on_token: Called with the number of a text and its new token; returns whether to stop the text.
        first: Number of the first text in a larger list, which decides its random stream.
    """
    if not prompts:
        return []
    longest = model.max_length
    check_lengths(prompts, config, longest)
    decoder = _to_decoder(model, rows=len(prompts), steps=config.max_new_tokens)
    outputs = [Decoded() for _ in prompts]
    generators = [example_generator(config.seed, 0, number) for number in range(first, first + len(prompts))]
    windows = [_slide(prompt.tolist(), longest) for prompt in prompts]
    active = list(range(len(prompts)))
    max_length = min(longest, max(map(len, windows)) + config.max_new_tokens)
    logits = decoder.prefill(windows, max_length)  # (S, V)
    seen = None
    if config.repetition_penalty != 1:
        # Tokens of each text so far, including those that a sliding window drops.
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            seen[row, prompt.tolist()] = True
        seen = seen.to(logits.device)
    for step in range(config.max_new_tokens):
        # Choose a token for each active text, and drop the texts that end.
        allowed = logits
        if step < config.min_new_tokens or config.no_repeat_ngram_size:
            texts = [[*prompts[i].tolist(), *outputs[i].ids] for i in active]
            allowed = _allowed(logits, texts, decoder.config.eos_token_id, config, step)
        chosen = _choose(allowed, config, [generators[i] for i in active], seen)  # (S,)
        log_probabilities = _gather(logits.log_softmax(-1), chosen)
        check_scores(np.array(log_probabilities))
        for i, token, value in zip(active, chosen.tolist(), log_probabilities, strict=True):
            outputs[i].log_probability += value
            if token == decoder.config.eos_token_id:
                outputs[i].ended = "eos"
                continue
            outputs[i].ids.append(token)
            windows[i].append(token)
            if on_token is not None and on_token(first + i, token):
                outputs[i].ended = "stop"
        kept_rows = [row for row, i in enumerate(active) if outputs[i].ended == "length"]
        active = [active[row] for row in kept_rows]
        if not active or step == config.max_new_tokens - 1:
            break
        if len(kept_rows) < len(chosen):
            rows = torch.tensor(kept_rows, device=chosen.device)
            decoder.cache.select(rows)
            chosen, seen = chosen[rows], None if seen is None else seen[rows]
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        # Compute the next logits; if the cache is full, slide the windows first.
        if decoder.cache.length < max_length:
            logits = decoder.decode_step(chosen)
        else:
            for i in active:
                windows[i] = _slide(windows[i], longest)
            logits = decoder.prefill([windows[i] for i in active], max_length)
    return outputs


def beam_search(
    model: Model | GptDecoder, prompts: Sequence[Int[Tensor, "_"]], config: DecodingConfig
) -> list[Decoded]:
    """Return the most probable continuation of each prompt that beam search finds."""
    if not prompts:
        return []
    check_lengths(prompts, config, model.max_length)
    decoder = _to_decoder(model, rows=len(prompts) * config.num_beams, steps=config.max_new_tokens)
    shared = {name: getattr(config, name) for name in BeamConfig.__dataclass_fields__ if hasattr(config, name)}
    outputs = []
    for best, *_ in search_beams(decoder, [prompt.tolist() for prompt in prompts], BeamConfig(**shared)):
        length = len(best.ids) + best.is_complete
        log_probability = best.score * length**config.length_penalty
        outputs.append(Decoded(best.ids, log_probability, "eos" if best.is_complete else "length"))
    return outputs


def check_lengths(prompts: Sequence[Tensor], config: DecodingConfig, longest: int) -> None:
    """Check that prompts are not empty, and that new tokens fit behind them."""
    for number, prompt in enumerate(prompts, start=1):
        name = f"prompt {number} of {len(prompts)}"
        if len(prompt) == 0:
            raise DataError(f"{name} is empty: expected at least one token")
        room = longest - len(prompt)
        if config.overflow == "error" and config.max_new_tokens > room:
            advice = f"generate at most {room} (--max-new-tokens)" if room > 0 else "shorten it"
            raise DataError(
                f"{name} has {len(prompt)} tokens; with {config.max_new_tokens} new ones that is more than the model's "
                f"maximum length of {longest}: {advice}, or use a sliding window (--sliding-window)"
            )


def _to_decoder(model: Model | GptDecoder, *, rows: int, steps: int) -> GptDecoder:
    return model if isinstance(model, GptDecoder) else GptDecoder(model, rows=rows, steps=steps)


def _allowed(
    logits: Float[Tensor, "S V"], texts: Sequence[Sequence[int]], eos: int, config: DecodingConfig, step: int
) -> Float[Tensor, "S V"]:
    """Return logits with -inf for the tokens that the constraints exclude."""
    logits = logits.clone()
    past = pad_left(texts) if config.no_repeat_ngram_size else None
    constrain(logits, past, config, step=step, eos=eos)
    return logits


def _slide(text: list[int], longest: int) -> list[int]:
    """Return a text that fits, or else its last tokens, half of `longest`."""
    return text if len(text) <= longest else text[-(longest // 2) :]


def _choose(
    logits: Tensor, config: DecodingConfig, generators: Sequence[np.random.Generator], seen: Tensor | None
) -> Int[Tensor, "S"]:
    # No filter excludes the most probable token.
    if config.temperature > 0 or seen is not None:
        logits = filter_logits(logits, config, seen)
    if config.temperature == 0:
        # On the CPU, NumPy's argmax is ten times as fast as torch's.
        return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)
    # Inverse transform sampling.
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    uniform = torch.tensor([g.random() for g in generators], dtype=torch.float64, device=logits.device)
    chosen: Tensor = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[1] - 1)


def _nucleus_minimum(probabilities: Float[Tensor, "S V"], top_p: float) -> Float[Tensor, "S 1"]:
    """Return the lowest probability in the nucleus of each row."""
    if probabilities.device.type != "cpu":
        ordered = probabilities.sort(descending=True).values
        size = (ordered.cumsum(-1) - ordered < top_p).sum(-1, keepdim=True)
        return ordered.gather(1, size - 1)
    # Tokens below the floor have less than 1 - top_p together: only the others need sorting.
    floor = (1 - top_p) / probabilities.shape[1]
    lowest = []
    for row in probabilities.numpy():
        # NaN is kept here; `check_scores` reports it.
        candidates = np.sort(row[~(row < floor)])[::-1]
        lowest.append(candidates[(candidates.cumsum(dtype=np.float64) - candidates < top_p).sum() - 1])
    return torch.tensor(np.array(lowest))[:, None]


def _gather(table: Float[Tensor, "S V"], columns: Int[Tensor, "S"]) -> list[float]:
    """Return one entry per row; on the CPU by indexing, four times as fast as torch for few rows."""
    if table.device.type == "cpu":
        return [float(row[column]) for row, column in zip(table.numpy(), columns.tolist(), strict=True)]
    return table.gather(1, columns[:, None])[:, 0].tolist()
