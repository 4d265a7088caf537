"""Heads for labelled data give transformers' scores, loss and gradients, and open there and here with the same numbers."""

import numpy as np
import pytest
import torch
import transformers

from stemformer.data.examples.batch import Example, collate
from stemformer.huggingface.load import load_model, read_task_info
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.model import ARCHITECTURES, make_model
from stemformer.models.modernbert import ModernBertConfig
from stemformer.objectives.objective import LossModule
from stemformer.tasks.multiple_choice import MultipleChoice
from stemformer.tasks.question_answering import QuestionAnswering
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TokenClassification

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
}
CONFIGS = {"Bert": BertConfig(**SIZES), "ModernBert": ModernBertConfig(**SIZES)}
LENGTHS = [7, 12, 5, 9]
LABELS = ("no", "maybe", "yes")
CASES = {
    "class": (SequenceClassification(TaskConfig("classify"), LABELS), "ForSequenceClassification"),
    "labels": (
        SequenceClassification(TaskConfig("classify", kind="labels"), LABELS),
        "ForSequenceClassification",
    ),
    "score": (SequenceClassification(TaskConfig("pair", kind="score")), "ForSequenceClassification"),
    "tag": (TokenClassification(TaskConfig("tag"), LABELS), "ForTokenClassification"),
    "qa": (QuestionAnswering(TaskConfig("qa")), "ForQuestionAnswering"),
    "choice": (MultipleChoice(TaskConfig("choice")), "ForMultipleChoice"),
}
ANSWERS = {
    "class": [0, 2, 1, 1],
    "labels": [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
    "score": [0.5, 3.25, -1.0, 2.0],
    "qa": [[2, 4], [0, 0], [1, 1], [3, 8]],
    "choice": [[0, 0], [1, 1], [0, 1], [1, 0]],
}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(params=CONFIGS)
def architecture(request):
    return request.param


def texts() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 60, n) for n in LENGTHS]
    return ids, [np.where(np.arange(n) < n // 2, 0, 1) for n in LENGTHS]


def our_batch(case):
    ids, segments = texts()
    none = np.empty(0, np.int64)
    examples = []
    for number, (row, segment) in enumerate(zip(ids, segments, strict=True)):
        marked = np.arange(1, len(row) - 1) if case == "tag" else none
        answer = None if case == "tag" else np.array([ANSWERS[case][number]])
        if answer is not None and answer.dtype.kind == "f":
            answer = answer.astype(np.float32)
        examples.append(Example(row, np.array([len(row)]), marked, marked % 3, segment, answer))
    if case == "choice":  # two questions of two options
        examples = [
            Example(
                np.concatenate([a.input_ids, b.input_ids]),
                np.concatenate([a.lengths, b.lengths]),
                none,
                none,
                np.concatenate([a.token_type_ids, b.token_type_ids]),
                np.concatenate([a.sequence_labels, b.sequence_labels]),
            )
            for a, b in (examples[:2], examples[2:])
        ]
    return collate(examples, range(len(examples)))


def their_batch(case, architecture):
    ids, segments = texts()
    longest = max(LENGTHS)
    pad = lambda rows, filler=0: torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])  # noqa: E731
    batch = {
        "input_ids": pad(ids),
        "token_type_ids": pad(segments),
        "attention_mask": pad([np.ones(n, np.int64) for n in LENGTHS]),
    }
    if architecture == "ModernBert":
        del batch["token_type_ids"]
    if case == "tag":
        labels = [np.array([-100, *np.arange(1, n - 1) % 3, -100]) for n in LENGTHS]
        batch["labels"] = pad(labels, -100)
    elif case == "qa":
        batch["start_positions"], batch["end_positions"] = torch.tensor(ANSWERS[case]).unbind(1)
    elif case == "choice":
        batch = {name: value.view(2, 2, -1) for name, value in batch.items()}
        batch["labels"] = torch.tensor([1, 0])
    else:
        batch["labels"] = torch.tensor(ANSWERS[case])
    return batch


def models(case, architecture, folder):
    task, theirs = CASES[case]
    model = make_model(
        CONFIGS[architecture], task.heads, num_labels=task.num_labels, generator=torch.Generator().manual_seed(0)
    )
    for p in model.parameters():  # biases too must matter
        p.data.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    metadata = {"labels": task.labels, "problem_type": task.problem_type, "name": task.config.name}
    save_model(model, folder, task=metadata)
    theirs = getattr(transformers, architecture + theirs)
    return task, model, theirs.from_pretrained(folder, attn_implementation="eager").train()


def test_scores_loss_and_gradients_are_those_of_transformers(case, architecture, tmp_path):
    task, model, reference = models(case, architecture, tmp_path)
    ours, theirs = our_batch(case), their_batch(case, architecture)
    module = LossModule(model, task)
    (loss,) = module(ours).values()
    (loss.total / loss.count).backward()
    expected = reference(**theirs)
    # transformers lets padding compete as start and end; without padding it does not, so its loss of spans is taken text by text
    parts = [expected.loss]
    if case == "qa":
        parts = [
            reference(
                **{name: value[i : i + 1, :n] if value.ndim > 1 else value[i : i + 1] for name, value in theirs.items()}
            ).loss
            for i, n in enumerate(LENGTHS)
        ]
    theirs_loss = torch.stack(parts).mean()
    theirs_loss.backward()
    assert float(loss.total.detach() / loss.count) == pytest.approx(theirs_loss.item(), rel=1e-5)
    scores = module(ours, return_logits=True)
    logits = None if case == "qa" else expected.logits.detach()
    if case == "tag":
        wanted = torch.cat([row[1 : n - 1] for row, n in zip(logits, LENGTHS, strict=True)])
    elif case == "qa":
        both = torch.stack([expected.start_logits, expected.end_logits], -1).detach()
        wanted = torch.cat([row[:n] for row, n in zip(both, LENGTHS, strict=True)])
    else:
        wanted = logits.reshape(scores.shape)
    assert torch.allclose(scores, wanted, atol=1e-5 * float(wanted.abs().max()))
    theirs_by_name = dict(reference.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs_by_name.values() if p.grad is not None)
    names = ARCHITECTURES[model.config.model_type].parameter_names
    gradients = to_hugging_face({name: p.grad for name, p in model.named_parameters()}, names)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, theirs_by_name[name].grad, atol=1e-5 * largest), name


def test_saved_model_tells_its_task_and_opens_again(case, architecture, tmp_path):
    task, model, reference = models(case, architecture, tmp_path)
    metadata = read_task_info(tmp_path)
    assert (metadata["head"], metadata["labels"], metadata["name"]) == (task.head, list(task.labels), task.config.name)
    again = load_model(tmp_path)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    if task.labels:
        assert [reference.config.id2label[i] for i in range(len(LABELS))] == list(LABELS)
