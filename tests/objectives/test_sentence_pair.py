import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stemformer
from stemformer.data.examples.batch import collate, pad_to_bucket_sizes
from stemformer.data.examples.packing import PackedDataset, RawExample
from stemformer.data.examples.sentence_pairs import SentencePairDataset
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.model import make_model
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.denoising import DenoisingConfig
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import OBJECTIVES, LossModule, make_objective
from stemformer.objectives.sentence_pair import SentencePairs

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value: the project's bound for float32, whose sums differ in order only
V = 60
SPECIAL = SpecialIds(cls=2, sep=3, mask=4)
PAIRS = [
    ("The king sees the river.", "He doesn't follow it, does he?"),
    ("Größe, déjà-vu; 北京是中国的首都。", "No."),
    ("[SEP] in plain text (and [MASK]) is words", "3.14 - 2 = 1.14!"),
]


def build_objective(**config):
    return make_objective(MaskedLmConfig(**{"sentences": "next", **config}), special=SPECIAL, vocab_size=V)


def random_passage(rng, label=None):
    lengths = rng.integers(1, 20, 2)
    n = int(lengths.sum())
    words = rng.random(n) < 0.6
    words[[0, lengths[0]]] = True
    label = int(rng.integers(2)) if label is None else label
    return RawExample(rng.integers(5, V, n), words, lengths, np.array([0, 1]), label, num_dropped_tokens=3)


def random_batch(number, seed=0, **config):
    rng = np.random.default_rng(seed)
    objective = build_objective(**config)
    return collate([objective.corrupt(random_passage(rng), rng) for _ in range(number)], range(number))


def restored(example):
    """Return the ids of an example before corruption."""
    ids = example.input_ids.copy()
    ids[example.label_positions] = example.labels
    return ids


@pytest.mark.parametrize("kind", ["none", "next", "causal"])
def test_padding_a_batch_changes_neither_losses_nor_gradients(kind):
    rng = np.random.default_rng(5)
    objective = make_objective(
        CausalLmConfig() if kind == "causal" else MaskedLmConfig(sentences=kind),
        special=replace(SPECIAL, eos=1),
        vocab_size=V,
    )
    passages = [random_passage(rng) for _ in range(21)]
    if kind != "next":
        nothing = {"starts_document": np.array([True, False]), "ends_document": np.array([False, True])}
        passages = [replace(p, segments=np.zeros(2, np.int64), label=None, **nothing) for p in passages]
    batch = collate([objective.corrupt(passage, rng) for passage in passages], range(21))
    more = pad_to_bucket_sizes(batch)
    assert len(more.input_ids) > len(batch.input_ids) and len(more.cu_seqlens) > len(batch.cu_seqlens)
    assert int(more.cu_seqlens.diff().max()) <= more.max_seqlen and int(more.cu_seqlens[-1]) == len(more.input_ids)
    sizes = {
        "vocab_size": V,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = (
        GptConfig(**sizes, hidden_dropout_prob=0.0)
        if kind == "causal"
        else BertConfig(**sizes, hidden_dropout_prob=0.0)
    )
    module = LossModule(make_model(config, objective.heads, generator=torch.Generator().manual_seed(0)), objective)
    results, counts = [], objective.counts(batch)
    for inputs in (batch, more):
        found = module(inputs)
        module.zero_grad()
        sum(loss.total / counts[name] for name, loss in found.items()).backward()
        results.append((found, [p.grad.clone() for p in module.parameters()]))
    for name, loss in results[0][0].items():
        torch.testing.assert_close(loss.total, results[1][0][name].total)
        assert loss.correct == results[1][0][name].correct
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# Inputs


@pytest.mark.parametrize("pair", PAIRS)
def test_pair_has_the_layout_of_transformers(pair, tmp_path):
    tokenizer = train_wordpiece([text for pair in PAIRS for text in pair], vocab_size=150, min_frequency=1)
    tokenizer.save(tmp_path)
    expected = transformers.BertTokenizer.from_pretrained(tmp_path, split_special_tokens=True)(*pair)
    a, b = (tokenizer.encode(text) for text in pair)
    passage = RawExample(
        np.concatenate([a.ids, b.ids]),
        np.concatenate([a.word_starts, b.word_starts]),
        np.array([len(a.ids), len(b.ids)]),
        np.array([0, 1]),
        label=1,
    )
    special = SpecialIds(cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id)
    pairs = SentencePairs(MaskedLmConfig(sentences="next"), special=special, vocab_size=tokenizer.vocab_size)
    example = pairs.corrupt(passage, np.random.default_rng(0))
    assert restored(example).tolist() == expected["input_ids"]
    assert example.token_type_ids.tolist() == expected["token_type_ids"]
    assert example.lengths.tolist() == [len(expected["input_ids"])]  # A and B see each other


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_special_tokens_of_a_pair_are_never_masked_or_scored(unit):
    rng = np.random.default_rng(1)
    objective = build_objective(unit=unit, mask_rate=0.9)
    for _ in range(100):
        passage = random_passage(rng)
        example = objective.corrupt(passage, rng)
        a, b = passage.lengths.tolist()
        special = [0, a + 1, a + b + 2]
        assert example.input_ids[special].tolist() == [SPECIAL.cls, SPECIAL.sep, SPECIAL.sep]
        assert not np.isin(special, example.label_positions).any()
        assert len(example.input_ids) == a + b + 3


def test_span_never_crosses_from_one_text_into_the_other():
    rng = np.random.default_rng(2)
    objective = build_objective(unit="span", mask_rate=0.5, mask_replace_prob=1.0, random_replace_prob=0.0)
    for _ in range(100):
        passage = random_passage(rng)
        example = objective.corrupt(passage, rng)
        assert example.input_ids[passage.lengths[0] + 1] == SPECIAL.sep
        np.testing.assert_array_equal(np.delete(restored(example), [0, passage.lengths[0] + 1, -1]), passage.tokens)


def test_label_and_dropped_tokens_reach_the_batch():
    rng = np.random.default_rng(3)
    objective = build_objective()
    examples = [objective.corrupt(random_passage(rng, label), rng) for label in (1, 0, 0, 1)]
    batch = collate(examples, range(4))
    assert batch.sequence_labels.tolist() == [1, 0, 0, 1]
    assert batch.num_dropped_tokens == 12


# Losses


@pytest.mark.parametrize(("sentences", "loss_name"), [("next", "next_sentence"), ("order", "sentence_order")])
def test_counts_are_known_before_the_forward(sentences, loss_name):
    batch = random_batch(7, sentences=sentences)
    objective = build_objective(sentences=sentences)
    model = make_model(small(), objective.heads, generator=torch.Generator().manual_seed(0))
    known = objective.counts(batch)
    assert known == {"masked_lm": len(batch.labels), loss_name: 7}
    assert {name: loss.count for name, loss in LossModule(model, objective)(batch).items()} == known


def small(**options):
    return BertConfig(
        vocab_size=V,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        **options,
    )


def both_sides(folder):
    """Return our model and the same one of transformers, every parameter random, without dropout."""
    model = make_model(small(), ["masked_lm", "next_sentence"], generator=torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # initial biases and norms would hide a swapped pair
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_model(model, folder)
    return model, transformers.BertForPreTraining.from_pretrained(folder).eval()


def arguments(batch):
    """Return the arguments of transformers for a batch of one pair, which needs no padding."""
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.label_positions] = batch.labels
    return {
        "input_ids": batch.input_ids[None],
        "token_type_ids": batch.token_type_ids[None],
        "labels": labels[None],
        "next_sentence_label": batch.sequence_labels,
    }


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_of_a_pair_equal_theirs(seed, tmp_path):
    ours, theirs = both_sides(tmp_path)
    batch = random_batch(1, seed=seed)
    losses = LossModule(ours, build_objective())(batch)
    assert list(losses) == ["masked_lm", "next_sentence"]
    loss = sum(part.total / part.count for part in losses.values())
    expected_loss = theirs(**arguments(batch)).loss
    assert loss.item() == pytest.approx(expected_loss.item(), rel=RELATIVE)
    loss.backward()
    expected_loss.backward()
    found = to_hugging_face({name: p.grad for name, p in ours.named_parameters()})
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert set(found) == set(expected)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    pooler = expected["bert.pooler.dense.weight"].abs().max().item()
    assert pooler > 1e-3 * largest  # the sentence-pair loss contributes to the gradients
    wrong = {name: (found[name] - expected[name]).abs().max().item() / largest for name in found}
    assert {name: share for name, share in wrong.items() if share > RELATIVE} == {}


def test_losses_of_a_batch_are_the_sums_of_theirs_one_at_a_time(tmp_path):
    ours, theirs = both_sides(tmp_path)
    rng = np.random.default_rng(5)
    examples = [build_objective().corrupt(random_passage(rng), rng) for _ in range(6)]
    expected = {"masked_lm": 0.0, "next_sentence": 0.0}
    right = {"masked_lm": 0, "next_sentence": 0}
    with torch.no_grad():
        found = LossModule(ours, build_objective())(collate(examples, range(6)))
        for example in examples:
            batch = collate([example], [0])
            out = theirs(**arguments(batch))
            words = out.prediction_logits[0, batch.label_positions]
            for name, logits, labels in (
                ("masked_lm", words, batch.labels),
                ("next_sentence", out.seq_relationship_logits, batch.sequence_labels),
            ):
                expected[name] += F.cross_entropy(logits, labels, reduction="sum").item()
                right[name] += int((logits.argmax(-1) == labels).sum())
    assert {name: loss.total.item() for name, loss in found.items()} == pytest.approx(expected, rel=RELATIVE)
    assert {name: int(loss.correct) for name, loss in found.items()} == right


# Registry


def test_each_registered_name_is_that_of_a_config():
    configs = [*(MaskedLmConfig(sentences=name) for name in ("none", "next", "order")), CausalLmConfig()]
    configs.append(DenoisingConfig())
    assert [config.name for config in configs] == list(OBJECTIVES)
    for config in configs:
        objective = make_objective(config, special=SpecialIds(cls=2, sep=3, mask=4, eos=3), vocab_size=9)
        assert isinstance(objective, OBJECTIVES[config.name])


@pytest.mark.parametrize("sentences", ["none", "next", "order"])
def test_each_objective_has_its_heads_examples_and_losses(sentences, tiny):
    objective = build_objective(sentences=sentences)
    shards = open_shards(tiny / "data")
    examples = objective.make_examples(shards, 32)
    special = SpecialIds(cls=2, sep=3, mask=4)
    objective = make_objective(objective.config, special=special, vocab_size=shards.vocab_size)
    rng = np.random.default_rng(0)
    batch = collate([objective.corrupt(examples.get_example(0, rng), rng)], [0])
    questions = {"none": [], "next": ["next_sentence"], "order": ["sentence_order"]}[sentences]
    assert isinstance(objective, MaskedLm if sentences == "none" else SentencePairs)
    assert isinstance(examples, PackedDataset if sentences == "none" else SentencePairDataset)
    assert objective.heads == (("masked_lm",) if sentences == "none" else ("masked_lm", "next_sentence"))
    assert list(objective.counts(batch)) == ["masked_lm", *questions]


def test_order_swaps_its_pairs_and_next_replaces_texts(tiny):
    shards = open_shards(tiny / "data")
    dropped = {}
    for sentences in ("next", "order"):
        examples = build_objective(sentences=sentences, short_seq_prob=0.0).make_examples(shards, 64)
        first = [examples.get_example(i, np.random.default_rng(i)) for i in range(40)]
        dropped[sentences] = sum(passage.num_dropped_tokens for passage in first)
    assert dropped["order"] == 0 < dropped["next"]


# Training run


@pytest.fixture(scope="module")
def run(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "run"
    sizes = ["model.hidden_size=32", "model.intermediate_size=64", "batch.size=4", "batch.sequence_length=32"]
    stemformer.pretrain(
        "bert_tiny",
        data=str(tiny / "data"),
        out=str(out),
        settings=[*sizes, "objective.sentences=next", "evaluation.num_examples=8", "evaluation.num_cloze_examples=4"],
        steps=3,
        precision="fp32",
        device="cpu",
    )
    return out


def test_saved_model_has_the_pre_training_architecture(run):
    assert json.loads((run / "final/config.json").read_text())["architectures"] == ["BertForPreTraining"]


def test_transformers_opens_the_full_saved_model_with_the_same_logits(run, tiny):
    theirs, loading_info = transformers.BertForPreTraining.from_pretrained(run / "final", output_loading_info=True)
    assert {name: value for name, value in loading_info.items() if value} == {}
    ours = load_model(run)
    shards = open_shards(tiny / "data")
    objective = make_objective(
        MaskedLmConfig(sentences="next"), special=SpecialIds(cls=2, sep=3, mask=4), vocab_size=shards.vocab_size
    )
    examples = objective.make_examples(shards, 32)
    with torch.no_grad():
        for number in range(5):
            rng = np.random.default_rng(number)
            batch = collate([objective.corrupt(examples.get_example(number, rng), rng)], [number])
            states = ours.body(
                batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen
            )
            expected = theirs.eval()(**arguments(batch)).seq_relationship_logits
            found = ours.heads["next_sentence"](states[:1])
            torch.testing.assert_close(found, expected, rtol=0, atol=RELATIVE * expected.abs().max().item())
