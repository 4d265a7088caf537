"""Multiple choice."""

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import collate
from stemformer.data.labelled.multiple_choice import ChoiceQuestion
from stemformer.tasks.multiple_choice import MultipleChoice
from stemformer.tasks.task import TaskConfig

RECORDS = [
    ChoiceQuestion("1", "the king sees", "who", ("a river", "a garden"), 1),
    ChoiceQuestion("2", "a quiet garden", "", ("the old king", "green", "playing"), 0),
    ChoiceQuestion("3", "where", "", ("a", "b"), None),
]
TASK = MultipleChoice(TaskConfig("choice"))


def test_each_option_is_a_pair_with_the_text(tokenizer):
    examples = TASK.encode(RECORDS, tokenizer, max_length=64)
    first = examples.examples[0]
    prompt, *options = (ids.tolist() for ids in tokenizer.encode_ids(["the king sees", "who a river", "who a garden"]))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert first.input_ids.tolist() == [i for option in options for i in (cls, *prompt, sep, *option, sep)]
    assert first.lengths.tolist() == [len(prompt) + len(option) + 3 for option in options]
    assert first.token_type_ids.tolist() == [
        s for option in options for s in [0] * (len(prompt) + 2) + [1] * (len(option) + 1)
    ]
    assert first.sequence_labels.tolist() == [[0, 0], [1, 1]]
    assert examples.counts == {}


def test_truncated_options_are_counted(tokenizer):
    records = [ChoiceQuestion("1", "the king " * 20, "", ("a river", "a garden"), 1)]
    examples = TASK.encode(records, tokenizer, max_length=16)
    assert examples.counts == {"options truncated": 2}
    (example,) = examples.examples
    assert example.lengths.tolist() == [16, 16]
    assert example.input_ids[-3:-1].tolist() == tokenizer.encode_ids(["a garden"])[0].tolist()


def test_loss_is_a_softmax_over_the_options_of_a_question(tokenizer):
    examples = TASK.encode(RECORDS[:2], tokenizer, max_length=64)
    batch = collate(examples.examples, range(2))
    scores = torch.tensor([0.5, 1.0, 2.0, -1.0, 0.0])[:, None]
    loss = TASK.loss_from_scores(scores, batch)
    expected = -torch.log_softmax(scores[:2, 0], 0)[1] - torch.log_softmax(scores[2:, 0], 0)[0]
    assert loss.total.item() == pytest.approx(expected.item())
    assert (loss.count, int(loss.correct)) == (2, 2)
    assert TASK.counts(batch) == {"choice": 2}


def test_most_probable_option_is_chosen(tokenizer):
    examples = TASK.encode(RECORDS, tokenizer, max_length=64)
    scores = [np.array([[float(i == n)] for i in range(len(r.choices))], np.float32) for n, r in enumerate(RECORDS)]
    found = TASK.decode([scores[0], scores[1], scores[1][:2]], examples, RECORDS)
    assert [p.choice for p in found] == [0, 1, 1]
    for prediction, record in zip(found, RECORDS, strict=True):
        assert len(prediction.probabilities) == len(record.choices)
        assert sum(prediction.probabilities) == pytest.approx(1)


def test_questions_may_have_different_numbers_of_options(tokenizer, model_for):
    examples = TASK.encode(RECORDS, tokenizer, max_length=64)
    assert [TASK.num_scores(e) for e in examples.examples] == [2, 3, 2]
    batch = collate(examples.examples[:2], range(2))
    model = model_for(TASK)
    arguments = (batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen)
    states = model.body(*arguments, rows=TASK.scored_positions(batch))
    assert TASK.scores(model, states, batch).shape == (5, 1)


def test_question_without_an_answer_has_no_loss(tokenizer):
    examples = TASK.encode(RECORDS, tokenizer, max_length=64).examples
    assert [e.sequence_labels is None for e in examples] == [False, False, True]
