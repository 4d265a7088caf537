"""Byte-level BPE: lossless, deterministic, the same ids as in transformers, and usable for shards."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

import stemformer
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import BART_SPECIAL_TOKENS, END_OF_TEXT, load_tokenizer
from stemformer.data.tokenization.trainers import train_byte_bpe
from stemformer.errors import ConfigError, DataError, TokenizerError
from stemformer.evaluation.fill_mask import fill_masks
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model

SCRIPTS = [
    "The old king's river,  two spaces\n\n\tx",
    "北京是中国的首都。",
    "Größe déjà-vu 🙂🏳️‍🌈",
    "مرحبا שלום नमस्ते",
    "a\x00b\ufeff \u200d <|endoftext|>",
]


@pytest.fixture(scope="module")
def tokenizer(make_text):
    return train_byte_bpe(make_text().splitlines(), vocab_size=340)


def test_ids_start_with_end_of_text_and_the_bytes(tokenizer):
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.token_to_id(END_OF_TEXT)) == ("bpe", 340, 0)
    assert len({token for token in tokenizer.tokens[1:257] if len(token) == 1}) == 256
    assert tokenizer.encode(" king").ids.tolist() == [tokenizer.token_to_id("Ġking")]


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_text_decodes_to_itself(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert 0 not in ids  # a special token in text is plain text
    assert tokenizer.decode(ids) == text


def test_special_tokens_of_bart_have_its_ids_and_open_in_transformers(make_text, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = train_byte_bpe(make_text().splitlines(), vocab_size=340, special_tokens="bart")
    assert tokenizer.tokens[:5] == list(BART_SPECIAL_TOKENS)
    ids = [getattr(tokenizer, f"{name}_token_id") for name in ("cls", "pad", "sep", "unk", "mask")]
    assert ids == [0, 1, 2, 3, 4]
    for text in SCRIPTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    # A mask takes the space before it, and a text's own <mask> is plain text unless it is parsed.
    assert 4 not in tokenizer.encode("the <mask> king").ids
    parsed = tokenizer.encode("the <mask> king", parse_special_tokens=True).ids.tolist()
    assert parsed == [*tokenizer.encode("the").ids, 4, *tokenizer.encode(" king").ids]
    tokenizer.save(tmp_path)
    again, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    for text in (*SCRIPTS[:4], "the <mask> king"):
        ids = again.encode(text, parse_special_tokens=True).ids.tolist()
        assert theirs(text)["input_ids"] == [0, *ids, 2]
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.eos_token_id) == (4, 1, 2)


def test_sentinels_and_languages_are_special_tokens_here_and_in_transformers(make_text, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "text.txt").write_text(make_text(), encoding="utf-8")
    options = {"kind": "bpe", "special_tokens": "bart", "num_sentinels": 3, "languages": ["en", "fr_XX"]}
    found = stemformer.train_tokenizer(
        [str(tmp_path / "text.txt")], out=str(tmp_path / "tok"), vocab_size=345, **options
    )
    assert (found["vocab_size"], found["sentinels"], found["languages"]) == (345, 3, ["en", "fr_XX"])
    tokenizer = load_tokenizer(tmp_path / "tok")
    tokenizer.save(tmp_path / "again")
    for again in (tokenizer, load_tokenizer(tmp_path / "again")):
        assert (again.sentinel_ids, again.language_ids) == ((5, 6, 7), {"en": 8, "fr_XX": 9})
        assert again.special_ids == set(range(10))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    theirs.save_pretrained(tmp_path / "theirs")
    assert load_tokenizer(tmp_path / "theirs").language_ids == tokenizer.language_ids
    assert set(range(10)) <= set(theirs.all_special_ids)
    # A text's own ones are plain text unless they are parsed; a sentinel takes the space before it.
    text = "__en__ the <extra_id_1> king <extra_id_9>"
    assert not np.isin(tokenizer.encode(text).ids, range(10)).any()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    parsed = tokenizer.encode(text, parse_special_tokens=True).ids.tolist()
    assert parsed == [8, *tokenizer.encode(" the").ids, 6, *tokenizer.encode(" king <extra_id_9>").ids]
    assert theirs(text)["input_ids"] == [0, *parsed, 2]
    # By code or token, with or without a region.
    assert {tokenizer.language_id(code) for code in ("en", "__en__", "EN", "en_XX", "en-GB")} == {8}
    assert {tokenizer.language_id(code) for code in ("fr", "fr_XX", "__fr_XX__", "fr_CA")} == {9}
    for code in ("de", "e", ""):
        with pytest.raises(TokenizerError, match=r"has no language '.*Expected one of en, fr_XX\."):
            tokenizer.language_id(code)
    # As they were without them, but for their ids.
    plain = train_byte_bpe(make_text().split("\n\n"), vocab_size=340, special_tokens="bart")
    assert not plain.sentinel_ids and not plain.language_ids
    with pytest.raises(TokenizerError, match=r"no tokens of languages\. Train one .*--languages en,fr"):
        plain.language_id("en")
    assert tokenizer.tokens[10:] == plain.tokens[5:]


def test_tokens_are_shown_as_words_and_continuations(make_text):
    tokenizer = train_byte_bpe(make_text().splitlines(), vocab_size=340, special_tokens="bart")
    king, comma = tokenizer.token_to_id("Ġking"), tokenizer.token_to_id(",")
    assert [tokenizer.shown_tokens[i] for i in (king, comma, 4)] == ["king", "##,", "<mask>"]
    assert tokenizer.is_full_word[[king, comma, 4]].tolist() == [True, False, False]
    assert tokenizer.mask_token == "<mask>"


def test_masks_are_filled_with_words_of_bytes(make_text):
    tokenizer = train_byte_bpe(make_text().splitlines(), vocab_size=340, special_tokens="bart")
    config = BertConfig(
        vocab_size=340, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).eval()
    texts = ["the [MASK] sees", "the <mask> sees"]
    first, second = fill_masks(texts, model, tokenizer, top_k=3)
    assert [c.token for c in first.masks[0]] == [c.token for c in second.masks[0]]
    assert first.filled == second.filled == f"the {first.masks[0][0].token} sees"
    assert not any(c.token.startswith(("Ġ", "##")) for c in first.masks[0])
    (chosen,) = fill_masks(texts[:1], model, tokenizer, candidates=["king", "queen"])
    assert {c.token for c in chosen.masks[0]} == {"king", "queen"}
    with pytest.raises(DataError, match=r"Put \[MASK\] or <mask> where a word is to be predicted"):
        fill_masks(["no mask"], model, tokenizer)


def test_training_ignores_the_order_of_texts(make_text, tokenizer):
    reordered = train_byte_bpe(make_text().splitlines()[::-1], vocab_size=340)
    assert reordered.fingerprint == tokenizer.fingerprint


def test_saved_tokenizer_gives_the_same_ids_here_and_in_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    again, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert theirs.eos_token_id == theirs.bos_token_id == 0
    for text in SCRIPTS[:4]:
        assert again.encode(text).ids.tolist() == tokenizer.encode(text).ids.tolist() == theirs(text)["input_ids"]


def test_training_is_the_same_in_every_process(make_text, tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(make_text(), encoding="utf-8")
    code = (
        "import sys; from stemformer.data.tokenization.trainers import train_byte_bpe; "
        "print(train_byte_bpe(open(sys.argv[1], encoding='utf-8').read().splitlines(), vocab_size=340).fingerprint)"
    )
    for seed, threads in (("1", "1"), ("2", "2")):
        environ = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        ran = subprocess.run(
            [sys.executable, "-c", code, str(file)], env=environ, capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == tokenizer.fingerprint


def test_train_tokenizer_and_prepare_work_with_byte_bpe(make_text, tmp_path):
    text = make_text()
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    trained = stemformer.train_tokenizer(
        [str(tmp_path / "text.txt")], out=str(tmp_path / "tok"), kind="bpe", vocab_size=340
    )
    assert (trained["kind"], trained["vocab_size"], trained["lowercase"]) == ("bpe", 340, None)
    prepared = stemformer.prepare(
        [str(tmp_path / "text.txt")],
        tokenizer=str(tmp_path / "tok"),
        out=str(tmp_path / "data"),
        held_out=0.0,
        documents="line",
    )
    assert prepared["unknown"] == 0.0
    shards, tokenizer = open_shards(tmp_path / "data"), load_tokenizer(tmp_path / "tok")
    starts = shards.document_starts.tolist()
    documents = [tokenizer.decode(shards.tokens(a, b)) for a, b in pairwise(starts)]
    assert documents == text.splitlines()
    words = np.array(shards.word_starts(0, shards.num_tokens))
    assert words.sum() == prepared["train"]["words"] > len(text.split())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab_size": 256}, TokenizerError, "expected at least 257"),
        ({"lowercase": True}, ConfigError, "Remove --lowercase and --init"),
        ({"kind": "wordpiece", "special_tokens": "bart"}, ConfigError, "--special-tokens applies to --kind bpe"),
        ({"vocab_size": 260, "special_tokens": "bart"}, TokenizerError, "expected at least 261"),
        (
            {"special_tokens": "bart", "num_sentinels": 100},
            TokenizerError,
            r"at least 361, for 256 bytes and <s>, <pad>, </s>, <unk>, <mask>, \.\.\. \(105 in all\)",
        ),
        ({"num_sentinels": 3}, ConfigError, "--num-sentinels needs a BPE with the special tokens of BART. Add --kind"),
        ({"kind": "wordpiece", "languages": ["en"]}, ConfigError, "--languages needs a BPE with the special tokens"),
        ({"special_tokens": "bart", "num_sentinels": -1}, TokenizerError, "number of sentinels is -1: expected 0"),
        ({"special_tokens": "bart", "languages": ["english text"]}, TokenizerError, "'english text' is no code"),
        ({"special_tokens": "bart", "languages": ["EN", "en"]}, TokenizerError, "'en' occurs twice"),
    ],
)
def test_invalid_options_are_refused(make_text, tmp_path, options, error, message):
    (tmp_path / "text.txt").write_text(make_text(num_documents=5), encoding="utf-8")
    with pytest.raises(error, match=message):
        stemformer.train_tokenizer(
            [str(tmp_path / "text.txt")], out=str(tmp_path / "tok"), **{"kind": "bpe", "vocab_size": 300, **options}
        )


def test_unknown_kind_is_refused(make_text, tmp_path):
    (tmp_path / "text.txt").write_text(make_text(num_documents=5), encoding="utf-8")
    # In a process of its own, where types are not checked at run time.
    code = "import stemformer; stemformer.train_tokenizer(['text.txt'], out='tok', kind='unigram', vocab_size=300)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ConfigError" in ran.stderr and "expected wordpiece or bpe" in ran.stderr


def test_empty_text_is_refused():
    with pytest.raises(TokenizerError, match="text to train a tokenizer on is empty"):
        train_byte_bpe(["", " \n"], vocab_size=300)


@pytest.mark.data
def test_training_on_real_text_ignores_the_order_of_texts(shared_data):
    import lzma

    raw = lzma.decompress((shared_data / "tinyshakespeare" / "input.txt.xz").read_bytes()).decode()
    first, second = (train_byte_bpe(lines, vocab_size=2000) for lines in (raw.split("\n\n"), raw.split("\n\n")[::-1]))
    assert (
        hashlib.sha256(json.dumps(first.tokens).encode()).digest()
        == hashlib.sha256(json.dumps(second.tokens).encode()).digest()
    )
    assert first.decode(first.encode(raw).ids) == raw
