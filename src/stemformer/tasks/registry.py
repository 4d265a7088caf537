"""The tasks by name."""

from typing import Any

from stemformer.tasks.choice import Choice
from stemformer.tasks.classify import Classify
from stemformer.tasks.span_qa import QuestionAnswering
from stemformer.tasks.tagging import Tag

__all__ = ["TASKS"]

TASKS: dict[str, Any] = {"classify": Classify, "pair": Classify, "tag": Tag, "qa": QuestionAnswering, "choice": Choice}
"""`task.name` -> its class, made from settings and labels."""
