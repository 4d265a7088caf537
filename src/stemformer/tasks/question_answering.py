"""Extractive question answering: the span of a passage that answers a question, or `[CLS]` for no answer.

Source: Devlin et al. 2019, sections 4.2 and 4.3; windows of long passages: released code.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.special import softmax
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.question_answering import Question
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.models.attention.varlen import padded_rows
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples, make_example, num_special_tokens, sliding_windows
from stemformer.tasks.metrics import Language, format_metric, squad_metrics
from stemformer.tasks.task import Logits, ReportExample, Task, TaskConfig, TaskOutputs

_MAX_QUESTION_TOKENS = 64
_NUM_CANDIDATES = 20
_HAN = re.compile(r"[\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3040-\u30ff]")


@dataclass(frozen=True)
class Window:
    """Part of a passage in an example: index of its first token, and offsets in the passage."""

    first: int
    offsets: np.ndarray  # (n, 2) start and end in characters


@dataclass(frozen=True)
class Answer:
    """Candidate answer: sum of its start and end logits, and probability among the candidates."""

    text: str
    begin: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class AnswerPrediction:
    """Prediction for a question: `passage[begin:end]`, empty for no answer, and its probability among the candidates."""

    text: str
    begin: int
    end: int
    probability: float
    # Score of "no answer" minus the score of the best span; compared with the task's threshold.
    no_answer: float
    candidates: tuple[Answer, ...] = field(default=(), repr=False)


class QuestionAnswering(Task):
    """The task `qa`."""

    head = "span"
    answer_field = "gold"
    input_fields = ("question", "context")
    input_format = "(question, passage)"
    formats = (".jsonl", ".json")
    num_logits = 2
    main_metric = "f1"
    # With unanswerable questions: answer "" if `no_answer` exceeds this. `tune` sets it on dev data.
    threshold = 0.0

    @classmethod
    def from_records(cls, config: TaskConfig, records: Sequence[Question]) -> "QuestionAnswering":
        allows_none = any(r.is_impossible for r in records) if config.no_answer is None else config.no_answer
        task = cls(replace(config, no_answer=allows_none))
        task.language = find_language(records)
        return task

    @classmethod
    def split_groups(cls, records: Sequence[Question]) -> tuple[Sequence[Hashable], str]:
        articles = [r.title or r.context for r in records]
        # By article, or by passage if there are few articles.
        groups = articles if len(set(articles)) > 10 else [r.context for r in records]
        return groups, "grouped by article or passage"

    def scored_positions(self, batch: Batch) -> None:
        return None

    def num_scores(self, example: Example) -> int:
        return len(example.input_ids)

    def loss_from_scores(self, scores: Float[Tensor, "N 2"], batch: Batch) -> LossSum:
        assert batch.sequence_labels is not None
        rows, is_real = padded_rows(batch.cu_seqlens, batch.max_seqlen)  # (S, T)
        padded = scores.float().index_select(0, rows.view(-1)).view(*rows.shape, 2)  # (S, T, 2)
        padded = padded.masked_fill(~is_real[..., None], -torch.inf)
        losses = [F.cross_entropy(padded[..., i], batch.sequence_labels[:, i], reduction="sum") for i in range(2)]
        is_correct = (padded.argmax(1) == batch.sequence_labels).all(-1)
        return LossSum((losses[0] + losses[1]) / 2, len(rows), is_correct.sum())

    def weak_results(
        self,
        records: Sequence[Any],
        predictions: Sequence[Any],
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Iterator[str]:
        if metrics["f1"] < 100 and not any(prediction.text for prediction in predictions):
            yield "every answer to the dev data is empty"
        elif not metrics["f1"]:
            yield "no answer to the dev data is right, not even in part (f1 0)"

    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> Question | None:
        if len(parts) != 2 or not all(isinstance(part, str) and part.strip() for part in parts):
            return None
        question, context = parts
        return Question(location, question, context, answers=(), title="", is_impossible=False, gold=())

    def _encode(
        self,
        records: Sequence[Question],
        tokenizer: Tokenizer,
        max_length: int,
        counts: Counter[str],
        lengths: list[int],
    ) -> Iterator[tuple[int, Example, Window]]:
        contexts = list(dict.fromkeys(r.context for r in records))
        passages = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
        questions = tokenizer.encode_ids([r.question for r in records])
        max_question = min(_MAX_QUESTION_TOKENS, max_length // 2)
        for number, (record, question) in enumerate(zip(records, questions, strict=True)):
            counts["questions truncated"] += len(question) > max_question
            lengths.append(len(question) + len(passages[record.context].ids))
            question, passage = question[:max_question], passages[record.context]
            # First and last token of the first answer.
            answer = None
            if record.answers:
                text, begin = record.answers[0]
                tokens = np.flatnonzero((passage.offsets[:, 1] > begin) & (passage.offsets[:, 0] < begin + len(text)))
                answer = tokens[[0, -1]] if len(tokens) else None
            counts["answers that match no token"] += bool(record.answers) and answer is None
            room = max_length - num_special_tokens(tokenizer, num_texts=2) - len(question)
            windows = sliding_windows(len(passage.ids), room, self.config.stride)
            counts["passages split into windows"] += len(windows) > 1
            first = len(question) + 2
            for start, end in windows:
                # A window without the answer has both targets at `[CLS]`.
                target = np.zeros(2, np.int64)
                if answer is not None and start <= answer[0] and answer[1] < end:
                    target = answer - start + first
                example = make_example([question, passage.ids[start:end]], tokenizer, answer=target)
                yield number, example, Window(first, passage.offsets[start:end])

    def decode(self, scores: Logits, examples: TaskExamples, records: Sequence[Question]) -> list[AnswerPrediction]:
        spans: list[list[tuple[float, int, int]]] = [[] for _ in records]
        no_answer = [np.inf] * len(records)
        for rows, owner, window in zip(scores, examples.records.tolist(), examples.scored, strict=True):
            no_answer[owner] = min(no_answer[owner], float(rows[0].sum()))
            spans[owner] += best_spans(rows, window, max_tokens=self.config.max_answer_tokens)
        return [self._to_prediction(r.context, x, none) for r, x, none in zip(records, spans, no_answer, strict=True)]

    def _to_prediction(self, context: str, spans: list[tuple[float, int, int]], no_answer: float) -> AnswerPrediction:
        # Two windows may hold the same span: the better score comes last.
        best = {(begin, end): score for score, begin, end in sorted(spans)}
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:_NUM_CANDIDATES]
        if not ranked:
            return AnswerPrediction("", 0, 0, 1.0, float("inf"))
        allows_none = bool(self.config.no_answer)
        p = softmax(np.array([score for _, score in ranked] + [no_answer] * allows_none)).tolist()
        # Byte-level tokens start at the space before their word.
        begins = [end - len(context[begin:end].lstrip()) for (begin, end), _ in ranked]
        answers = tuple(
            Answer(context[begin:end], begin, end, score, probability)
            for begin, ((_, end), score), probability in zip(begins, ranked, p, strict=False)
        )
        first = answers[0]
        difference = no_answer - first.score
        if allows_none and difference > self.threshold:
            return AnswerPrediction("", 0, 0, p[-1], difference, answers)
        return AnswerPrediction(first.text, first.begin, first.end, first.probability, difference, answers)

    def outcome(self, record: Question, prediction: AnswerPrediction) -> tuple[Sequence[str], str, float]:
        # The best span, even if the prediction is "no answer".
        candidates = prediction.candidates
        return record.gold, candidates[0].text if candidates else prediction.text, prediction.no_answer

    def _evaluate(self, outcomes: Sequence[tuple[Sequence[str], str, float]]) -> dict[str, Any]:
        columns: Any = [{str(i): outcome[k] for i, outcome in enumerate(outcomes)} for k in range(3)]
        gold, answers, scores = columns
        options: dict[str, Any] = {"no_answer": scores, "threshold": self.threshold} if self.config.no_answer else {}
        return dict(squad_metrics(gold, answers, language=self.language, **options))

    def tune(self, metrics: dict[str, float], predictions: Sequence[AnswerPrediction]) -> list[str]:
        if not self.config.no_answer:
            return []
        # The midpoint between the threshold and the next score above it, which decides the same.
        best = metrics["best_threshold"]
        above = [p.no_answer for p in predictions if best < p.no_answer < math.inf]
        self.threshold = (best + min(above)) / 2 if above else best
        threshold = format_metric("threshold", self.threshold)
        rule = f"'no answer' scores {threshold} or more above the best answer (tuned on dev)"
        return [f"questions are left unanswered if {rule}"]

    def to_row(self, record: Question, prediction: AnswerPrediction) -> dict[str, Any]:
        row = {"id": record.id, "question": record.question, **asdict(prediction)}
        # A passage without a token; JSON has no infinity.
        return row if math.isfinite(prediction.no_answer) else {**row, "no_answer": None}

    def to_report_example(self, record: Question, prediction: AnswerPrediction) -> ReportExample:
        gold = list(dict.fromkeys(record.gold))
        metrics = squad_metrics({"": gold}, {"": prediction.text}, language=self.language)
        entry: dict[str, Any] = {"id": record.id, "question": record.question, "gold": gold}
        entry |= {"predicted": prediction.text, "probability": prediction.probability}
        return prediction.probability, metrics["exact_match"] < 100, entry

    def report_details(
        self, record: Question, prediction: AnswerPrediction, index: int, outputs: TaskOutputs
    ) -> dict[str, Any]:
        """Return the passage, its language, and start and end probabilities in the window with the answer."""
        examples, scores, tokenizer = outputs
        own = np.flatnonzero(examples.records == index).tolist()
        bounds = {i: examples.scored[i].offsets for i in own if len(examples.scored[i].offsets)}
        holds = [i for i, x in bounds.items() if x[0, 0] <= prediction.begin and prediction.end <= x[-1, 1]]
        chosen = (holds or own)[0]
        window = examples.scored[chosen]
        positions = slice(window.first, window.first + len(window.offsets))
        p = softmax(scores[chosen].astype(np.float64), axis=0)[positions]
        ids = examples.examples[chosen].input_ids[positions]
        details = {
            "language": self.language,
            "passage": record.context,
            "begin": prediction.begin,
            "end": prediction.end,
        }
        details |= {"tokens": [tokenizer.tokens[i] for i in ids.tolist()], "offsets": window.offsets.tolist()}
        return details | {"start": p[:, 0].tolist(), "end_p": p[:, 1].tolist()}

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), "threshold": self.threshold}

    def load_metadata(self, metadata: dict[str, Any]) -> None:
        super().load_metadata(metadata)
        self.threshold = float(metadata.get("threshold", 0.0))


def best_spans(scores: Float[np.ndarray, "n 2"], window: Window, *, max_tokens: int) -> list[tuple[float, int, int]]:
    """Return score, start and end (in characters) of the best spans of a window, best first."""
    n = len(window.offsets)
    if n == 0:
        return []
    start, end = scores[window.first : window.first + n].astype(np.float64).T
    width = min(max_tokens, n)
    padded = np.concatenate([end, np.full(width - 1, -np.inf)])
    # Row: first token; column: length - 1.
    sums = start[:, None] + np.lib.stride_tricks.sliding_window_view(padded, width)  # (n, width)
    flat = sums.ravel()
    chosen = np.argpartition(-flat, min(_NUM_CANDIDATES, len(flat) - 1))[:_NUM_CANDIDATES]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    chosen = chosen[np.isfinite(flat[chosen])]
    firsts, lengths = np.divmod(chosen, width)
    begins, ends = window.offsets[firsts, 0], window.offsets[firsts + lengths, 1]
    return list(zip(flat[chosen].tolist(), begins.tolist(), ends.tolist(), strict=True))


def find_language(records: Sequence[Question]) -> Language:
    """Return the rules for comparing answers, from the script of the first passages."""
    text = "".join(r.context for r in records[:50])
    if len(_KANA.findall(text)) > 0.1 * len(text):
        return "ja"
    return "zh" if len(_HAN.findall(text)) > 0.2 * len(text) else "en"
