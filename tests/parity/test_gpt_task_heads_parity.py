"""Heads of causal models for labelled data give transformers' scores, loss and gradients, and folders go both ways."""

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import collate
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.trainers import train_byte_bpe
from stemformer.huggingface.load import load_model, read_task_info
from stemformer.huggingface.save import save_model
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.layers import row_parts
from stemformer.models.model import ARCHITECTURES
from stemformer.objectives.objective import LossModule
from stemformer.tasks.examples import make_example
from stemformer.tasks.question_answering import QuestionAnswering
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TokenClassification

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value: the project's bound for float32, whose sums differ in order only
LABELS = ("no", "maybe", "yes")
LENGTHS = [6, 11, 1, 8]
TASKS = {
    "class": (SequenceClassification(TaskConfig("classify"), LABELS), "ForSequenceClassification"),
    "labels": (SequenceClassification(TaskConfig("classify", kind="labels"), LABELS), "ForSequenceClassification"),
    "score": (SequenceClassification(TaskConfig("pair", kind="score")), "ForSequenceClassification"),
    "tag": (TokenClassification(TaskConfig("tag"), LABELS), "ForTokenClassification"),
    "qa": (QuestionAnswering(TaskConfig("qa")), "ForQuestionAnswering"),
}
ANSWERS = {
    "class": np.array([0, 2, 1, 1]),
    "labels": np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], np.float32),
    "score": np.array([0.5, 3.25, -1.0, 2.0], np.float32),
    "tag": [None] * 4,
    "qa": np.array([[2, 4], [0, 0], [1, 1], [3, 8]]),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = train_byte_bpe(["to be or not to be"], vocab_size=260)
    tokenizer.bos_token_id = 0
    return tokenizer


GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
LLAMA_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
SIZES = {"GPT2": GPT2_SIZES, "Llama": LLAMA_SIZES, "Qwen3": {**LLAMA_SIZES, "head_dim": 8}, "Arcee": LLAMA_SIZES}


@pytest.fixture(params=SIZES)
def architecture(request):
    return request.param


@pytest.fixture(params=TASKS)
def case(request, architecture, tmp_path, tokenizer):
    """A task, a model of transformers of which every parameter is random, and the same read from its folder."""
    task, name = TASKS[request.param]
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=tokenizer.vocab_size,
        **SIZES[architecture],
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        num_labels=task.num_labels,
        problem_type=task.problem_type,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout"), 0.0),
    )
    torch.manual_seed(0)
    reference = getattr(transformers, architecture + name)(config)
    # The first token of a text is that of padding, whose embedding gets no gradient otherwise.
    reference.get_input_embeddings().padding_idx = None
    with torch.no_grad():
        for parameter in reference.parameters():  # fresh biases and norms would hide a swapped pair
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    reference.save_pretrained(tmp_path)
    return request.param, task, reference, load_model(tmp_path)


def both_batches(name, tokenizer):
    """The same texts flat for us and as rows of one length for transformers, with their answers."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, tokenizer.vocab_size, n) for n in LENGTHS]
    marked = [np.arange(1, n + 1) if name == "tag" else np.empty(0, np.int64) for n in LENGTHS]
    ours = [
        make_example([text], tokenizer, answer=answer, label_positions=positions, labels=positions % 3)
        for text, answer, positions in zip(texts, ANSWERS[name], marked, strict=True)
    ]
    ids, mask = (torch.zeros(len(texts), 1 + max(LENGTHS), dtype=torch.long) for _ in range(2))
    for row, example in enumerate(ours):
        ids[row, : len(example.input_ids)] = torch.from_numpy(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    theirs = {"input_ids": ids, "attention_mask": mask}
    if name == "tag":
        theirs["labels"] = torch.full_like(ids, -100)
        for row, positions in enumerate(marked):
            theirs["labels"][row, positions] = torch.from_numpy(positions % 3)
    elif name == "qa":
        theirs["start_positions"], theirs["end_positions"] = torch.from_numpy(ANSWERS[name]).unbind(1)
    else:
        theirs["labels"] = torch.from_numpy(ANSWERS[name])
    return collate(ours, range(len(ours))), theirs, mask.bool()


def assert_close(found, expected, largest=None):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= RELATIVE * (largest or expected.abs().max())


def test_scores_loss_and_gradients_are_those_of_transformers(case, tokenizer):
    name, task, reference, model = case
    ours, theirs, mask = both_batches(name, tokenizer)
    expected = reference(**theirs)
    # Transformers lets padding compete as start and end, so its loss of spans is taken text by text.
    rows = [{key: value[i : i + 1] for key, value in theirs.items()} for i in range(len(mask))]
    for row in rows:
        n = int(row["attention_mask"].sum())
        row |= {key: row[key][:, :n] for key in ("input_ids", "attention_mask")}
    theirs_loss = torch.stack([reference(**row).loss for row in rows]).mean() if name == "qa" else expected.loss
    theirs_loss.backward()
    module = LossModule(model.train(), task)
    scores = module(ours, return_logits=True)
    (loss,) = module(ours).values()
    (loss.total / loss.count).backward()
    if name == "tag":
        wanted = expected.logits[theirs["labels"] != -100]
    elif name == "qa":
        wanted = torch.stack([expected.start_logits, expected.end_logits], -1)[mask]
    else:
        wanted = expected.logits
    assert_close(scores, wanted)
    assert (loss.total / loss.count).item() == pytest.approx(theirs_loss.item(), rel=RELATIVE)
    names = ARCHITECTURES[model.config.model_type].parameter_names
    found = to_hugging_face({key: p.grad for key, p in model.named_parameters()}, names, row_parts(model))
    wanted = {key: p.grad for key, p in reference.named_parameters()}
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for key, gradient in wanted.items():
        assert_close(found[key], gradient, largest)


def test_saved_model_is_of_their_class_and_tells_its_task(case, tmp_path):
    _, task, reference, model = case
    metadata = {"labels": task.labels, "problem_type": task.problem_type, "name": task.config.name}
    save_model(model, tmp_path / "again", task=metadata)
    again, loading_info = type(reference).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not loading_info["missing_keys"] and not loading_info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), reference.parameters(), strict=True))
    assert (again.config.architectures, again.config.pad_token_id) == ([type(reference).__name__], 0)
    metadata = read_task_info(tmp_path / "again")
    assert (metadata["head"], metadata["labels"], metadata["name"]) == (task.head, list(task.labels), task.config.name)
    assert [again.config.id2label[i] for i in range(len(task.labels))] == list(task.labels)
