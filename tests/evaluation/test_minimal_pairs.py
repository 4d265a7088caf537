"""Minimal pairs: reading of sets, and scores of sentences next to an independent scorer made with transformers."""

import gzip
import json

import numpy as np
import pytest
import torch

from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import DataError
from stemformer.evaluation.few_shot import scoring
from stemformer.evaluation.few_shot.scoring import score_texts
from stemformer.evaluation.minimal_pairs import PUBLISHED_BLIMP, count_correct, encode_pairs, read_minimal_pairs
from stemformer.huggingface.load import load_model_and_tokenizer

GOOD, BAD = "sentence_good", "sentence_bad"
PAIRS = [
    ("The old king sees the river.", "The old king see the river."),
    ("A teacher follows the children.", "A teacher follow the children."),
    ("Who paints the quiet garden?", "Who paints the garden quiet and who forgets the unforgettable?"),
    ("The river.", "River."),
]
SENTENCES = [sentence for pair in PAIRS for sentence in pair]


def write_set(file, pairs=PAIRS, **columns):
    rows = [{GOOD: good, BAD: bad, **columns} for good, bad in pairs]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# Reading.


def test_sets_are_read_with_their_field_and_phenomenon(tmp_path):
    write_set(tmp_path / "data" / "b.jsonl", field="syntax/semantics", linguistics_term="binding")
    write_set(tmp_path / "data" / "a.jsonl")
    (tmp_path / "README.md").write_text("# Sets")
    first, second = read_minimal_pairs(str(tmp_path), limit=3)
    assert (first.name, first.field, first.phenomenon) == ("a", "", "")
    assert (second.name, second.field, second.phenomenon) == ("b", "syntax_semantics", "binding")
    assert first.sentences == PAIRS[:3] and len(first.locations) == 3


def test_compressed_set_is_read(tmp_path):
    write_set(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.jsonl").unlink()
    [only] = read_minimal_pairs(str(tmp_path))
    assert (only.name, only.sentences) == ("a", PAIRS)


def test_sets_of_the_same_name_are_refused(tmp_path):
    for name in ("0.jsonl", "a.jsonl", "b/a.jsonl"):
        write_set(tmp_path / name)
    assert [pairs.name for pairs in read_minimal_pairs(str(tmp_path))] == ["0", "a", "b/a"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    with pytest.raises(DataError, match=r"/a\.jsonl and .*/a\.jsonl\.gz are sets of the same name\. Remove or rename"):
        read_minimal_pairs(str(tmp_path))


def test_directory_without_sets_is_refused(tmp_path):
    (tmp_path / "sets.txt").write_text("none")
    with pytest.raises(DataError, match=r"holds no set of minimal pairs\. Pass the directory with BLiMP's"):
        read_minimal_pairs(str(tmp_path))
    with pytest.raises(DataError, match=r"sets\.txt is not a directory\. Pass the directory"):
        read_minimal_pairs(str(tmp_path / "sets.txt"))


@pytest.mark.parametrize("missing", [GOOD, BAD])
@pytest.mark.parametrize("value", [..., None, 3])
def test_set_with_a_missing_sentence_is_refused(tmp_path, missing, value):
    rows = [dict(zip((GOOD, BAD), pair, strict=True)) for pair in PAIRS]
    rows[2][missing] = value
    text = "".join(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=rf"a\.jsonl:3: No text under '{missing}'\. Keys: '"):
        read_minimal_pairs(str(tmp_path))


@pytest.mark.parametrize(("sentence", "tokens"), [("", "0"), (" \n", "0"), ("the king " * 40, "80")])
def test_sentence_that_has_no_score_is_refused(tmp_path, tiny_bert, sentence, tokens):
    write_set(tmp_path / "a.jsonl", [*PAIRS, ("The king sees.", sentence)])
    [pairs] = read_minimal_pairs(str(tmp_path))
    tokenizer = load_model_and_tokenizer(tiny_bert)[1]
    with pytest.raises(DataError, match=rf"a\.jsonl:5: sentence_bad has {tokens} tokens, expected 1 to 62\."):
        encode_pairs(pairs, tokenizer, max_tokens=62)


def test_published_results_have_their_source():
    assert all(set(row) == {"system", "words", "scoring", "accuracy", "source"} for row in PUBLISHED_BLIMP)
    assert all(50 < row["accuracy"] < 100 for row in PUBLISHED_BLIMP)


# Scores. Sums of about 10 log-probabilities around 6, in float32.
TOLERANCE = 1e-4


def with_noise(model):
    """Make every parameter random: initial biases and norms would hide a swapped pair."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def their_gpt(bpe, tmp_path_factory):
    """A random GPT-2 of transformers with a tokenizer, and its folder."""
    transformers = pytest.importorskip("transformers")
    end = bpe.token_to_id("<|endoftext|>")
    config = transformers.GPT2Config(
        vocab_size=bpe.vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=end, eos_token_id=end
    )
    model = with_noise(transformers.GPT2LMHeadModel(config))
    folder = tmp_path_factory.mktemp("gpt")
    model.save_pretrained(folder)
    bpe.save(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder), folder


@pytest.fixture(scope="module")
def their_bert(make_text, tmp_path_factory):
    """A random BERT of transformers with a tokenizer that splits words, and its folder."""
    transformers = pytest.importorskip("transformers")
    tokenizer = train_wordpiece(make_text().splitlines(), vocab_size=90, lowercase=True)
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=tokenizer.token_to_id("[PAD]"),
    )  # fmt: skip
    model = with_noise(transformers.BertForMaskedLM(config))
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder), folder


@torch.no_grad()
def causal_score(model, tokenizer, text):
    """Sum the log-probabilities of a text's tokens after the end-of-text token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    log_p = model(torch.tensor([[model.config.eos_token_id, *ids]])).logits[0].double().log_softmax(-1)
    return sum(float(log_p[position, token]) for position, token in enumerate(ids))


@torch.no_grad()
def masked_score(model, tokenizer, text, *, pll):
    """Sum the log-probabilities of a text's tokens, one masked copy at a time."""
    encoded = tokenizer(text)
    ids, words = encoded["input_ids"], encoded.word_ids()
    total = 0.0
    for position, word in enumerate(words):
        if word is None:
            continue
        copy = list(ids)
        for other, its_word in enumerate(words):
            if other == position or (pll == "within_word_l2r" and other > position and its_word == word):
                copy[other] = tokenizer.mask_token_id
        total += float(model(torch.tensor([copy])).logits[0, position].double().log_softmax(-1)[ids[position]])
    return total


def our_scores(folder, texts, **options):
    model, tokenizer = load_model_and_tokenizer(folder)
    return score_texts(model, tokenizer, tokenizer.encode_batch(texts), **options)


def test_causal_scores_equal_those_of_an_independent_scorer(their_gpt):
    model, tokenizer, folder = their_gpt
    expected = [causal_score(model, tokenizer, text) for text in SENTENCES]
    assert our_scores(folder, SENTENCES) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("pll", ["within_word_l2r", "original"])
def test_masked_scores_equal_those_of_an_independent_scorer(their_bert, pll):
    model, tokenizer, folder = their_bert
    # The two differ only if words have several pieces.
    assert len(tokenizer.tokenize(SENTENCES[0])) > len(SENTENCES[0].split()) + 1
    expected = [masked_score(model, tokenizer, text, pll=pll) for text in SENTENCES]
    assert our_scores(folder, SENTENCES, pll=pll) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("fixture", ["their_gpt", "their_bert"])
def test_scores_do_not_depend_on_batches_or_order(fixture, request, monkeypatch):
    folder = request.getfixturevalue(fixture)[2]
    expected = our_scores(folder, SENTENCES)
    order = np.random.default_rng(0).permutation(len(SENTENCES)).tolist()
    assert our_scores(folder, [SENTENCES[i] for i in order]) == pytest.approx([expected[i] for i in order], abs=1e-5)
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 20)
    monkeypatch.setattr(scoring, "_BLOCK_TOKENS", 100)
    assert our_scores(folder, SENTENCES) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("fixture", ["their_gpt", "their_bert"])
def test_sentences_of_equal_tokens_have_exactly_equal_scores(fixture, request, monkeypatch):
    folder = request.getfixturevalue(fixture)[2]
    # In batches of one text, scores of equal texts would differ by rounding if they were computed twice.
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 30)
    texts = ["The old king.", *SENTENCES, "The old king."]
    scores = our_scores(folder, texts)
    assert scores[0] == scores[-1]


def test_tie_is_counted_and_wrong(their_bert, tmp_path):
    model, tokenizer = load_model_and_tokenizer(their_bert[2])
    # The vocabulary lacks both words.
    write_set(tmp_path / "a.jsonl", [PAIRS[0], PAIRS[0][::-1], ("The king \u0416.", "The king \u0414.")])
    [pairs] = read_minimal_pairs(str(tmp_path))
    counts = count_correct(model, tokenizer, encode_pairs(pairs, tokenizer, max_tokens=62), ["within_word_l2r"])
    assert counts == {"correct": {"within_word_l2r": 1}, "ties": {"within_word_l2r": 1}}
