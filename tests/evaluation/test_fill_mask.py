"""Filling blanks with a small random model: what is computed, not whether it makes sense."""

import math

import numpy as np
import pytest
import torch

import stemformer
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation import fill_mask as fill
from stemformer.evaluation.fill_mask import fill_masks, pseudo_log_likelihood
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

TEXT = ["Paris is the capital of France. The cat sat on the mat, and the dog sat on the log.", "cats and dogs and mats"]
TEXTS = ["Paris is the [MASK] of France.", "[MASK] sat on the [MASK].", "the cat [MASK]", "the dog and the [MASK] sat"]
TOKENIZER = train_wordpiece(TEXT, vocab_size=70, min_frequency=1)
POSITIONS = 24
# Several texts in one batch sum in another order than one alone: float32 rounding of log-probabilities around 4.
ROUNDING = 1e-5


def random_model(heads=("masked_lm",), *, vocab_size=TOKENIZER.vocab_size):
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,  # so that the words' probabilities differ
    )
    return make_model(config, heads, generator=torch.Generator().manual_seed(0)).eval()


MODEL = random_model()


@torch.no_grad()
def log_probabilities(ids, model=MODEL):
    """Returns (n, V) for one text, without the special tokens, by the plainest way."""
    row = torch.tensor([TOKENIZER.cls_id, *ids, TOKENIZER.sep_id])
    n = len(row)
    states = model.body(row, torch.arange(n), torch.zeros_like(row), torch.tensor([0, n], dtype=torch.int32), n)
    return model.masked_lm_logits(states)[1:-1].log_softmax(-1)


def ids_of(text):
    return TOKENIZER.encode(text, special=True).ids.tolist()


def masks_of(ids):
    return [place for place, number in enumerate(ids) if number == TOKENIZER.mask_id]


def assert_same_candidates(found, expected):
    assert [c.token for c in found] == [c.token for c in expected]
    assert [c.probability for c in found] == pytest.approx([c.probability for c in expected], rel=ROUNDING)


# ------------------------------------------------------------------------------------------------------- from the whole vocabulary


def test_candidates_are_the_likeliest_of_the_vocabulary_in_order():
    found = fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=7)[0].masks[0]
    ids = ids_of(TEXTS[0])
    p = log_probabilities(ids)[masks_of(ids)[0]].exp()
    best = p.argsort(descending=True)[:7].tolist()
    assert [c.token for c in found] == [TOKENIZER.tokens[i] for i in best]
    assert [c.probability for c in found] == pytest.approx(p[best].tolist(), rel=ROUNDING)


def test_probabilities_of_the_whole_vocabulary_sum_to_one():
    found = fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=TOKENIZER.vocab_size)[0].masks[0]
    assert len({c.token for c in found}) == TOKENIZER.vocab_size
    assert sum(c.probability for c in found) == pytest.approx(1, abs=1e-5)  # 70 float32 numbers


def test_top_k_beyond_the_vocabulary_gives_all_of_it():
    assert len(fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=10_000)[0].masks[0]) == TOKENIZER.vocab_size


def test_each_mask_of_a_text_has_its_own_candidates():
    found = fill_masks([TEXTS[1]], MODEL, TOKENIZER, top_k=1)[0]
    ids = ids_of(TEXTS[1])
    best = log_probabilities(ids)[masks_of(ids)].argmax(-1).tolist()
    assert [blank[0].token for blank in found.masks] == [TOKENIZER.tokens[i] for i in best]


def test_rows_of_the_model_behind_the_vocabulary_are_never_filled_in():
    wide = random_model(vocab_size=TOKENIZER.vocab_size + 58)
    found = fill_masks([TEXTS[0]], wide, TOKENIZER, top_k=10_000)[0].masks[0]
    assert len(found) == TOKENIZER.vocab_size


def test_texts_come_back_in_their_order():
    found = fill_masks(TEXTS, MODEL, TOKENIZER)
    assert [f.text for f in found] == TEXTS and [len(f.masks) for f in found] == [1, 2, 1, 1]


def test_text_in_a_batch_equals_the_text_alone():
    together = fill_masks(TEXTS, MODEL, TOKENIZER)
    for text, found in zip(TEXTS, together, strict=True):
        alone = fill_masks([text], MODEL, TOKENIZER)[0]
        for a, b in zip(found.masks, alone.masks, strict=True):
            assert_same_candidates(a, b)


@pytest.mark.parametrize("at_once", [1, 20, 25])
@pytest.mark.parametrize("among", [None, ["cat", "France"]])
def test_several_batches_equal_one(monkeypatch, at_once, among):
    expected = fill_masks(TEXTS, MODEL, TOKENIZER, among=among)
    monkeypatch.setattr(fill, "_TOKENS_AT_ONCE", at_once)
    found = fill_masks(TEXTS, MODEL, TOKENIZER, among=among)
    assert [f.text for f in found] == TEXTS
    for a, b in zip(found, expected, strict=True):
        for left, right in zip(a.masks, b.masks, strict=True):
            assert_same_candidates(left, right)


def test_batches_hold_no_more_tokens_than_allowed(monkeypatch):
    monkeypatch.setattr(fill, "_TOKENS_AT_ONCE", 20)
    queries = [(np.arange(n), np.array([0])) for n in (5, 5, 5, 9, 3, 30, 1)]
    sizes = [[n - 2 for n in batch.cu_seqlens.diff().tolist()] for batch, _ in fill._batches(queries, TOKENIZER)]
    assert [n for batch in sizes for n in batch] == [5, 5, 5, 9, 3, 30, 1]
    assert all(sum(batch) + 2 * len(batch) <= 20 or len(batch) == 1 for batch in sizes) and len(sizes) < 7


def test_no_graph_for_gradients_is_kept():
    rows = list(fill._log_probabilities([(np.array([5, 6]), np.array([1]))] * 2, MODEL, TOKENIZER))
    assert len(rows) == 2 and not any(row.requires_grad for row in rows)


# ------------------------------------------------------------------------------------------------------------------- filled text


def likely(monkeypatch, *tokens):
    """Makes these tokens the likeliest, one a blank."""
    rows = torch.full((len(tokens), TOKENIZER.vocab_size), -10.0)
    for row, token in zip(rows, tokens, strict=True):
        row[TOKENIZER.id_of(token)] = -0.1
    monkeypatch.setattr(fill, "_log_probabilities", lambda *_: iter([rows]))


@pytest.mark.parametrize(
    ("text", "tokens", "filled"),
    [
        ("the [MASK] sat.", ["cat"], "the cat sat."),
        ("[MASK] and [MASK]", ["cat", "dog"], "cat and dog"),
        ("[MASK][MASK]", ["cat", "##s"], "cats"),
        ("the cat [MASK] sat", ["##s"], "the cats sat"),
        ("the [MASK] [MASK], and", ["cat", "##s"], "the cats, and"),
        ("[MASK]", ["cat"], "cat"),
    ],
)
def test_filled_text_has_the_likeliest_word_in_each_blank(monkeypatch, text, tokens, filled):
    assert TOKENIZER.id_of("##s") is not None
    likely(monkeypatch, *tokens)
    assert fill_masks([text], MODEL, TOKENIZER)[0].filled == filled


# --------------------------------------------------------------------------------------------------------------- among given words


def expected_among(text, words):
    """Returns for each blank {word: share}, each word scored by itself."""
    ids = ids_of(text)
    out = []
    for blank in masks_of(ids):
        scores = []
        for word in words:
            pieces = ids_of(word)
            widened = [*ids[:blank], *[TOKENIZER.mask_id] * len(pieces), *ids[blank + 1 :]]
            log_p = log_probabilities(widened)
            scores.append(sum(log_p[blank + i, piece].item() for i, piece in enumerate(pieces)))
        out.append(dict(zip(words, torch.tensor(scores).softmax(0).tolist(), strict=True)))
    return out


SINGLE, SPLIT = ["cat", "dog", "the"], ["cat", "cats", "doc", "Pat"]


@pytest.mark.parametrize("words", [SINGLE, SPLIT], ids=["one piece", "several pieces"])
@pytest.mark.parametrize("text", TEXTS[:2])
def test_words_to_choose_from_are_scored_by_the_sum_of_their_pieces(text, words):
    lengths = {len(ids_of(word)) for word in words}
    assert lengths == {1} if words is SINGLE else len(lengths) > 1
    found = fill_masks([text], MODEL, TOKENIZER, among=words, top_k=9)[0]
    for blank, expected in zip(found.masks, expected_among(text, words), strict=True):
        assert {c.token: c.probability for c in blank} == pytest.approx(expected, rel=1e-4)  # sums of several roundings
        shares = [c.probability for c in blank]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-6)


def test_top_k_cuts_the_words_to_choose_from():
    every = fill_masks([TEXTS[0]], MODEL, TOKENIZER, among=SPLIT)[0].masks[0]
    assert fill_masks([TEXTS[0]], MODEL, TOKENIZER, among=SPLIT, top_k=2)[0].masks[0] == every[:2]


def test_piece_may_be_named_among_the_words():
    found = fill_masks(["the cat [MASK]"], MODEL, TOKENIZER, among=["##s"])[0]
    assert (found.masks[0][0].token, found.filled) == ("##s", "the cats")


def test_word_named_twice_counts_once():
    found = fill_masks([TEXTS[0]], MODEL, TOKENIZER, among=["cat", "dog", "cat"])[0].masks[0]
    assert sorted(c.token for c in found) == ["cat", "dog"]


# ----------------------------------------------------------------------------------------------------------- pseudo-log-likelihood


@pytest.mark.parametrize("text", ["the cat sat on the mat.", "Paris", "cats and dogs, and the log"])
def test_pseudo_log_likelihood_equals_a_plain_loop(text):
    ids = ids_of(text)
    total = 0.0
    for place, token in enumerate(ids):
        hidden = [*ids[:place], TOKENIZER.mask_id, *ids[place + 1 :]]
        total += log_probabilities(hidden)[place, token].item()
    score = pseudo_log_likelihood([text], MODEL, TOKENIZER)[0]
    assert (score.text, score.num_tokens) == (text, len(ids))
    assert score.log_likelihood == pytest.approx(total, rel=ROUNDING)
    assert score.perplexity == pytest.approx(math.exp(-total / len(ids)), rel=1e-4)  # exp of the rounding above


def test_pseudo_log_likelihood_in_several_batches_equals_one(monkeypatch):
    texts = ["the cat sat on the mat.", "Paris"]
    expected = pseudo_log_likelihood(texts, MODEL, TOKENIZER)
    monkeypatch.setattr(fill, "_TOKENS_AT_ONCE", 20)
    found = pseudo_log_likelihood(texts, MODEL, TOKENIZER)
    assert [s.log_likelihood for s in found] == pytest.approx([s.log_likelihood for s in expected], rel=ROUNDING)


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_text_without_a_token_has_no_likelihood(text):
    with pytest.raises(DataError, match="has no token"):
        pseudo_log_likelihood([text], MODEL, TOKENIZER)


# ---------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("text", ["the cat sat", "", "the [mask] sat", "the MASK sat"])
@pytest.mark.parametrize("among", [None, ["cat"]])
def test_text_without_a_mask_is_refused(text, among):
    with pytest.raises(DataError, match=r"no \[MASK\] in"):
        fill_masks([TEXTS[0], text], MODEL, TOKENIZER, among=among)


def test_longest_text_is_taken():
    assert len(fill_masks([" ".join(["[MASK]"] * (POSITIONS - 2))], MODEL, TOKENIZER)[0].masks) == POSITIONS - 2


def test_too_long_text_is_refused():
    text = " ".join(["[MASK]"] * (POSITIONS - 1))
    for function in (fill_masks, pseudo_log_likelihood):
        with pytest.raises(DataError, match=f"has {POSITIONS - 1} tokens, the model takes {POSITIONS - 2}"):
            function([text], MODEL, TOKENIZER)


def test_text_too_long_for_a_word_of_several_pieces_is_refused():
    text = " ".join(["the"] * (POSITIONS - 3) + ["[MASK]"])
    assert len(fill_masks([text], MODEL, TOKENIZER, among=["cat"])[0].masks) == 1
    with pytest.raises(DataError, match="too long for a word of"):
        fill_masks([text], MODEL, TOKENIZER, among=["cat", "Pat"])


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_refused(top_k):
    with pytest.raises(ConfigError, match=f"top_k is {top_k}"):
        fill_masks(TEXTS, MODEL, TOKENIZER, top_k=top_k)


@pytest.mark.parametrize("word", ["Привет", "", " ", "cat Привет"])
def test_word_that_the_tokenizer_cannot_write_is_refused(word):
    with pytest.raises(ConfigError, match=f"--among {word!r}"):
        fill_masks(TEXTS, MODEL, TOKENIZER, among=["cat", word])


def test_no_word_to_choose_from_is_refused():
    with pytest.raises(ConfigError, match="--among is empty"):
        fill_masks(TEXTS, MODEL, TOKENIZER, among=[])


# --------------------------------------------------------------------------------------------------------------------------- api


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(MODEL, path, TOKENIZER)
    return path


def test_api_result_is_plain_data(folder):
    found = stemformer.fill(TEXTS[:2], model=str(folder), top_k=2, device="cpu")
    expected = fill_masks(TEXTS[:2], MODEL, TOKENIZER, top_k=2)
    for result, f in zip(found, expected, strict=True):
        blanks = [
            {"candidates": [{"token": c.token, "probability": c.probability} for c in blank]} for blank in f.masks
        ]
        assert result == {"text": f.text, "masks": blanks, "filled": f.filled}


def test_api_scores_are_plain_data(folder):
    (found,) = stemformer.fill(["the cat sat"], model=str(folder), score=True, device="cpu")
    (score,) = pseudo_log_likelihood(["the cat sat"], MODEL, TOKENIZER)
    assert found == {
        "text": "the cat sat",
        "num_tokens": score.num_tokens,
        "log_likelihood": score.log_likelihood,
        "perplexity": score.perplexity,
    }


def test_api_without_a_text_is_refused(folder):
    with pytest.raises(DataError, match="no text was given"):
        stemformer.fill([], model=str(folder))


def test_api_refuses_a_model_without_the_head(tmp_path):
    save_model(random_model([]), tmp_path, TOKENIZER)
    with pytest.raises(CheckpointError, match="has no masked-LM head"):
        stemformer.fill(TEXTS, model=str(tmp_path))


def test_bf16_fills_as_fp32_does_but_for_rounding(folder):
    full, half = (
        stemformer.fill(TEXTS[:1], model=str(folder), device="cpu", precision=p, top_k=3) for p in ("fp32", "bf16")
    )
    # bfloat16 keeps 8 bits: logits of about 5 are off by some hundredths, and probabilities by as much of themselves.
    a, b = ({c["token"]: c["probability"] for c in r[0]["masks"][0]["candidates"]} for r in (full, half))
    first = next(iter(a))
    assert b[first] == pytest.approx(a[first], rel=0.1)


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[2]])
def test_probabilities_equal_those_of_transformers_pipeline(folder, text):
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    theirs = pipeline(text, top_k=5)
    (ours,) = stemformer.fill([text], model=str(folder), top_k=5, device="cpu")
    found = ours["masks"][0]["candidates"]
    assert [c["token"] for c in found] == [answer["token_str"] for answer in theirs]
    assert [c["probability"] for c in found] == pytest.approx([answer["score"] for answer in theirs], rel=ROUNDING)
