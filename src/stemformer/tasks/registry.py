"""Registry of the labelled tasks."""

from stemformer.tasks.multiple_choice import MultipleChoice
from stemformer.tasks.question_answering import QuestionAnswering
from stemformer.tasks.seq2seq import Seq2Seq
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import Task
from stemformer.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "classify": SequenceClassification,
    "pair": SequenceClassification,
    "tag": TokenClassification,
    "qa": QuestionAnswering,
    "choice": MultipleChoice,
    "seq2seq": Seq2Seq,
}
"""Task class by `task.name`."""
