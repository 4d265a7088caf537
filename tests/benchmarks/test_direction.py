"""Comparison of directions: two joined GPTs, one of which reads backwards, and a complete run with tiny models."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stemformer.data.examples.batch import collate
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TokenClassification

pytestmark = pytest.mark.usefixtures("no_timing")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def direction():
    """The benchmark as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("direction")


@pytest.fixture(scope="module")
def gpts(tiny, tmp_path_factory):
    """Directories of two random GPTs, with the tokenizer and the size of `tiny_bert`; not to be changed."""
    tokenizer = load_tokenizer(tiny / "tok")
    config = GptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        eos_token_id=tokenizer.sep_token_id,
    )
    root = tmp_path_factory.mktemp("gpts")
    for seed, name in enumerate(("forward", "backward")):
        model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(seed))
        save_model(model, root / name, tokenizer)
    return root


@pytest.fixture(scope="module")
def both(direction, gpts):
    """The two bodies, and the tokenizer."""
    (one, tokenizer), (other, _) = (load_model_and_tokenizer(gpts / name, ()) for name in ("forward", "backward"))
    return direction.BothWays(one.body, other.body).eval(), tokenizer


def states_alone(body, ids):
    positions = torch.arange(len(ids))
    return body(torch.tensor(ids), positions, positions * 0, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))


def states_expected(both, ids):
    """Return the state of each token in the text, and in the reversed text."""
    begin, *text = ids
    backwards = states_alone(both.right, [begin, *text[::-1]])
    return states_alone(both.left, ids), torch.cat([backwards[:1], backwards[1:].flip(0)])


def run(body, batch, rows=None):
    return body(
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen, rows=rows
    )


def test_second_model_reads_each_text_backwards(both):
    body, tokenizer = both
    records = [TextExample(texts, "a", {}, "") for texts in (("The old king sees", "a river"), ("garden", "x"))]
    examples = SequenceClassification(TaskConfig("pair"), ("a", "b")).encode(records, tokenizer, max_length=64).examples
    batch = collate([replace(e, token_type_ids=e.token_type_ids * 0) for e in examples], [0, 1])
    with torch.inference_mode():
        found = run(body, batch)
        expected = torch.cat([torch.cat(states_expected(body, e.input_ids.tolist()), 1) for e in examples])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # float32, in a batch and alone


def test_text_is_scored_where_each_model_has_read_all_of_it(direction, both):
    body, tokenizer = both
    task = SequenceClassification(TaskConfig("classify"), ("a", "b"))
    records = [TextExample((text,), "a", {}, "") for text in ("The old king sees", "garden")]
    encoded = task.encode(records, tokenizer, max_length=64)
    examples = direction.with_steps_back(encoded, records, task, tokenizer)
    batch = collate(examples.examples, range(2))
    with torch.inference_mode():
        found = run(body, batch, task.scored_positions(batch))
        for row, example in zip(found, encoded.examples, strict=True):
            forwards, backwards = states_expected(body, example.input_ids.tolist())
            torch.testing.assert_close(row, torch.cat([forwards[-1], backwards[1]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_length", [64, 8], ids=["full", "windows"])
def test_word_is_scored_where_each_model_has_read_all_of_it(direction, both, max_length):
    body, tokenizer = both
    words = ("The", "oldest", "kings", "seek", "(a)", "gardener", "!")
    text, offsets = join_tokens(words)
    records = [TaggedSentence(words, ("O",) * len(words), "", text, offsets)]
    task = TokenClassification(TaskConfig("tag", stride=2), ("O", "B"))
    encoded = task.encode(records, tokenizer, max_length=max_length)
    examples = direction.with_steps_back(encoded, records, task, tokenizer)
    batch = collate(examples.examples, range(len(examples)))
    seen = []
    with torch.inference_mode():
        rows = iter(run(body, batch, task.scored_positions(batch)))
        for example, numbers in zip(encoded.examples, encoded.scored, strict=True):
            forwards, backwards = states_expected(body, example.input_ids.tolist())
            for word, last in zip(numbers.tolist(), example.label_positions.tolist(), strict=True):
                pieces = len(tokenizer.encode(words[word]).ids)
                first = max(1, last - pieces + 1)
                torch.testing.assert_close(
                    next(rows), torch.cat([forwards[last], backwards[first]]), rtol=1e-5, atol=1e-5
                )
                seen.append((word, pieces))
    assert sorted(word for word, _ in seen) == list(range(len(words))) and max(n for _, n in seen) > 2


def test_both_bodies_learn(direction, both, gpts):
    _, tokenizer = both
    task = SequenceClassification(TaskConfig("classify"), ("a", "b"))
    model, _ = load_model_and_tokenizer(gpts / "forward", ["sequence"], num_labels=2, generator=torch.Generator())
    direction.join(model, str(gpts / "backward"), task, seed=0)
    records = [TextExample((text,), "ab"[i], {}, "") for i, text in enumerate(("The old king sees", "garden"))]
    examples = direction.with_steps_back(task.encode(records, tokenizer, max_length=64), records, task, tokenizer)
    batch = collate(examples.examples, range(2))
    states = run(model.body, batch, task.scored_positions(batch))
    task.loss(model, states, batch)["classify"].total.backward()
    parts = dict(model.named_parameters())
    assert parts["heads.sequence.classifier.weight"].shape == (2, 64)
    assert [name for name, p in parts.items() if p.grad is None or not p.grad.isfinite().all()] == []
    for side in ("left", "right"):
        assert parts[f"body.{side}.layers.0.attention.qkv.weight"].grad.abs().max() > 0


def test_comparison_is_reported_and_not_repeated(direction, gpts, tiny_bert, labelled, tmp_path, monkeypatch, capsys):
    arguments = [f"--masked={tiny_bert}", f"--forward={gpts / 'forward'}", f"--backward={gpts / 'backward'}"]
    for task, name in (("classify", "reviews.csv"), ("tag", "tags.conll")):
        arguments += ["--data", task, *(str(labelled / split / name) for split in ("train", "dev"))]
    arguments += [
        f"--out={tmp_path / 'out'}",
        "--examples=16",
        "--steps=2",
        "--batch=4",
        "--max-length=64",
        "--seeds=2",
    ]
    arguments += ["--precision=fp32", "--rates", "1e-3"]
    monkeypatch.setattr(sys, "argv", ["direction.py", *arguments])
    direction.main()
    table = capsys.readouterr().out
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == 2 * 2 * 3 and all(0 <= r["score"] <= 1 for r in runs)
    assert {r["side"]: r["parameters"] for r in runs}["joined"] > 1.9 * min(r["parameters"] for r in runs)
    assert table.count("| joined |") == 2 and "masked above joined by" in table
    assert "<svg" in (tmp_path / "out" / "direction.svg").read_text()
    monkeypatch.setattr(direction.Table, "run", None)
    direction.main()
    assert capsys.readouterr().out == table
    assert len(json.loads((tmp_path / "out" / "direction.json").read_text())["runs"]) == 12


def test_models_of_other_sizes_are_refused(direction, gpts, tiny_bert, tmp_path):
    model, tokenizer = load_model_and_tokenizer(gpts / "forward", ["causal_lm"])
    smaller = make_model(replace(model.config, hidden_size=16), ["causal_lm"], generator=torch.Generator())
    save_model(smaller, tmp_path, tokenizer)
    with pytest.raises(SystemExit, match="differ in vocabulary or size"):
        direction.check_same_shape([str(tiny_bert), str(gpts / "forward"), str(tmp_path)])
