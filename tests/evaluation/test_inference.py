"""Predictions do not depend on batches, and are in input order."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stemformer.data.examples.batch import collate
from stemformer.data.labelled.multiple_choice import ChoiceQuestion
from stemformer.data.labelled.question_answering import Question
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.evaluation import inference
from stemformer.evaluation.inference import even_slices, predict_scores
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.objectives.objective import LossModule
from stemformer.tasks.registry import TASKS
from stemformer.tasks.task import TaskConfig

CPU = torch.device("cpu")
LABELS = ("no", "maybe", "yes")
KINDS = {
    "class": TaskConfig("classify"),
    "labels": TaskConfig("classify", kind="labels"),
    "score": TaskConfig("classify", kind="score"),
    "pair": TaskConfig("pair"),
    "tag": TaskConfig("tag", stride=4),
    "qa": TaskConfig("qa", stride=4),
    "choice": TaskConfig("choice"),
}


@pytest.fixture(scope="module")
def text(make_text):
    return make_text(3, 12).splitlines()


@pytest.fixture(scope="module")
def tokenizer(make_text):
    return train_wordpiece(make_text(0).splitlines(), vocab_size=200)


def make_records(kind, text):
    rng = np.random.default_rng(0)
    if kind == "tag":
        words = [tuple(line.split()) for line in text]
        return [TaggedSentence(w, tuple(rng.choice(LABELS, len(w))), "", *join_tokens(w)) for w in words]
    if kind == "qa":
        out = []
        for line in text:
            begin = line.index(" ", int(rng.integers(len(line) // 2))) + 1
            answer = line[begin : begin + 8]
            out.append(Question("", "The old king?", line, ((answer, begin),), "", False, (answer,)))
        return out
    if kind == "choice":
        sizes = rng.integers(2, 5, len(text)).tolist()
        return [
            ChoiceQuestion("", t, "", tuple(text[:n]), int(rng.integers(n))) for t, n in zip(text, sizes, strict=True)
        ]
    answers = {
        "labels": lambda: tuple(rng.choice(LABELS, int(rng.integers(4)), replace=False)),
        "score": lambda: float(rng.normal()),
    }
    answer = answers.get(kind, lambda: str(rng.choice(LABELS)))
    others = text[1:] + text[:1] if kind == "pair" else None
    return [TextExample((t, others[i]) if others else (t,), answer(), {}, "") for i, t in enumerate(text)]


@pytest.fixture(params=KINDS)
def case(request, text, tokenizer):
    config = KINDS[request.param]
    labels = () if request.param in ("score", "qa", "choice") else LABELS
    task = TASKS[config.name](config, labels)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, initializer_range=0.3, **sizes)
    model = make_model(bert, task.heads, num_labels=task.num_labels, generator=torch.Generator().manual_seed(0))
    return task, LossModule(model.eval(), task), make_records(request.param, text)


def predict(case, tokenizer, records, **options):
    task, module, _ = case
    examples = task.encode(records, tokenizer, max_length=32)
    scores, loss = predict_scores(module, task, examples, device=CPU, **options)
    return scores, loss, task.decode(scores, examples, records)


def test_batches_do_not_change_scores(case, tokenizer, monkeypatch):
    together, loss, _ = predict(case, tokenizer, case[2])
    monkeypatch.setattr(inference, "BATCH_TOKENS", 1)
    alone, mean, _ = predict(case, tokenizer, case[2])
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))  # fp32, other matrix shapes
    assert loss == pytest.approx(mean, rel=1e-5)


class ProductShapes(TorchDispatchMode):
    """Collects the shapes of matrix products in bfloat16, for each of which oneDNN keeps a kernel."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        if "mm" in operator.name() and all(x.dtype == torch.bfloat16 for x in tensors):
            self.found.add((operator.name(), *(tuple(x.shape) for x in tensors)))
        return operator(*arguments, **(keywords or {}))


@pytest.mark.parametrize("case", ["class", "tag"], indirect=True)
def test_number_of_different_products_in_bf16_does_not_grow_with_the_data(case, tokenizer, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_TOKENS", 128)
    task, module, records = case
    rng = np.random.default_rng(0)
    numbers = []
    with torch.autocast("cpu", dtype=torch.bfloat16), ProductShapes() as shapes:
        for i in range(30):
            chosen = [records[i] for i in rng.integers(len(records), size=int(rng.integers(20, 40)))]
            predict((task, module, None), tokenizer, chosen)
            if i in (9, 29):
                numbers.append(len(shapes.found))
    assert 0 < numbers[1] <= 1.35 * numbers[0] <= 250


def test_slices_are_few_and_of_equal_size():
    sizes = np.random.default_rng(0).integers(1, 20, 500).tolist()
    slices = list(even_slices(sizes, 256))
    assert len(slices) == -(-sum(sizes) // 256)
    assert [i for part in slices for i in range(500)[part]] == list(range(500))
    tokens = [sum(sizes[part]) for part in slices]
    assert max(tokens) - min(tokens) < 40 and max(tokens) < 256 + 20
    assert list(even_slices([300, 5, 400], 256)) == [slice(0, 1), slice(1, 3)]
    assert list(even_slices([7], 256)) == [slice(0, 1)]


def test_predictions_are_in_input_order(case, tokenizer):
    records = case[2]
    order = np.random.default_rng(1).permutation(len(records)).tolist()
    _, _, expected = predict(case, tokenizer, records)
    _, _, mixed = predict(case, tokenizer, [records[i] for i in order])
    for position, number in enumerate(order):
        a, b = mixed[position], expected[number]
        for name in ("label", "tags", "text", "choice"):
            assert getattr(a, name, None) == getattr(b, name, None)
        p, q = (np.atleast_1d(getattr(x, "probabilities", None) or getattr(x, "score", 0.0)) for x in (a, b))
        np.testing.assert_allclose(p, q, atol=1e-5)


def test_loss_of_a_batch_is_the_mean_of_its_examples(case, tokenizer):
    task, module, records = case
    examples = task.encode(records, tokenizer, max_length=32)
    losses = [module(collate([e], [i]))[task.config.name] for i, e in enumerate(examples.examples)]
    batch = collate(examples.examples, range(len(examples)))
    together = module(batch)[task.config.name]
    assert together.count == sum(loss.count for loss in losses) == task.counts(batch)[task.config.name]
    assert together.total.item() == pytest.approx(sum(loss.total.item() for loss in losses), rel=1e-5)
    if together.correct is not None:
        assert int(together.correct) == sum(int(loss.correct) for loss in losses)


def test_all_examples_are_reported(case, tokenizer, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_TOKENS", 64)
    done = []
    scores, *_ = predict(case, tokenizer, case[2], on_examples=done.append)
    assert sum(done) == len(scores)
    assert len(done) > 1


def test_examples_without_labels_have_no_loss(tokenizer):
    task = TASKS["classify"](TaskConfig("classify"), LABELS)
    bert = BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = make_model(bert, task.heads, num_labels=3, generator=torch.Generator().manual_seed(0)).eval()
    records = [
        TextExample((t,), label, {}, "") for t, label in (("The old", None), ("king", "yes"), ("river sees", "new"))
    ]
    examples = task.encode(records, tokenizer, max_length=32)
    _, some = predict_scores(LossModule(model, task), task, examples, device=CPU)
    known = task.encode(records[1:2], tokenizer, max_length=32)
    _, one = predict_scores(LossModule(model, task), task, known, device=CPU)
    assert some == pytest.approx(one, rel=1e-5)
    none = task.encode(records[:1], tokenizer, max_length=32)
    assert predict_scores(LossModule(model, task), task, none, device=CPU)[1] is None


def test_main_metric_is_among_the_scores(case, tokenizer):
    task, _, records = case
    _, _, predictions = predict(case, tokenizer, records)
    metrics, _ = task.compute_metrics(predictions, records)
    assert isinstance(metrics[task.main_metric], float)
