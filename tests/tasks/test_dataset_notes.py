"""Notes about labelled data."""

import pytest

from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.tasks.dataset_notes import note_lengths
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig


@pytest.mark.parametrize("long_texts", ["windows", "cut", "head_tail"])
def test_lengths_before_cutting_are_noted_where_texts_are_cut(long_texts):
    tokenizer = train_wordpiece(["the king sees the river"] * 3, vocab_size=60)
    task = SequenceClassification(TaskConfig("classify", long_texts=long_texts), ("a", "b"))
    records = [TextExample(("the king " * n,), "a", {}, "here") for n in (1, 2, 9)]
    [note] = note_lengths("dev data", task.encode(records, tokenizer, max_length=8), 8)
    assert note == "dev data: length before cutting: mean 8 tokens, longest 18; max length 8 with special tokens"
    assert list(note_lengths("dev data", task.encode(records[:2], tokenizer, max_length=8), 8)) == []
