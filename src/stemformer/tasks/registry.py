"""The tasks by name."""

from typing import Any

from stemformer.tasks.multiple_choice import Choice
from stemformer.tasks.question_answering import QuestionAnswering
from stemformer.tasks.sequence_classification import Classify
from stemformer.tasks.token_classification import Tag

TASKS: dict[str, Any] = {"classify": Classify, "pair": Classify, "tag": Tag, "qa": QuestionAnswering, "choice": Choice}
"""`task.name` -> its class, made from settings and labels."""
