"""Few-shot evaluation: prompts, predictions by likelihood or generation, metrics.

Source: Brown et al. 2020, section 2.4; calibration: Zhao et al. 2021, section 4; cloze prompts of
masked models: Schick and Schütze 2021.
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
from stemformer.evaluation.few_shot import scoring
from stemformer.evaluation.few_shot.dataset import FewShotDataset
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask
from stemformer.generation.decoding import DecodingConfig
from stemformer.generation.text import generate_from_ids
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import Model

# Evaluated and reported together.
_BATCH_EXAMPLES = 64
_CONTENT_FREE = ("N/A", "[MASK]", "")
RENAMED_RESULTS = {"figure": "value", "by_sum": "acc", "by_mean": "acc_norm", "calibrated": "acc_calibrated"}
_HAN, _KANA = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")


@dataclass(frozen=True)
class FewShotPrediction:
    """Prediction for the example with index `number`.

    Attributes:
        prediction: Index of the answer with the highest log-probability, -1 for a tie. For
            `loglikelihood` and `generate_until` 0 if correct, otherwise -1.
        prediction_norm: As `prediction`, by log-probability per character.
        calibrated: As `prediction`, relative to the log-probability without content.
        num_dropped: Demonstrations that did not fit.
        is_cut: The example alone did not fit; its beginning was cut off.
    """

    number: int
    gold: int
    prediction: int
    prediction_norm: int
    calibrated: int | None = None
    log_probabilities: tuple[float, ...] = ()
    text: str = ""
    num_dropped: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class _Query:
    number: int
    item: FewShotExample
    demonstrations: Sequence[FewShotExample]


@dataclass(frozen=True)
class _EncodedPrompt:
    """Ids of a prompt that fits the model."""

    prompt: np.ndarray
    answers: tuple[np.ndarray, ...]
    suffix: np.ndarray
    num_dropped: int
    is_cut: bool


def evaluate_few_shot(
    model: Model,
    tokenizer: Tokenizer,
    task: PromptTask,
    data: FewShotDataset,
    numbers: Sequence[int],
    *,
    num_shots: int,
    seed: int,
    calibrate: bool = False,
    on_questions: Callable[[int], None] | None = None,
) -> list[FewShotPrediction]:
    """Predict the answers of some examples of a task.

    Args:
        model: GPT or masked model with its head, in evaluation mode; under the caller's autocast.
        numbers: Indices of the examples.
        calibrate: Also compare answers relative to their likelihood without content.
        on_questions: Called with the number of examples of each finished batch.
    """
    is_choice = task.output_type == "multiple_choice"
    if "causal_lm" not in model.heads and not is_choice:
        advice = "Pass a GPT, or a task with output_type = multiple_choice."
        raise ConfigError(f"Task {task.name} needs a causal language model. {advice}")
    decoder = None
    # Prepared once for all batches.
    if task.output_type == "generate_until":
        num_batches = math.ceil(len(numbers) / _BATCH_EXAMPLES)
        rows = min(_BATCH_EXAMPLES, len(numbers))
        decoder = GptDecoder(model, rows=rows, steps=task.max_new_tokens * num_batches)
    predictions: list[FewShotPrediction] = []
    for begin in range(0, len(numbers), _BATCH_EXAMPLES):
        part = numbers[begin : begin + _BATCH_EXAMPLES]
        queries = [_Query(n, data.items[n], data.sample_demonstrations(n, num_shots, seed=seed)) for n in part]
        if decoder is not None:
            predictions += _generate(decoder, tokenizer, task, queries)
        else:
            predictions += _choose(model, tokenizer, task, queries, calibrate and is_choice)
        if on_questions is not None:
            on_questions(len(part))
    return predictions


def aggregate(
    predictions: Sequence[Sequence[FewShotPrediction]], task: PromptTask, items: Sequence[FewShotExample]
) -> dict[str, Any]:
    """Compute the metrics of a task from the predictions for each sample of demonstrations.

    Returns:
        `metric`, and its `value` from 0 to 1 (mean over samples); `low` and `high` (95 % interval
        over examples) and `spread` (standard deviation over samples); `accuracy`; `chrf` and `bleu`
        for these metrics; for multiple choice `acc` (by sum), `acc_norm` (by mean per character)
        and `acc_calibrated`, and `same_answer` (share of the most frequent prediction) for shared
        answers; `chance` and `majority` (None if undefined), `questions`, `draws`,
        `dropped_examples` (mean per example), `cut_questions`.
    """
    # Accuracy of each sample of demonstrations.
    first = predictions[0]
    evaluated = [items[p.number] for p in first]
    chosen = "prediction_norm" if task.score == "mean" else "prediction"
    values = _accuracies(predictions, chosen)
    accuracy = fmean(values)
    low, high = wilson_interval(accuracy, len(first))

    # Similarity of generated texts.
    result: dict[str, Any] = {}
    if task.metric != "accuracy":
        references = [item.answers[0] for item in evaluated]
        for metric in ("chrf", "bleu"):
            scores = [_text_score(metric, [p.text for p in sample], references) for sample in predictions]
            per_sample, *bounds = zip(*scores, strict=True)
            result[metric] = fmean(per_sample)
            if metric == task.metric:
                values, (low, high) = list(per_sample), map(fmean, bounds)
    result |= {
        "metric": task.metric,
        "value": fmean(values),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }

    # Choices, and baselines.
    is_choice = task.output_type == "multiple_choice"
    if is_choice:
        names = {"acc": "prediction", "acc_norm": "prediction_norm", "acc_calibrated": "calibrated"}
        if first[0].calibrated is None:
            del names["acc_calibrated"]
        result |= {metric: fmean(_accuracies(predictions, name)) for metric, name in names.items()}
        if task.answers:
            counts = Counter(getattr(p, chosen) for sample in predictions for p in sample)
            result["same_answer"] = max(counts.values()) / counts.total()
    labels = Counter(item.label for item in evaluated if item.label)
    return result | {
        "chance": fmean(1 / len(item.answers) for item in evaluated) if is_choice else None,
        "majority": max(labels.values()) / len(evaluated) if labels else None,
        "questions": len(first),
        "draws": len(predictions),
        "dropped_examples": fmean(p.num_dropped for sample in predictions for p in sample),
        "cut_questions": sum(any(p.is_cut for p in per_item) for per_item in zip(*predictions, strict=True)),
    }


def _accuracies(predictions: Sequence[Sequence[FewShotPrediction]], name: str) -> list[float]:
    return [fmean(getattr(p, name) == p.gold for p in sample) for sample in predictions]


def _text_score(metric: str, texts: Sequence[str], references: Sequence[str]) -> tuple[float, float, float]:
    """Return chrF or BLEU from 0 to 1, and its 95 % interval from 1,000 bootstrap samples.

    Source: Popović 2015 (chrF); Papineni et al. 2002, in the form of Post 2018 (BLEU).
    """
    # Slow to import, and rarely needed.
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    class Chrf(CHRF):
        """sacrebleu's chrF, whose resamples all have float32 scores: their mean refuses other types among them."""

        def _compute_score_from_stats(self, stats: Any) -> Any:
            score: Any = super()._compute_score_from_stats(stats)
            # A resample; without common n-grams its score is the float 0.0.
            if isinstance(stats, np.ndarray):
                score.score = np.float32(score.score)
            return score

    text = "".join(references)
    language = "char" if _KANA.search(text) else "zh" if _HAN.search(text) else "13a"
    scorer = Chrf() if metric == "chrf" else BLEU(tokenize=language)
    score = scorer.corpus_score(list(texts), [list(references)], n_bootstrap=1000)
    middle, half = float(score._mean), float(score._ci)
    return score.score / 100, max(0.0, middle - half) / 100, (middle + half) / 100


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion.

    Source: Wilson 1927. `scipy.stats.binomtest` needs an integer number of successes.
    """
    z = 1.959964
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(shares: Sequence[float], numbers: Sequence[int]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of independent proportions, each of a number of samples.

    The squared distances to the limits of the Wilson intervals are added, as variances are, so that
    it is not empty where all shares are 0 or 1. Source: Newcombe 1998, method 10, for a mean.
    """
    mean = fmean(shares)
    limits = [wilson_interval(share, number) for share, number in zip(shares, numbers, strict=True)]
    low, high = (
        math.hypot(*(s - x[side] for s, x in zip(shares, limits, strict=True))) / len(shares) for side in (0, 1)
    )
    return max(0.0, mean - low), min(1.0, mean + high)


def notes_on_answers(task: PromptTask, tokenizer: Tokenizer, *, for_masked: bool = False) -> list[str]:
    """Return notes on the tokenization of answers: several tokens, equal or ambiguous ones."""
    stop = task.stop if task.output_type == "generate_until" else ""
    if stop and stop not in tokenizer.decode(tokenizer.encode_ids([f"x{stop}x"])[0]):
        return [f"the vocabulary lacks the stop string {stop!r}: only answers that end by themselves can be correct"]
    if for_masked and (task.choices or task.choices_column):
        how = "an answer gets as many masks as it has tokens, predicted from left to right"
        return [f"{how}: its length and the frequency of its words matter"]
    words = list(task.answers.values())
    if not words:
        return []
    fields = dict.fromkeys(task.columns, "x")
    space = task.split_template(FewShotExample(fields, tuple(words), 0), for_masked=for_masked)[1]
    ids = [tuple(row.tolist()) for row in tokenizer.encode_ids([space + word for word in words])]
    by_word = dict(zip(words, ids, strict=True))
    if equal := sorted({word for word, row in zip(words, ids, strict=True) if ids.count(row) > 1}):
        return [f"answers with equal token ids, none of which can be correct: {', '.join(equal)}"]
    notes = []
    if split := [f"{word!r} ({len(row)})" for word, row in by_word.items() if len(row) > 1]:
        advice = 'score = "mean" normalizes by length'
        notes.append(f"answers of several tokens, all of which are scored: {', '.join(split)}; {advice}")
    firsts = Counter(row[:1] for row in ids)
    if ambiguous := [repr(word) for word, row in by_word.items() if row and firsts[row[:1]] > 1]:
        notes.append(f"answers with the same first token, which only later ones distinguish: {', '.join(ambiguous)}")
    return notes


def _fit(
    task: PromptTask, queries: Sequence[_Query], tokenizer: Tokenizer, *, positions: int, for_masked: bool
) -> list[_EncodedPrompt]:
    """Encode prompts, dropping the first demonstrations until each fits into `positions`."""
    fitted: dict[int, _EncodedPrompt] = {}
    pending = {i: query.demonstrations for i, query in enumerate(queries)}
    while pending:
        encoded = _encode(task, [(pending[i], queries[i].item) for i in pending], tokenizer, for_masked=for_masked)
        for i, (prompt, answers, suffix) in zip(pending, encoded, strict=True):
            # Room for the prompt, next to the longest answer and the suffix.
            reserved = max(map(len, answers), default=task.max_new_tokens)
            if reserved >= positions:
                problem = f"An answer has {reserved} tokens; the model reads at most {positions}."
                raise ConfigError(f"Task {task.name}: {problem}")
            kept_suffix = suffix[: positions - reserved - 1]
            room = positions - reserved - len(kept_suffix)
            if len(prompt) > room and pending[i]:
                pending[i] = pending[i][1:]
            else:
                num_dropped = len(queries[i].demonstrations) - len(pending[i])
                is_cut = len(prompt) > room or len(kept_suffix) < len(suffix)
                fitted[i] = _EncodedPrompt(prompt[-room:], answers, kept_suffix, num_dropped, is_cut)
        pending = {i: demonstrations for i, demonstrations in pending.items() if i not in fitted}
    return [fitted[i] for i in range(len(queries))]


def _encode(
    task: PromptTask,
    pairs: Sequence[tuple[Sequence[FewShotExample], FewShotExample]],
    tokenizer: Tokenizer,
    *,
    for_masked: bool,
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]]:
    """Yield ids of prompts, answers and suffixes (causal models: part of the answer)."""
    texts = [task.render_prompt(demonstrations, item, for_masked=for_masked) for demonstrations, item in pairs]
    prompts = tokenizer.encode_ids(texts)
    if task.output_type == "generate_until":
        yield from ((prompt, (), prompt[:0]) for prompt in prompts)
        return
    items = [item for _, item in pairs]
    parts = [task.split_template(item, for_masked=for_masked) for item in items]
    if for_masked:
        suffixes = tokenizer.encode_ids([after for *_, after in parts])
        answers = iter(tokenizer.encode_ids([answer for item in items for answer in item.answers]))
        for prompt, suffix, item in zip(prompts, suffixes, items, strict=True):
            yield prompt, tuple(next(answers) for _ in item.answers), suffix
        return
    continued = [
        text + space + answer + after
        for text, (_, space, after), item in zip(texts, parts, items, strict=True)
        for answer in item.answers
    ]
    full = iter(tokenizer.encode_ids(continued))
    for prompt, item in zip(prompts, items, strict=True):
        ids = [next(full) for _ in item.answers]
        # A token across the end of the prompt belongs to the answer.
        common = scoring.common_prefix([prompt, *ids], min(len(prompt), *(len(row) - 1 for row in ids)))
        yield prompt[:common], tuple(row[common:] for row in ids), prompt[:0]


def _choose(
    model: Model, tokenizer: Tokenizer, task: PromptTask, queries: Sequence[_Query], calibrate: bool
) -> Iterator[FewShotPrediction]:
    prompts, scores = _score(model, tokenizer, task, queries)
    priors = _content_free(model, tokenizer, task, queries) if calibrate else None
    for i, (query, prompt, row) in enumerate(zip(queries, prompts, scores, strict=True)):
        log_p = np.array([s.log_probability for s in row])
        if task.output_type == "loglikelihood":
            chosen = (0 if row[0].is_greedy else -1,) * 2
        else:
            lengths = np.array([max(1, len(answer)) for answer in query.item.answers])
            chosen = _argmax(log_p), _argmax(log_p / lengths)
        yield FewShotPrediction(
            query.number,
            query.item.gold,
            *chosen,
            calibrated=None if priors is None else _argmax(log_p - priors[i]),
            log_probabilities=tuple(log_p.tolist()),
            num_dropped=prompt.num_dropped,
            is_cut=prompt.is_cut,
        )


def _score(
    model: Model, tokenizer: Tokenizer, task: PromptTask, queries: Sequence[_Query]
) -> tuple[list[_EncodedPrompt], list[list[scoring.AnswerScore]]]:
    positions = model.max_length
    if "causal_lm" in model.heads:
        prompts = _fit(task, queries, tokenizer, positions=positions - 1, for_masked=False)
        eos = model.config.eos_token_id or 0
        causal = [scoring.ScoringRequest(tokenizer.start_prompt(p.prompt, eos), p.answers) for p in prompts]
        return prompts, scoring.score_answers(model, causal)
    prompts = _fit(task, queries, tokenizer, positions=positions - 2, for_masked=True)
    blanks = []
    for p in prompts:
        for answer in p.answers:
            ids = np.concatenate([p.prompt, answer, p.suffix])
            blanks.append(scoring.Blank(ids, len(p.prompt), len(p.prompt) + len(answer)))
    scores = iter(scoring.score_blanks(model, tokenizer, blanks))
    return prompts, [[next(scores) for _ in prompt.answers] for prompt in prompts]


def _content_free(
    model: Model, tokenizer: Tokenizer, task: PromptTask, queries: Sequence[_Query]
) -> list[Float[np.ndarray, "a"]]:
    """Return the log-probabilities of answers, averaged over content-free inputs."""
    rows = []
    for text in _CONTENT_FREE:
        empty = dict.fromkeys(task.columns, text)
        emptied = [replace(q, item=replace(q.item, fields={**q.item.fields, **empty})) for q in queries]
        _, scores = _score(model, tokenizer, task, emptied)
        rows.append([log_softmax([s.log_probability for s in row]) for row in scores])
    return [logsumexp(by_text, axis=0) - math.log(len(by_text)) for by_text in zip(*rows, strict=True)]


def _argmax(x: Float[np.ndarray, "n"]) -> int:
    """Return the index of the maximum, or -1 for a tie, which is not correct."""
    return int(x.argmax()) if (x == x.max()).sum() == 1 else -1


def _generate(
    decoder: GptDecoder, tokenizer: Tokenizer, task: PromptTask, queries: Sequence[_Query]
) -> Iterator[FewShotPrediction]:
    prompts = _fit(task, queries, tokenizer, positions=decoder.max_length - 1, for_masked=False)
    config = DecodingConfig(max_new_tokens=task.max_new_tokens, temperature=0.0)
    stop = [task.stop] if task.stop else []
    generated = generate_from_ids([p.prompt for p in prompts], decoder, tokenizer, config, stop=stop)
    # The correct answer also as the tokenizer decodes it.
    gold = tokenizer.encode_ids([query.item.answers[0] for query in queries])
    for query, prompt, ids, (text, _) in zip(queries, prompts, gold, generated, strict=True):
        text = text.strip().removesuffix(task.split_template(query.item)[2].strip()).strip()
        correct = 0 if text in (query.item.answers[0], tokenizer.decode(ids).strip()) else -1
        yield FewShotPrediction(
            query.number, 0, correct, correct, text=text, num_dropped=prompt.num_dropped, is_cut=prompt.is_cut
        )
