"""Asking a model in context: prompts that fit into it, its answers by likelihood or by what it writes, and how many are right.

Source: Brown et al. 2020, section 2.4; calibration: Zhao et al. 2021, section 4; blanks of masked models: Schick and Schütze 2021.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.dataset import PromptData
from stemformer.evaluation.few_shot.scoring import (
    AnswerScore,
    MaskedRequest,
    ScoringRequest,
    score_answers,
    score_blanks,
)
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask
from stemformer.generation.decoding import DecodingConfig
from stemformer.generation.text import continue_ids
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model

_AT_ONCE = 64
"""Questions that are made ready, asked and reported together."""

_CONTENT_FREE = ("N/A", "[MASK]", "")


@dataclass(frozen=True)
class FewShotPrediction:
    """A model's answer to a question.

    Attributes:
        number: Of the question.
        gold: Number of the right answer.
        by_sum: Number of the answer with the largest log-probability, -1 for a tie; for `complete` and `generate` 0 if right, else -1.
        by_mean: The same by log-probability a character.
        calibrated: The same by how much likelier an answer is than without the question; None where that was not asked.
        log_probabilities: Of each answer; empty for `generate`.
        text: What was generated.
        num_dropped: Examples that did not fit into the model.
        is_cut: Even the question alone did not fit, and its beginning was cut off.
    """

    number: int
    gold: int
    by_sum: int
    by_mean: int
    calibrated: int | None = None
    log_probabilities: tuple[float, ...] = ()
    text: str = ""
    num_dropped: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class _Shown:
    """A question with its examples."""

    number: int
    item: FewShotExample
    examples: Sequence[FewShotExample]


@dataclass(frozen=True)
class _Fitted:
    """The ids of a prompt that fits into a model."""

    prompt: np.ndarray
    answers: tuple[np.ndarray, ...]
    behind: np.ndarray
    num_dropped: int
    is_cut: bool


def evaluate_few_shot(
    model: Model,
    tokenizer: Tokenizer,
    task: PromptTask,
    data: PromptData,
    numbers: Sequence[int],
    *,
    num_shots: int,
    seed: int,
    calibrate: bool = False,
    on_questions: Callable[[int], None] | None = None,
) -> list[FewShotPrediction]:
    """Returns a model's answers to some questions of a task.

    Args:
        model: A GPT or a masked model, with its head, in evaluation mode; under the caller's autocast.
        tokenizer: Of the model.
        task: How questions are put.
        data: Questions and examples.
        numbers: Of the questions.
        num_shots: Examples in each prompt.
        seed: Of their draw.
        calibrate: Compare answers with how likely they are where the question holds nothing, too.
        on_questions: Told how many were answered.

    Raises:
        ConfigError: A masked model asked to generate.
        DataError: Fewer examples than asked for.
    """
    calibrate = calibrate and task.how == "choose"
    if "causal_lm" not in model.heads and task.how != "choose":
        raise ConfigError(
            f"task {task.name} asks for a text, which a masked model does not write: give a GPT, or a task with choices"
        )
    reader = None
    if task.how == "generate":  # laid out once for all questions
        rows = min(_AT_ONCE, len(numbers))
        reader = GptDecoder(model, rows=rows, steps=task.max_new_tokens * math.ceil(len(numbers) / _AT_ONCE))
    told: list[FewShotPrediction] = []
    for begin in range(0, len(numbers), _AT_ONCE):
        part = numbers[begin : begin + _AT_ONCE]
        shown = [_Shown(n, data.items[n], data.draw(n, num_shots, seed=seed)) for n in part]
        told += (
            _generate(reader, tokenizer, task, shown)
            if reader is not None
            else _choose(model, tokenizer, task, shown, calibrate)
        )
        if on_questions is not None:
            on_questions(len(part))
    return told


def aggregate(
    asked: Sequence[Sequence[FewShotPrediction]], task: PromptTask, items: Sequence[FewShotExample]
) -> dict[str, Any]:
    """Returns the figures of a task from the answers of one or more draws of examples.

    Args:
        asked: For each draw, the answers to the same questions.
        task: Says how answers are compared.
        items: All questions.

    Returns:
        `metric` and `figure`, what it says, from 0 to 1 (mean over draws); `low` and `high` (95 %, over questions), `spread` (standard
        deviation over draws); `accuracy`; where texts are compared by another metric, `chrf` and `bleu`; where there is a choice, `by_sum`,
        `by_mean` and `calibrated`, and where all questions share their answers, `same_answer`: the share of questions that got the most
        frequent one; `chance` and `majority` (None where there is no choice), `questions`, `draws`, `dropped_examples` (a
        question), `cut_questions`.
    """
    first = asked[0]
    rows = {name: [[getattr(a, name) == a.gold for a in draw] for draw in asked] for name in ("by_sum", "by_mean")}
    main = "by_mean" if task.score == "mean" else "by_sum"
    each = [fmean(draw) for draw in rows[main]]
    accuracy = fmean(each)
    low, high = wilson_interval(accuracy, len(first))
    figures: dict[str, Any] = {}
    if task.metric != "accuracy":
        rights = [items[a.number].answers[0] for a in first]
        for metric in ("chrf", "bleu"):
            found = [_nearness(metric, [a.text for a in draw], rights) for draw in asked]
            figures[metric] = fmean(value for value, *_ in found)
            if metric == task.metric:
                each = [value for value, *_ in found]
                low, high = fmean(x for _, x, _ in found), fmean(x for *_, x in found)
    figures |= {
        "metric": task.metric,
        "figure": fmean(each),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "spread": float(np.std(each, ddof=1)) if len(each) > 1 else None,
    }
    if task.how == "choose":
        figures |= {name: fmean(map(fmean, draws)) for name, draws in rows.items()}
        if first[0].calibrated is not None:
            figures["calibrated"] = fmean(fmean(a.calibrated == a.gold for a in draw) for draw in asked)
        if task.answers:
            chosen_answers = Counter(getattr(a, main) for draw in asked for a in draw)
            figures["same_answer"] = max(chosen_answers.values()) / chosen_answers.total()
    chosen = [items[a.number] for a in first]
    labels = Counter(item.label for item in chosen if item.label)
    return figures | {
        "chance": fmean(1 / len(item.answers) for item in chosen) if task.how == "choose" else None,
        "majority": max(labels.values()) / len(chosen) if labels else None,
        "questions": len(first),
        "draws": len(asked),
        "dropped_examples": fmean(a.num_dropped for draw in asked for a in draw),
        "cut_questions": sum(any(a.is_cut for a in draws) for draws in zip(*asked, strict=True)),
    }


def _nearness(metric: str, texts: Sequence[str], rights: Sequence[str]) -> tuple[float, float, float]:
    """Returns how near texts come to the right ones, from 0 to 1, and the bounds of 95 % by 1,000 draws of questions.

    Source: Popović 2015 (chrF); Papineni et al. 2002, in the form of Post 2018 (BLEU).
    """
    from sacrebleu.metrics.bleu import BLEU  # takes a while to import, and few tasks need it
    from sacrebleu.metrics.chrf import CHRF

    letters = "".join(rights)
    is_chinese, is_japanese = bool(_HAN.search(letters)), bool(_KANA.search(letters))
    tool = CHRF() if metric == "chrf" else BLEU(tokenize="char" if is_japanese else "zh" if is_chinese else "13a")
    score = tool.corpus_score(list(texts), [list(rights)], n_bootstrap=1000)
    middle, half = float(score._mean), float(score._ci)
    return score.score / 100, max(0.0, middle - half) / 100, (middle + half) / 100


_HAN, _KANA = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Returns the bounds between which a share lies with 95 % confidence.

    Args:
        share: What was seen, from 0 to 1.
        number: Of how many.

    Example:
        >>> [round(x, 3) for x in interval(0.5, 100)]
        [0.404, 0.596]

    Source: Wilson 1927.
    """
    z = 1.959964
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def notes_on_answers(task: PromptTask, tokenizer: Tokenizer, *, for_masked: bool = False) -> list[str]:
    """Returns what should be known of the answers that all questions share: which are split, which begin alike.

    Args:
        task: With `answers`, or nothing is told.
        tokenizer: Of the model.
        for_masked: It is a masked model.
    """
    words = list(task.answers.values())
    if (
        task.how == "generate"
        and task.stop
        and task.stop not in tokenizer.decode(tokenizer.encode_ids([f"x{task.stop}x"])[0])
    ):
        return [f"this vocabulary has no {task.stop!r}, where an answer ends: only what ends by itself can be right"]
    if for_masked and (task.choices or task.choices_column):
        return ["all words of an answer are hidden at once: its length and how frequent its words are count for much"]
    if not words:
        return []
    fields = dict.fromkeys(task.columns, "x")
    space = task.parts(FewShotExample(fields, tuple(words), 0), for_masked=for_masked)[1]
    ids = [row.tolist() for row in tokenizer.encode_ids([space + word for word in words])]
    split = [f"{word!r} ({len(row)})" for word, row in zip(words, ids, strict=True) if len(row) > 1]
    same = {word for i, word in enumerate(words) if ids[i] in ids[:i] + ids[i + 1 :]}
    if same:
        return [
            f"answers that this tokenizer cannot tell apart, so that none of them is right: {', '.join(sorted(same))}"
        ]
    firsts = Counter(row[0] for row in ids if row)
    alike = [word for word, row in zip(words, ids, strict=True) if row and firsts[row[0]] > 1]
    notes = []
    if split:
        notes.append(
            f'answers of several tokens, all of which count: {", ".join(split)}; score = "mean" lets length not count'
        )
    if alike:
        notes.append(f"answers that begin with the same token, told apart by the next: {', '.join(map(repr, alike))}")
    return notes


# ----------------------------------------------------------------------------------------------------------------- what fits into a model


def _fit(
    task: PromptTask, shown: Sequence[_Shown], tokenizer: Tokenizer, *, positions: int, for_masked: bool
) -> list[_Fitted]:
    """Returns the ids of prompts with as many of their examples, the last ones, as fit into so many positions."""
    fitted: dict[int, _Fitted] = {}
    waiting = {number: list(one.examples) for number, one in enumerate(shown)}
    while waiting:
        made = _encode(task, [(waiting[n], shown[n].item) for n in waiting], tokenizer, for_masked=for_masked)
        left = {}
        for number, (prompt, answers, behind) in zip(waiting, made, strict=True):
            reserve = max((len(answer) for answer in answers), default=task.max_new_tokens)
            is_long = reserve + len(behind) >= positions
            behind = behind[: max(0, positions - reserve - 1)]
            room = positions - reserve - len(behind)
            examples, dropped = waiting[number], len(shown[number].examples) - len(waiting[number])
            if room < 1:
                raise ConfigError(
                    f"task {task.name}: an answer takes {reserve} tokens, the model has room for {positions}"
                )
            if len(prompt) <= room or not examples:
                fitted[number] = _Fitted(prompt[-room:], answers, behind, dropped, is_long or len(prompt) > room)
            else:
                left[number] = examples[1:]
        waiting = left
    return [fitted[number] for number in range(len(shown))]


def _encode(
    task: PromptTask,
    given: Sequence[tuple[Sequence[FewShotExample], FewShotExample]],
    tokenizer: Tokenizer,
    *,
    for_masked: bool,
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]]:
    """Yields ids of prompts, of their answers, and of what stands behind a blank (for masked models; else it belongs to the answer)."""
    before = [task.before(examples, item, for_masked=for_masked) for examples, item in given]
    parts = [task.parts(item, for_masked=for_masked) for _, item in given]
    if task.how == "generate":
        for prompt in tokenizer.encode_ids(before):
            yield prompt, (), prompt[:0]
        return
    if for_masked:
        prompts, behind = tokenizer.encode_ids(before), tokenizer.encode_ids([after for *_, after in parts])
        answers = iter(tokenizer.encode_ids([answer for _, item in given for answer in item.answers]))
        for prompt, rest, (_, item) in zip(prompts, behind, given, strict=True):
            yield prompt, tuple(next(answers) for _ in item.answers), rest
        return
    wholes = iter(
        tokenizer.encode_ids(
            [
                text + space + answer + after
                for text, (_, space, after), (_, item) in zip(before, parts, given, strict=True)
                for answer in item.answers
            ]
        )
    )
    for prompt, (_, item) in zip(tokenizer.encode_ids(before), given, strict=True):
        texts = [next(wholes) for _ in item.answers]
        common = min(_common(prompt, text) for text in texts)  # a token may lie across the end of the prompt
        yield prompt[:common], tuple(text[common:] for text in texts), prompt[:0]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many ids two texts begin with alike; of `b` one is left at least."""
    n = min(len(a), len(b) - 1)
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


# ----------------------------------------------------------------------------------------------------------------------------- answers


def _choose(
    model: Model, tokenizer: Tokenizer, task: PromptTask, shown: Sequence[_Shown], calibrate: bool
) -> Iterator[FewShotPrediction]:
    fitted, scores = _scores(model, tokenizer, task, shown)
    free = _content_free(model, tokenizer, task, shown) if calibrate else None
    for place, (one, fit, row) in enumerate(zip(shown, fitted, scores, strict=True)):
        sums = np.array([s.log_probability for s in row])
        if task.how == "complete":
            chosen = (0 if row[0].is_greedy else -1,) * 2
        else:
            lengths = np.array([max(1, len(answer)) for answer in one.item.answers])
            chosen = _largest(sums), _largest(sums / lengths)
        calibrated = None if free is None else _largest(sums - free[place])
        yield FewShotPrediction(
            one.number,
            one.item.gold,
            *chosen,
            calibrated=calibrated,
            log_probabilities=tuple(sums.tolist()),
            num_dropped=fit.num_dropped,
            is_cut=fit.is_cut,
        )


def _scores(
    model: Model, tokenizer: Tokenizer, task: PromptTask, shown: Sequence[_Shown]
) -> tuple[list[_Fitted], list[list[AnswerScore]]]:
    positions = model.config.max_position_embeddings
    if "causal_lm" in model.heads:
        fitted = _fit(task, shown, tokenizer, positions=positions - 1, for_masked=False)
        begin = np.array([model.config.eos_token_id])  # type: ignore[union-attr]
        return fitted, score_answers(model, [ScoringRequest(np.append(begin, f.prompt), f.answers) for f in fitted])
    fitted = _fit(task, shown, tokenizer, positions=positions - 2, for_masked=True)
    scored = iter(score_blanks(model, [_blanks(fit, answer, tokenizer) for fit in fitted for answer in fit.answers]))
    return fitted, [[next(scored) for _ in fit.answers] for fit in fitted]


def _blanks(fit: _Fitted, answer: np.ndarray, tokenizer: Tokenizer) -> MaskedRequest:
    """Returns a text with a blank for each token of an answer."""
    masks = np.full(len(answer), tokenizer.mask_id)
    ids = np.concatenate([[tokenizer.cls_id], fit.prompt, masks, fit.behind, [tokenizer.sep_id]]).astype(np.int64)
    return MaskedRequest(ids, 1 + len(fit.prompt) + np.arange(len(answer)), answer)


def _content_free(
    model: Model, tokenizer: Tokenizer, task: PromptTask, shown: Sequence[_Shown]
) -> list[Float[np.ndarray, "a"]]:
    """Returns log-probabilities of each question's answers where the question holds nothing: of the mean over a few ways to say so."""
    columns = task.columns
    told = []
    for text in _CONTENT_FREE:
        _, scores = _scores(model, tokenizer, task, [_emptied(one, columns, text) for one in shown])
        told.append([log_softmax([s.log_probability for s in row]) for row in scores])
    return [logsumexp(rows, axis=0) - math.log(len(rows)) for rows in zip(*told, strict=True)]


def _emptied(one: _Shown, columns: set[str], text: str) -> _Shown:
    """Returns a question that holds nothing, with the same examples and answers."""
    fields = {name: text if name in columns else value for name, value in one.item.fields.items()}
    return replace(one, item=replace(one.item, fields=fields))


def _largest(x: Float[np.ndarray, "n"]) -> int:
    """Returns the number of the largest value, -1 where two are the largest: an answer that ties with another is not right."""
    return int(x.argmax()) if (x == x.max()).sum() == 1 else -1


def _generate(
    reader: GptDecoder, tokenizer: Tokenizer, task: PromptTask, shown: Sequence[_Shown]
) -> Iterator[FewShotPrediction]:
    fitted = _fit(task, shown, tokenizer, positions=reader.config.max_position_embeddings - 1, for_masked=False)
    config = DecodingConfig(max_new_tokens=task.max_new_tokens, temperature=0.0)
    stop = [task.stop] if task.stop else []
    told = continue_ids([fit.prompt for fit in fitted], reader, tokenizer, config, stop=stop)
    golds = tokenizer.encode_ids([one.item.answers[0] for one in shown])  # as the tokenizer would spell them
    for one, fit, gold, (text, _) in zip(shown, fitted, golds, told, strict=True):
        text = text.strip().removesuffix(task.parts(one.item)[2].strip()).strip()
        right = 0 if text in (one.item.answers[0], tokenizer.decode(gold).strip()) else -1
        yield FewShotPrediction(one.number, 0, right, right, text=text, num_dropped=fit.num_dropped, is_cut=fit.is_cut)
