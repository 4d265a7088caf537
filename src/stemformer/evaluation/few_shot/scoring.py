"""How likely a model finds answers: the log-probability of each, after what stands before it or in the blanks of a text.

Only tokens of answers are scored, never those of the prompt, and all answers to a question share the reading of its prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Example, collate
from stemformer.errors import CheckpointError
from stemformer.models.gpt import Gpt
from stemformer.models.model import Model

_TOKENS_AT_ONCE = 4096
"""Tokens of prompts and answers that go through a model together."""

_SCORES_AT_ONCE = 2**23
"""How many scores of words are held at once: 32 MiB in float32."""

_WORTH_SHARING = 16
"""Tokens that prompts must begin with alike for these to be read once for all."""


@dataclass(frozen=True)
class ScoringRequest:
    """A prompt and what may follow.

    Attributes:
        prompt: (n,) ids, at least one.
        answers: (m,) ids of each answer, at least one.
    """

    prompt: Int[np.ndarray, "n"]
    answers: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class MaskedRequest:
    """A text with an answer in its blanks.

    Attributes:
        input_ids: (n,) ids, `[MASK]` where the answer stands.
        places: (m,) of the blanks.
        answer: (m,) ids that stand there.
    """

    input_ids: Int[np.ndarray, "n"]
    places: Int[np.ndarray, "m"]
    answer: Int[np.ndarray, "m"]


@dataclass(frozen=True)
class AnswerScore:
    """How likely an answer is.

    Attributes:
        log_probability: Of all its tokens, in nats.
        num_tokens: How many it has.
        is_greedy: Each of them is the likeliest one at its place.
    """

    log_probability: float
    num_tokens: int
    is_greedy: bool


@torch.inference_mode()
def score_answers(model: Model, questions: Sequence[ScoringRequest]) -> list[list[AnswerScore]]:
    """Returns, for each question, how likely each of its answers is after its prompt.

    Args:
        model: A GPT with its head, in evaluation mode; under the caller's autocast.
        questions: None is longer than the model's positions, the last token of an answer not counted.
    """
    body = model.body
    assert isinstance(body, Gpt) and "causal_lm" in model.heads, "a GPT with its head"
    assert all(len(q.prompt) and all(map(len, q.answers)) for q in questions), "a prompt and an answer have a token"
    sizes = [len(q.prompt) + sum(len(answer) - 1 for answer in q.answers) for q in questions]
    told: list[list[AnswerScore]] = []
    for part in _parts(sizes):
        told += _score_part(model, body, [questions[i] for i in part])
    return told


@torch.inference_mode()
def score_blanks(model: Model, texts: Sequence[MaskedRequest]) -> list[AnswerScore]:
    """Returns how likely the answer of each text is to a masked model: the sum over its blanks, all of them hidden at once.

    Texts that look alike, as those of answers of one length do, go through the model once.

    Args:
        model: With a masked-LM head, in evaluation mode; under the caller's autocast.
        texts: None is longer than the model's positions.
    """
    device = next(model.parameters()).device
    told: list[AnswerScore] = []
    for part in _parts([len(text.input_ids) for text in texts]):
        seen: dict[tuple[bytes, bytes], int] = {}
        numbers = [seen.setdefault((texts[i].input_ids.tobytes(), texts[i].places.tobytes()), len(seen)) for i in part]
        first = {number: texts[i] for i, number in zip(reversed(part), reversed(numbers), strict=True)}
        examples = [
            Example(t.input_ids, np.array([len(t.input_ids)]), t.places, t.answer)
            for _, t in sorted(first.items(), key=lambda item: item[0])
        ]
        batch = collate(examples, range(len(examples))).to(device)
        states = model.body(
            batch.input_ids,
            batch.position_ids,
            batch.token_type_ids,
            batch.cu_seqlens,
            batch.max_seqlen,
            rows=batch.label_positions,
        )
        begins = np.cumsum([0, *(len(e.label_positions) for e in examples)])
        rows = [begins[number] + np.arange(len(texts[i].answer)) for i, number in zip(part, numbers, strict=True)]
        told += _score_tokens(model, "masked_lm", states, rows, [texts[i].answer for i in part])
    return told


# ------------------------------------------------------------------------------------------------------------------------ small parts


def _parts(sizes: Sequence[int]) -> Iterator[range]:
    """Yields runs of numbers whose sizes together are about what goes through a model at once."""
    begin, total = 0, 0
    for number, size in enumerate(sizes):
        if number > begin and total + size > _TOKENS_AT_ONCE:
            yield range(begin, number)
            begin, total = number, 0
        total += size
    if begin < len(sizes):
        yield range(begin, len(sizes))


def _score_part(model: Model, body: Gpt, questions: Sequence[ScoringRequest]) -> list[list[AnswerScore]]:
    prompts = [q.prompt for q in questions]
    shared, base, parents = _shared_beginning(prompts), None, None
    if len(prompts) > 1 and shared >= _WORTH_SHARING:
        _, base = body.read(*_flat([prompts[0][:shared]], body))
        prompts = [prompt[shared:] for prompt in prompts]
        parents = torch.zeros(len(prompts), dtype=torch.int64, device=base.cu_seqlens.device)
    ids, bounds = _flat(prompts, body)
    states, reading = body.read(ids, bounds, after=base, parents=parents)
    states = states.index_select(0, bounds[1:].long() - 1)  # (S, D): what follows each prompt
    longer = [(number, answer) for number, q in enumerate(questions) for answer in q.answers if len(answer) > 1]
    begins = iter(len(prompts) + np.cumsum([0, *(len(answer) - 1 for _, answer in longer)]))
    if longer:
        ids, bounds = _flat([answer[:-1] for _, answer in longer], body)
        numbers = torch.tensor([number for number, _ in longer], device=ids.device)
        more, _ = body.read(ids, bounds, after=reading, parents=numbers)
        states = torch.cat([states, more])
    rows = [
        np.append(number, next(begins) + np.arange(len(answer) - 1)) if len(answer) > 1 else np.array([number])
        for number, q in enumerate(questions)
        for answer in q.answers
    ]
    answers = list(chain.from_iterable(q.answers for q in questions))
    scored = iter(_score_tokens(model, "causal_lm", states, rows, answers))
    return [[next(scored) for _ in q.answers] for q in questions]


def _score_tokens(
    model: Model, head: str, states: Float[Tensor, "R D"], rows: Sequence[np.ndarray], answers: Sequence[np.ndarray]
) -> list[AnswerScore]:
    """Returns a score for each answer, whose tokens are asked for at these rows of states."""
    logits_of = model.causal_lm_logits if head == "causal_lm" else model.masked_lm_logits
    at = torch.from_numpy(np.concatenate(rows)).to(states.device)
    tokens = torch.from_numpy(np.concatenate(answers).astype(np.int64)).to(states.device)
    gained = torch.zeros(len(at), device=states.device)
    is_best = torch.zeros(len(at), dtype=torch.bool, device=states.device)
    size = max(1, _SCORES_AT_ONCE // model.config.vocab_size)
    for begin in range(0, len(states), size):
        logits = logits_of(states[begin : begin + size]).float()
        mine = ((at >= begin) & (at < begin + size)).nonzero()[:, 0]
        here = at[mine] - begin
        gained[mine] = logits[here, tokens[mine]] - logits.logsumexp(-1)[here]
        is_best[mine] = logits.argmax(-1)[here] == tokens[mine]
    sums, best = gained.double().cpu().numpy(), is_best.cpu().numpy()
    if not np.isfinite(sums).all():
        raise CheckpointError(
            "the model's scores are not finite: its weights are damaged, or overflow in this precision", damaged=True
        )
    bounds = np.cumsum([0, *map(len, answers)]).tolist()
    return [AnswerScore(float(sums[a:b].sum()), b - a, bool(best[a:b].all())) for a, b in pairwise(bounds)]


def _flat(texts: Sequence[np.ndarray], body: Gpt) -> tuple[Int[Tensor, "N"], Int[Tensor, "S1"]]:
    device = body.embeddings.word.weight.device
    bounds = torch.from_numpy(np.cumsum([0, *map(len, texts)]).astype(np.int32))
    return torch.from_numpy(np.concatenate(texts).astype(np.int64)).to(device), bounds.to(device)


def _shared_beginning(prompts: Sequence[np.ndarray]) -> int:
    """Returns how many tokens all prompts begin with alike; each keeps one of its own."""
    shortest = min(map(len, prompts)) - 1
    block = np.stack([prompt[:shortest] for prompt in prompts])
    is_alike = (block == block[0]).all(0)
    return int(is_alike.argmin()) if not is_alike.all() else shortest
