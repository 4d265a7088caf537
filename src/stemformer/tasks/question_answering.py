"""Where in a passage the answer to a question stands.

Two learned vectors score every token as the answer's first and as its last; the best valid span is the answer. A passage that is longer
than the model is read in overlapping windows. With questions that have no answer, `[CLS]` scores that.

Source: Devlin et al. 2019, sections 4.2 and 4.3; windows: the released code (a stride of 128).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.question_answering import Question
from stemformer.data.tokenization.tokenizer import Encoding, Tokenizer
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples, make_example, num_special, sliding_windows
from stemformer.tasks.task import TaskConfig

_MAX_QUESTION_TOKENS = 64
_N_BEST = 20


@dataclass(frozen=True)
class Window:
    """Where the passage of an example comes from.

    Attributes:
        first: Place of its first token in `input_ids`.
        offsets: (n, 2) begin and end of each of its tokens, in characters of the whole passage.
    """

    first: int
    offsets: np.ndarray


@dataclass(frozen=True)
class Answer:
    """A span of the passage.

    Attributes:
        text: Its characters.
        begin: Offset of the first one.
        end: Offset behind the last one.
        score: Sum of the scores of its first and last token.
        probability: Among the candidates of the question, "no answer" included where it is one.
    """

    text: str
    begin: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class AnswerPrediction:
    """What a model answers.

    Attributes:
        text: The answer; "" for none.
        begin: Its offset in the passage; 0 for none, like the next.
        end: Offset behind it.
        probability: Of the answer, among the candidates.
        no_answer: By how much the score of "no answer" is above that of the best span; the task's threshold decides by it.
        candidates: The best spans.
    """

    text: str
    begin: int
    end: int
    probability: float
    no_answer: float
    candidates: tuple[Answer, ...] = field(default=(), repr=False)


class QuestionAnswering:
    """The task of extractive question answering.

    Args:
        config: Settings.
        labels: None: spans have no labels.
        threshold: With unanswerable questions, how far the score of "no answer" must be above the best span's; tuned on dev data.
    """

    head = "span"
    heads: tuple[str, ...] = ("span",)
    problem_type = None

    def __init__(self, config: TaskConfig, labels: Sequence[str] = (), threshold: float = 0.0) -> None:
        self.config = config
        self.labels: tuple[str, ...] = ()
        self.num_labels = 2
        self.threshold = threshold

    def corrupt(self, passage: Example, rng: np.random.Generator) -> Example:
        """Returns the example as it is."""
        return passage

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many windows of a batch are scored."""
        return {self.config.name: len(batch.cu_seqlens) - 1}

    def places(self, batch: Batch) -> None:
        """Returns None: the states of all tokens are needed."""
        return None

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Float[Tensor, "N 2"]:
        """Returns for each token its score as start and as end."""
        scores: Tensor = model.heads["span"](states)
        return scores

    def num_scores(self, example: Example) -> int:
        """Returns how many rows of scores an example has: one a token."""
        return len(example.input_ids)

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states of its places."""
        return {self.config.name: self.loss_of(self.scores(model, states, batch), batch)}

    def loss_of(self, scores: Float[Tensor, "N 2"], batch: Batch) -> LossSum:
        """Returns the summed cross-entropy of the true start and end among all tokens of each window, halved."""
        assert batch.sequence_labels is not None
        scores = scores.float()
        lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).long()
        begins = batch.cu_seqlens[:-1].long()
        places = torch.arange(batch.max_seqlen, device=scores.device)
        is_real = places < lengths[:, None]
        index = torch.where(is_real, begins[:, None] + places, begins[:, None])
        block = scores.index_select(0, index.view(-1)).view(*index.shape, 2)  # (S, T, 2)
        block = block.masked_fill(~is_real[..., None], -torch.inf)
        total = sum(F.cross_entropy(block[..., i], batch.sequence_labels[:, i], reduction="sum") for i in range(2)) / 2
        right = (block.argmax(1) == batch.sequence_labels).all(-1).sum()
        assert isinstance(total, Tensor)
        return LossSum(total, len(lengths), right)

    def encode(self, records: Sequence[Question], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Returns an example for each window of each passage, with its question before it.

        Args:
            records: Questions; those without an answer can be predicted, and trained as such.
            tokenizer: Of the model.
            max_length: Tokens of an example, special ones included.
        """
        counted: Counter[str] = Counter()
        examples: list[Example] = []
        owners: list[int] = []
        scored: list[Window] = []
        passages: dict[str, Encoding] = {}
        contexts = list(dict.fromkeys(r.context for r in records))
        passages = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
        longest = min(_MAX_QUESTION_TOKENS, max_length // 2)
        for number, (record, asked) in enumerate(
            zip(records, tokenizer.encode_ids([r.question for r in records]), strict=True)
        ):
            counted["questions cut to fit"] += len(asked) > longest
            asked, passage = asked[:longest], passages[record.context]
            answer = _answer_tokens(record, passage)
            counted["answers that no token holds"] += bool(record.answers) and answer is None
            spans = sliding_windows(
                len(passage.ids), max_length - num_special(tokenizer, num_texts=2) - len(asked), self.config.stride
            )
            counted["passages read in windows"] += len(spans) > 1
            for begin, end in spans:
                first = len(asked) + 2
                target = np.zeros(2, np.int64)  # [CLS]: the answer is not in this window
                if answer is not None and begin <= answer[0] and answer[1] < end:
                    target = np.array(answer, np.int64) - begin + first
                examples.append(make_example([asked, passage.ids[begin:end]], tokenizer, answer=target))
                owners.append(number)
                scored.append(Window(first, passage.offsets[begin:end]))
        return TaskExamples(examples, np.array(owners, np.int64), scored, {k: n for k, n in counted.items() if n})

    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[Question]
    ) -> list[AnswerPrediction]:
        """Returns the best valid span of each question over all windows of its passage.

        Args:
            scores: Of each example.
            examples: What they are of.
            records: What the examples are of.
        """
        found: list[list[tuple[float, int, int]]] = [[] for _ in records]
        none = [np.inf] * len(records)
        for rows, owner, window in zip(scores, examples.records.tolist(), examples.scored, strict=True):
            none[owner] = min(none[owner], float(rows[0].sum()))
            found[owner] += best_spans(rows, window, longest=self.config.max_answer_tokens)
        return [
            self._prediction(record.context, spans, nothing)
            for record, spans, nothing in zip(records, found, none, strict=True)
        ]

    def _prediction(self, context: str, spans: list[tuple[float, int, int]], nothing: float) -> AnswerPrediction:
        best: dict[tuple[int, int], float] = {}
        for score, begin, end in spans:  # two windows may hold the same span
            best[begin, end] = max(score, best.get((begin, end), -np.inf))
        begins = {begin: begin + len(context[begin:end]) - len(context[begin:end].lstrip()) for _, begin, end in spans}
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:_N_BEST]
        if not ranked:
            return AnswerPrediction("", 0, 0, 1.0, float("inf"))
        x = np.array([score for _, score in ranked] + ([nothing] if self.config.no_answer else []))
        p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        answers = tuple(
            Answer(context[begins[begin] : end], begins[begin], end, score, probability)
            for ((begin, end), score), probability in zip(ranked, p.tolist(), strict=False)
        )
        difference = nothing - answers[0].score
        if self.config.no_answer and difference > self.threshold:
            return AnswerPrediction("", 0, 0, float(p[-1]), difference, answers)
        first = answers[0]
        return AnswerPrediction(first.text, first.begin, first.end, first.probability, difference, answers)


def best_spans(
    scores: Float[np.ndarray, "n 2"], window: Window, *, longest: int, number: int = _N_BEST
) -> list[tuple[float, int, int]]:
    """Returns score, begin and end (characters) of the best spans of a window, best first.

    Args:
        scores: Of each token of the example as start and as end.
        window: Where the passage stands.
        longest: Tokens of a span, at most.
        number: How many.
    """
    n = len(window.offsets)
    start, end = scores[window.first : window.first + n].astype(np.float64).T
    if n == 0:
        return []
    width = min(longest, n)
    padded = np.concatenate([end, np.full(width - 1, -np.inf)])
    sums = start[:, None] + np.lib.stride_tricks.sliding_window_view(padded, width)  # (n, width): last = first + column
    flat = sums.ravel()
    chosen = np.argpartition(-flat, min(number, len(flat) - 1))[:number]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    chosen = chosen[np.isfinite(flat[chosen])]
    firsts, widths = np.divmod(chosen, width)
    begins, ends = window.offsets[firsts, 0], window.offsets[firsts + widths, 1]
    return list(zip(flat[chosen].tolist(), begins.tolist(), ends.tolist(), strict=True))


def _answer_tokens(record: Question, passage: Encoding) -> tuple[int, int] | None:
    """Returns the first and last token of the first answer; None if there is none, or no token holds it."""
    if not record.answers:
        return None
    text, begin = record.answers[0]
    end = begin + len(text)
    is_inside = (passage.offsets[:, 1] > begin) & (passage.offsets[:, 0] < end)
    tokens = np.flatnonzero(is_inside)
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None
