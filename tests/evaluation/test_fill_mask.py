"""Fill-mask with a small random model: the computation, not the quality of predictions."""

import math
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest
import torch

import stemformer
from stemformer.data.tokenization.tokenizer import SPECIAL_TOKENS
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation import fill_mask
from stemformer.evaluation.few_shot import scoring
from stemformer.evaluation.fill_mask import fill_masks
from stemformer.evaluation.inference import hidden_states
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
        initializer_range=0.5,  # large, so that probabilities differ
    )
    return make_model(config, heads, generator=torch.Generator().manual_seed(0)).eval()


MODEL = random_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(MODEL, path, TOKENIZER)
    return path


@torch.no_grad()
def log_probabilities(ids, model=MODEL):
    """Return log-probabilities (n, V) of one text, computed naively, without special tokens."""
    row = torch.tensor([TOKENIZER.cls_token_id, *ids, TOKENIZER.sep_token_id])
    n = len(row)
    states = model.body(row, torch.arange(n), torch.zeros_like(row), torch.tensor([0, n], dtype=torch.int32), n)
    return model.lm_logits(states)[1:-1].log_softmax(-1)


def encode(text):
    return TOKENIZER.encode(text, parse_special_tokens=True).ids.tolist()


def mask_positions(ids):
    return [i for i, token in enumerate(ids) if token == TOKENIZER.mask_token_id]


def assert_same_candidates(found, expected):
    assert [c.token for c in found] == [c.token for c in expected]
    assert [c.probability for c in found] == pytest.approx([c.probability for c in expected], rel=ROUNDING)


# ------------------------------------------------------------------------------------------------------- From the vocabulary


@pytest.mark.parametrize("pieces", [False, True])
def test_candidates_are_the_most_likely_of_the_vocabulary_in_order(pieces):
    found = fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=7, pieces=pieces)[0].masks[0]
    ids = encode(TEXTS[0])
    p = log_probabilities(ids)[mask_positions(ids)[0]].exp()
    best = [i for i in p.argsort(descending=True).tolist() if pieces or TOKENIZER.is_full_word[i]][:7]
    assert [c.token for c in found] == [TOKENIZER.tokens[i] for i in best]
    assert [c.probability for c in found] == pytest.approx(p[best].tolist(), rel=ROUNDING)


def test_probabilities_over_the_vocabulary_sum_to_one():
    found = fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=TOKENIZER.vocab_size, pieces=True)[0].masks[0]
    assert len({c.token for c in found}) == TOKENIZER.vocab_size
    assert sum(c.probability for c in found) == pytest.approx(1, abs=1e-5)  # 70 float32 numbers


def test_top_k_beyond_the_vocabulary_gives_all_of_it():
    assert len(fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=10_000, pieces=True)[0].masks[0]) == TOKENIZER.vocab_size


def test_pieces_and_special_tokens_are_left_out_by_default():
    words = {c.token for c in fill_masks([TEXTS[0]], MODEL, TOKENIZER, top_k=10_000)[0].masks[0]}
    assert words == {t for t in TOKENIZER.tokens if not t.startswith("##")} - set(SPECIAL_TOKENS)


def test_each_mask_of_a_text_has_its_own_candidates():
    found = fill_masks([TEXTS[1]], MODEL, TOKENIZER, top_k=1, pieces=True)[0]
    ids = encode(TEXTS[1])
    best = log_probabilities(ids)[mask_positions(ids)].argmax(-1).tolist()
    assert [blank[0].token for blank in found.masks] == [TOKENIZER.tokens[i] for i in best]


def test_padding_rows_of_the_embedding_are_never_predicted():
    wide = random_model(vocab_size=TOKENIZER.vocab_size + 58)
    found = fill_masks([TEXTS[0]], wide, TOKENIZER, top_k=10_000, pieces=True)[0].masks[0]
    assert len(found) == TOKENIZER.vocab_size


def test_results_are_in_input_order():
    found = fill_masks(TEXTS, MODEL, TOKENIZER)
    assert [f.text for f in found] == TEXTS and [len(f.masks) for f in found] == [1, 2, 1, 1]


def test_text_in_a_batch_equals_the_text_alone():
    together = fill_masks(TEXTS, MODEL, TOKENIZER)
    for text, found in zip(TEXTS, together, strict=True):
        alone = fill_masks([text], MODEL, TOKENIZER)[0]
        for a, b in zip(found.masks, alone.masks, strict=True):
            assert_same_candidates(a, b)


@pytest.mark.parametrize("at_once", [1, 20, 25])
@pytest.mark.parametrize("candidates", [None, ["cat", "France"]])
def test_several_batches_equal_one(monkeypatch, at_once, candidates):
    expected = fill_masks(TEXTS, MODEL, TOKENIZER, candidates=candidates)
    for module in (fill_mask, scoring):
        monkeypatch.setattr(module, "_BATCH_TOKENS", at_once)
    found = fill_masks(TEXTS, MODEL, TOKENIZER, candidates=candidates)
    assert [f.text for f in found] == TEXTS
    for a, b in zip(found, expected, strict=True):
        for left, right in zip(a.masks, b.masks, strict=True):
            assert_same_candidates(left, right)


def test_batches_hold_no_more_tokens_than_allowed(monkeypatch):
    monkeypatch.setattr(fill_mask, "_BATCH_TOKENS", 20)
    queries = [(np.full(n, 5), np.array([0])) for n in (5, 5, 5, 9, 3, 22, 1)]
    sizes = []

    def record_sizes(model, batch):
        sizes.append([n - 2 for n in batch.cu_seqlens.diff().tolist()])
        return hidden_states(model, batch)

    monkeypatch.setattr(fill_mask, "hidden_states", record_sizes)
    assert len(list(fill_mask._log_probabilities(queries, MODEL, TOKENIZER))) == 7
    assert [n for batch in sizes for n in batch] == [5, 5, 5, 9, 3, 22, 1]
    assert all(sum(batch) + 2 * len(batch) <= 20 or len(batch) == 1 for batch in sizes) and len(sizes) < 7


def test_no_graph_for_gradients_is_kept():
    rows = list(fill_mask._log_probabilities([(np.array([5, 6]), np.array([1]))] * 2, MODEL, TOKENIZER))
    assert len(rows) == 2 and not any(row.requires_grad for row in rows)


# ------------------------------------------------------------------------------------------------------------------- Filled text


def likely(monkeypatch, *tokens):
    """Make these tokens the most likely, one per mask."""
    rows = torch.full((len(tokens), TOKENIZER.vocab_size), -10.0)
    for row, token in zip(rows, tokens, strict=True):
        row[TOKENIZER.token_to_id(token)] = -0.1
    monkeypatch.setattr(fill_mask, "_log_probabilities", lambda *_: iter([rows]))


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
def test_filled_text_has_the_most_likely_word_for_each_mask(monkeypatch, text, tokens, filled):
    assert TOKENIZER.token_to_id("##s") is not None
    likely(monkeypatch, *tokens)
    assert fill_masks([text], MODEL, TOKENIZER, pieces=True)[0].filled == filled


# --------------------------------------------------------------------------------------------------------------- Among candidate words


def left_to_right(ids, start, stop):
    """Return the log-probabilities of `ids[start:stop]`, each predicted with itself and the later ones masked."""
    masked = [[*ids[:i], *[TOKENIZER.mask_token_id] * (stop - i), *ids[stop:]] for i in range(start, stop)]
    return [log_probabilities(row)[start + k, ids[start + k]].item() for k, row in enumerate(masked)]


def expected_candidates(text, words, reduce):
    """Return {word: probability} for each mask, each word scored separately."""
    ids = encode(text)
    out = []
    for blank in mask_positions(ids):
        pieces = {word: encode(word) for word in words}
        filled = {word: [*ids[:blank], *p, *ids[blank + 1 :]] for word, p in pieces.items()}
        scores = [reduce(left_to_right(filled[word], blank, blank + len(p))) for word, p in pieces.items()]
        out.append(dict(zip(words, torch.tensor(scores).softmax(0).tolist(), strict=True)))
    return out


SINGLE, SPLIT = ["cat", "dog", "the"], ["cat", "cats", "doc", "Pat"]


@pytest.mark.parametrize("reduction", [sum, fmean], ids=["sum", "mean"])
@pytest.mark.parametrize("words", [SINGLE, SPLIT], ids=["one piece", "several pieces"])
@pytest.mark.parametrize("text", TEXTS[:2])
def test_candidate_words_are_scored_from_left_to_right(text, words, reduction):
    lengths = {len(encode(word)) for word in words}
    assert lengths == {1} if words is SINGLE else len(lengths) > 1
    name = "sum" if reduction is sum else "mean"
    found = fill_masks([text], MODEL, TOKENIZER, candidates=words, top_k=9, reduction=name)[0]
    assert found.method == f"within_word_l2r_{name}"
    for blank, expected in zip(found.masks, expected_candidates(text, words, reduction), strict=True):
        assert {c.token: c.probability for c in blank} == pytest.approx(expected, rel=1e-4)  # sums of rounded numbers
        shares = [c.probability for c in blank]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-6)


def test_top_k_limits_the_candidate_words():
    every = fill_masks([TEXTS[0]], MODEL, TOKENIZER, candidates=SPLIT)[0].masks[0]
    assert fill_masks([TEXTS[0]], MODEL, TOKENIZER, candidates=SPLIT, top_k=2)[0].masks[0] == every[:2]


def test_piece_is_accepted_as_candidate():
    found = fill_masks(["the cat [MASK]"], MODEL, TOKENIZER, candidates=["##s"])[0]
    assert (found.masks[0][0].token, found.filled) == ("##s", "the cats")


def test_duplicate_candidate_counts_once():
    found = fill_masks([TEXTS[0]], MODEL, TOKENIZER, candidates=["cat", "dog", "cat"])[0].masks[0]
    assert sorted(c.token for c in found) == ["cat", "dog"]


# ----------------------------------------------------------------------------------------------------------- pseudo-log-likelihood


@pytest.mark.parametrize("pll", ["within_word_l2r", "original"])
@pytest.mark.parametrize("text", ["the cat sat on the mat.", "Paris", "cats and dogs, and the log"])
def test_pseudo_log_likelihood_equals_a_naive_loop(folder, text, pll):
    ids = encode(text)
    starts = [i for i, token in enumerate(ids) if pll == "original" or not TOKENIZER.tokens[token].startswith("##")]
    total = sum(sum(left_to_right(ids, a, b)) for a, b in pairwise([*starts, len(ids)]))
    (score,) = stemformer.score([text], model=str(folder), pll=pll, device="cpu")
    assert (score["text"], score["num_tokens"], score["method"]) == (text, len(ids), pll)
    assert score["log_likelihood"] == pytest.approx(total, rel=ROUNDING)
    assert score["mean_log_likelihood"] == pytest.approx(total / len(ids), rel=ROUNDING)
    # exp amplifies the rounding error.
    assert score["perplexity"] == pytest.approx(math.exp(-total / len(ids)), rel=1e-4)


def test_pseudo_log_likelihood_in_several_batches_equals_one(monkeypatch):
    encodings = [TOKENIZER.encode(text) for text in ("the cat sat on the mat.", "Paris")]
    expected = scoring.score_texts(MODEL, TOKENIZER, encodings)
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 20)
    assert scoring.score_texts(MODEL, TOKENIZER, encodings) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_text_without_a_token_has_no_likelihood(folder, text):
    with pytest.raises(DataError, match="1 text without a score"):
        stemformer.score([text], model=str(folder), device="cpu")


def test_words_of_scored_texts_are_counted_once(folder):
    pipeline = stemformer.load(str(folder), device="cpu")
    with pytest.warns(UserWarning, match=r"20% of the words are \[UNK\]"):
        pipeline.score(["the cat sat on Привет"])
    assert (pipeline.tokenizer.unknown._num_words, pipeline.tokenizer.unknown._num_unknown) == (5, 1)


# ---------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("text", ["the cat sat", "", "the [mask] sat", "the MASK sat"])
@pytest.mark.parametrize("candidates", [None, ["cat"]])
def test_text_without_a_mask_is_refused(text, candidates):
    with pytest.raises(DataError, match=r"No \[MASK\] in"):
        fill_masks([text], MODEL, TOKENIZER, candidates=candidates)


def test_text_of_maximum_length_is_accepted():
    assert len(fill_masks([" ".join(["[MASK]"] * (POSITIONS - 2))], MODEL, TOKENIZER)[0].masks) == POSITIONS - 2


def test_too_long_text_is_refused():
    text = " ".join(["[MASK]"] * (POSITIONS - 1))
    with pytest.raises(DataError, match=f"has {POSITIONS - 1} tokens; the model accepts {POSITIONS - 2}"):
        fill_masks([text], MODEL, TOKENIZER)


def test_text_too_long_for_a_word_of_several_pieces_is_refused():
    text = " ".join(["the"] * (POSITIONS - 3) + ["[MASK]"])
    assert len(fill_masks([text], MODEL, TOKENIZER, candidates=["cat"])[0].masks) == 1
    with pytest.raises(DataError, match="too long for a word of"):
        fill_masks([text], MODEL, TOKENIZER, candidates=["cat", "Pat"])


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_refused(top_k):
    with pytest.raises(ConfigError, match=f"top_k is {top_k}"):
        fill_masks(TEXTS, MODEL, TOKENIZER, top_k=top_k)


@pytest.mark.parametrize("word", ["Привет", "", " ", "cat Привет"])
def test_word_that_the_tokenizer_cannot_represent_is_refused(word):
    with pytest.raises(ConfigError, match=f"--candidates {word!r}"):
        fill_masks(TEXTS, MODEL, TOKENIZER, candidates=["cat", word])


@pytest.mark.parametrize("options", [{"reduction": "mean"}, {"pieces": True, "candidates": ["cat"]}])
def test_options_without_effect_are_refused(options):
    with pytest.raises(ConfigError, match="applies to"):
        fill_masks(TEXTS, MODEL, TOKENIZER, **options)


def test_empty_candidate_list_is_refused():
    with pytest.raises(ConfigError, match="--candidates is empty"):
        fill_masks(TEXTS, MODEL, TOKENIZER, candidates=[])


# --------------------------------------------------------------------------------------------------------------------------- api


def test_api_result_is_plain_data(folder):
    found = stemformer.fill(TEXTS[:2], model=str(folder), top_k=2, device="cpu")
    expected = fill_masks(TEXTS[:2], MODEL, TOKENIZER, top_k=2)
    for result, f in zip(found, expected, strict=True):
        blanks = [
            {"candidates": [{"token": c.token, "probability": c.probability} for c in blank]} for blank in f.masks
        ]
        assert result == {"text": f.text, "masks": blanks, "filled": f.filled, "method": "vocabulary"}


def test_api_without_a_text_is_refused(folder):
    with pytest.raises(DataError, match="No text to work on"):
        stemformer.fill([], model=str(folder))


def test_api_refuses_a_model_without_the_head(tmp_path):
    save_model(random_model([]), tmp_path, TOKENIZER)
    with pytest.raises(CheckpointError, match="has no masked-language-modeling head"):
        stemformer.fill(TEXTS, model=str(tmp_path))


def test_bf16_equals_fp32_within_rounding(folder):
    full, half = (
        stemformer.fill(TEXTS[:1], model=str(folder), device="cpu", precision=p, top_k=3) for p in ("fp32", "bf16")
    )
    # bfloat16 has 8 significant bits: logits around 5 differ by some hundredths, probabilities by the same fraction.
    a, b = ({c["token"]: c["probability"] for c in r[0]["masks"][0]["candidates"]} for r in (full, half))
    first = next(iter(a))
    assert b[first] == pytest.approx(a[first], rel=0.1)


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[2]])
def test_probabilities_equal_those_of_transformers_pipeline(folder, text):
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    theirs = pipeline(text, top_k=5)
    (ours,) = stemformer.fill([text], model=str(folder), top_k=5, device="cpu", pieces=True)
    found = ours["masks"][0]["candidates"]
    assert [c["token"] for c in found] == [answer["token_str"] for answer in theirs]
    assert [c["probability"] for c in found] == pytest.approx([answer["score"] for answer in theirs], rel=ROUNDING)


def test_texts_without_a_mask_do_not_keep_others_from_theirs():
    model = random_model()
    with pytest.warns(UserWarning, match=r"No \[MASK\] in 'the cat', ''\. Put \[MASK\]"):
        first, other, empty = fill_masks([TEXTS[0], "the cat", ""], model, TOKENIZER)
    assert first == fill_masks(TEXTS[:1], model, TOKENIZER)[0]
    assert [(x.masks, x.filled) for x in (other, empty)] == [([], None)] * 2


@pytest.mark.parametrize("text", ["the [mask]", "the <mask> sat"])
def test_other_spellings_of_the_mask_are_named(text):
    with pytest.raises(DataError, match=r"Did you mean \[MASK\]"):
        fill_masks([text], random_model(), TOKENIZER)
