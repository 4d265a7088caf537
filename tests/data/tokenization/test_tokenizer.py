import json
import os
import pickle
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from stemformer.data.tokenization.tokenizer import SPECIAL_TOKENS, Tokenizer, chunk_pattern, load_tokenizer
from stemformer.data.tokenization.trainers import _parts, extend_wordpiece, sample_texts, train_wordpiece
from stemformer.errors import TokenizerError

ENGLISH = "The cat sat on the mat. The dog, too, sat on a log. Cats and dogs like mats and logs.\n" * 4
TEXTS = [
    ENGLISH,
    "北京是中国的首都。上海很大！\n你好，世界？「東京」へ行きました。",
    "Привет, мир! Как дела? Ёлка и йод.",
    "Γειά σου Κόσμε. ΟΔΥΣΣΕΥΣ; Τέλος.",
    "مرحبا بالعالم. كيف حالك؟",
    "नमस्ते दुनिया। आप कैसे हैं?",
    "สวัสดีชาวโลก ครับ",
    "안녕하세요 세계. 반갑습니다!",
    "Zu\u0308rich und Zürich. naïve café, İstanbul ı ß ŒUVRE.",
]
ODD = [
    "",
    " \n\t ",
    "👩‍👩‍👧 and 🙂🙂.",
    "a\x00b\x0bc\x1cd\x85e\u200bf\ufeffg. \u200b . x",
    "。\u0301\u0316e\u0316\u0301.\u0301a",
    "x" * 150 + " " + "y" * 100 + ". ok",
    "[MASK] [CLS]a[SEP] ##cat # ## [UNK]",
    "a\ud800b \udfff. c",
    "3.14 U.S.A. don't e-mail@x.org ≠ ½ ﬁ \u2126",
    "\u00a0a\u3000b\u2028c\u2029d\u1680e\u202ff",
    "豈更\U00020000\U0002f800字a字",
]


def small(**options):
    return train_wordpiece(TEXTS, **{"vocab_size": 400, "min_frequency": 1} | options)


@pytest.fixture(scope="module", params=["cased", "lowercase"])
def tokenizer(request):
    return small(lowercase=request.param == "lowercase")


def ends_after_marks(text):
    return [position + 1 for position, character in enumerate(text) if character in ".!?。！？\n "]


def documents_of(tokenizer, texts, ends, *, by_offsets):
    copy = pickle.loads(pickle.dumps(tokenizer))
    if by_offsets:
        copy._chunk_pattern = None
    else:
        assert copy._chunk_pattern is not None
    return copy.encode_documents(texts, ends)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        for name in ("ids", "word_starts", "sentence_starts"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("text", TEXTS + ODD)
def test_chunk_path_equals_offset_path(tokenizer, text):
    ends = [ends_after_marks(text)]
    assert_same(*(documents_of(tokenizer, [text], ends, by_offsets=flag) for flag in (False, True)))


def test_paths_are_equal_on_random_characters(tokenizer):
    rng = np.random.default_rng(0)
    pool = [chr(n) for n in (*range(0x250), *range(0x2000, 0x2070), *range(0x3000, 0x3020), *range(0xFF00, 0xFF20))]
    pool += [*"".join(TEXTS + ODD), "\u0301", "\u0345", "\u093f", "\U0001f469"]
    texts = ["".join(pool[n] for n in rng.integers(0, len(pool), size=60)) for _ in range(400)]
    ends = [
        sorted(rng.integers(0, 61, size=n % 3).tolist()) for n in range(len(texts))
    ]  # chunk boundaries and other positions
    assert_same(*(documents_of(tokenizer, texts, ends, by_offsets=flag) for flag in (False, True)))


def test_every_separator_is_split_by_the_library():
    pattern = chunk_pattern(ideographs=True)
    normalizer, splitter = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    separators = [
        c for c in map(chr, range(0x110000)) if len(pattern.findall(f"a{c}b")) != 1 and not "\ud800" <= c <= "\udfff"
    ]
    assert len(separators) > 20_000
    for character in separators:
        words = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(f"a{character}b"))]
        assert (words[0], words[-1], len(words)) == ("a", "b", 2 if character.isspace() else 3), hex(ord(character))


def test_cache_limit_does_not_change_ids(tokenizer, monkeypatch):
    free, bounded = (pickle.loads(pickle.dumps(tokenizer)) for _ in range(2))
    expected = free.encode_documents(TEXTS * 2, [[]] * len(TEXTS) * 2)
    monkeypatch.setattr("stemformer.data.tokenization.tokenizer._MAX_CACHED_CHUNKS", 3)
    assert_same(bounded.encode_documents(TEXTS * 2, [[]] * len(TEXTS) * 2), expected)
    assert len(bounded._chunk_ids) < len(free._chunk_ids)


def test_sentences_start_after_ends(tokenizer):
    text = "The cat sat. \n \nThe dog sat."
    [document] = tokenizer.encode_documents([text], [[13, 14, 16]])
    alone = tokenizer.encode("The cat sat.").ids
    assert document.sentence_starts.tolist() == [0, len(alone)]
    assert document.ids[: len(alone)].tolist() == alone.tolist()


def test_empty_document_has_no_sentence(tokenizer):
    [document] = tokenizer.encode_documents([" "], [[1]])
    assert [len(document.ids), len(document.word_starts), len(document.sentence_starts)] == [0, 0, 0]


def test_arrays_are_writable_for_torch(tokenizer):
    assert tokenizer.encode_documents(["the cat"], [[7]])[0].ids.flags.writeable


def test_punctuation_is_its_own_word(tokenizer):
    encoded = tokenizer.encode("the.cat")
    assert encoded.word_starts[[0, 1]].all() and tokenizer.tokens[encoded.ids[1]] == "."


@pytest.mark.parametrize("ends", [[3, 2], [99], [-1]])
def test_invalid_sentence_ends_are_refused(tokenizer, ends):
    with pytest.raises(TokenizerError, match="expected ascending offsets from 0 to 7"):
        tokenizer.encode_documents(["the cat"], [ends])


def test_offsets_point_into_the_text():
    text = "Zürich, 北京"
    tokenizer = small(lowercase=True)
    encoded = tokenizer.encode(text)
    assert encoded.ids.dtype == np.int64
    pieces = [
        "".join(text[a:b] for a, b in encoded.offsets[:-3].tolist()),
        *(text[a:b] for a, b in encoded.offsets[-3:]),
    ]
    assert pieces == ["Zürich", ",", "北", "京"]


def test_special_token_in_text_is_plain_text(tokenizer):
    assert not tokenizer.special_ids.intersection(tokenizer.encode("the [MASK] and [CLS]").ids.tolist()) - {
        tokenizer.unk_token_id
    }
    assert tokenizer.mask_token_id not in tokenizer.encode_documents(["the [MASK]"], [[]])[0].ids


def test_special_token_in_text_can_be_parsed(tokenizer):
    encoded = tokenizer.encode("the [MASK][MASK].", parse_special_tokens=True)
    assert encoded.ids[1:3].tolist() == [tokenizer.mask_token_id] * 2
    assert encoded.word_starts.all()
    assert tokenizer.mask_token_id not in tokenizer.encode("the [MASK].").ids


def test_special_ids_are_the_first_five(tokenizer):
    ids = [
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.mask_token_id,
    ]
    assert ids == [0, 1, 2, 3, 4] and tokenizer.special_ids == frozenset(ids)


def test_decode_restores_the_text():
    assert small(lowercase=True).decode(small(lowercase=True).encode("The cat sat.").ids) == "the cat sat."


def test_long_word_is_unknown(tokenizer):
    assert tokenizer.encode("a" * 101).ids.tolist() == [tokenizer.unk_token_id]
    assert tokenizer.unk_token_id not in tokenizer.encode("a" * 100).ids


def test_pickling_keeps_everything(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert tokenizer.mask_token_id not in copy.encode("[MASK]").ids


def test_save_and_load_preserve_the_fingerprint(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_fingerprint_depends_on_lowercase():
    words = ["to be or not to be"]
    fingerprints = {train_wordpiece(words, vocab_size=24, lowercase=flag).fingerprint for flag in (False, True)}
    assert len(fingerprints) == 2


def test_lowercase_is_guessed_from_a_vocab_file_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.warns(UserWarning, match="judging by its entries, text is") as caught:
        loaded = load_tokenizer(tmp_path / "vocab.txt")
    assert "tokenizer_config.json" in str(caught[0].message)
    assert loaded.lowercase == tokenizer.lowercase
    assert loaded.lowercase_is_guess and pickle.loads(pickle.dumps(loaded)).lowercase_is_guess
    assert loaded.encode(ENGLISH).ids.tolist() == tokenizer.encode(ENGLISH).ids.tolist()


CHINESE = ["<S>", "<T>", "[unused1]", "北", "京", "##京", "na", "##na", "##b"]


@pytest.mark.parametrize(
    ("entries", "text", "tokens"),
    [
        (CHINESE, "NAB", ["na", "##b"]),
        ([*CHINESE, "Na"], "NaB", ["[UNK]"]),
        ([*CHINESE, *(f"a{number}" for number in range(500)), "URL"], "Na", ["na"]),
        (["и", "иван", "Иван"], "Иван", ["Иван"]),
        (["हिन्दी", "में"], "हिन्दी में", ["हिन्दी", "में"]),
        (["größe", "ok"], "Größe OK", ["größe", "ok"]),
    ],
    ids=["chinese", "cased", "stray", "cyrillic", "vowel_signs", "umlauts"],
)
@pytest.mark.filterwarnings("ignore:.*judging by its entries")
def test_guessed_normalizer_can_write_the_entries(tmp_path, entries, text, tokens):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *entries]) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.tokens[number] for number in tokenizer.encode(text).ids] == tokens


def test_settings_of_tokenizer_config_are_no_guess(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "größe", "grosse"]) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.lowercase is True and not tokenizer.lowercase_is_guess
    # As in transformers, accents are removed too.
    assert tokenizer.encode("Größe").ids.tolist() == [tokenizer.unk_token_id]


def test_tokenizer_config_overrides_tokenizer_json(tmp_path):
    small().save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": True}))
    assert load_tokenizer(tmp_path).lowercase is True


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_missing_files_are_refused(tmp_path, path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path / path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"model": {"type": "WordPiece"}}'])
def test_damaged_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == 3


def test_vocab_without_mask_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    with pytest.raises(TokenizerError, match=r"has no \[MASK\]"):
        load_tokenizer(tmp_path)


def test_vocab_with_a_duplicate_token_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nthe\n")
    with pytest.raises(TokenizerError, match="'the' more than once"):
        load_tokenizer(tmp_path)


@pytest.mark.filterwarnings("ignore:.*judging by its entries")
def test_vocab_with_line_separator_token_keeps_its_ids(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\n\u2028\r\nthe\r\n".encode())
    assert load_tokenizer(tmp_path).token_to_id("the") == 6


@pytest.fixture(scope="module")
def byte_level_folder(tmp_path_factory):
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    folder = tmp_path_factory.mktemp("bpe")
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_byte_level_document_has_words_and_sentences(byte_level_folder):
    tokenizer = load_tokenizer(byte_level_folder)
    text = "The cat sat. The dog sat."
    [document] = tokenizer.encode_documents([text], [[13, 25]])
    assert tokenizer.kind == "bpe"
    assert tokenizer.decode(document.ids[document.sentence_starts[1] :]) == " The dog sat."
    assert document.word_starts.sum() == 8


def test_byte_level_special_token_in_text_is_plain_text(byte_level_folder):
    tokenizer = load_tokenizer(byte_level_folder)
    assert tokenizer.special_ids == {tokenizer.token_to_id("<|endoftext|>")}
    assert not tokenizer.special_ids.intersection(tokenizer.encode("a<|endoftext|>").ids.tolist())
    assert tokenizer.encode("a<|endoftext|>", parse_special_tokens=True).ids[-1] in tokenizer.special_ids


def test_byte_level_missing_special_token_is_refused_on_access(byte_level_folder):
    tokenizer = load_tokenizer(byte_level_folder)
    with pytest.raises(TokenizerError, match=r"bpe vocabulary has no \[MASK\]"):
        _ = tokenizer.mask_token_id


def test_other_models_are_refused():
    with pytest.raises(TokenizerError, match="WordLevel"):
        Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize("vocab_size", [250, 300, 350])
def test_vocab_size_is_exact_if_the_text_suffices(vocab_size):
    assert small(vocab_size=vocab_size).vocab_size == vocab_size


def test_vocab_size_is_smaller_if_the_text_does_not_suffice():
    assert small(vocab_size=100_000).vocab_size < 2_000


def test_too_small_vocab_size_is_refused():
    with pytest.raises(TokenizerError, match="vocab_size 12 holds"):
        train_wordpiece([ENGLISH], vocab_size=12)


@pytest.mark.parametrize("texts", [[], [""], [" \n", "\x00"]])
def test_training_without_text_is_refused(texts):
    with pytest.raises(TokenizerError, match="text to train a tokenizer on is empty"):
        train_wordpiece(texts, vocab_size=100)


def test_training_on_a_long_run_of_letters_only_is_refused():
    with pytest.raises(TokenizerError, match="no words to train a tokenizer on, of at most 100 characters"):
        train_wordpiece(["ACGT" * 100], vocab_size=100)


def test_ideographs_have_no_inner_forms():
    tokenizer = small()
    assert (
        tokenizer.token_to_id("北") is not None
        and tokenizer.token_to_id("##北") is None
        and tokenizer.token_to_id("##a") is not None
    )


def test_rare_characters_are_left_out():
    tokenizer = train_wordpiece([ENGLISH * 100, "Ж"], vocab_size=200)
    assert tokenizer.token_to_id("Ж") is None and tokenizer.encode("Жa").ids.tolist() == [tokenizer.unk_token_id]


def test_training_ignores_the_order_of_texts(tmp_path):
    lines = [f"{word} {number % 97} {ENGLISH[number : number + 30]}" for number, word in enumerate(ENGLISH.split() * 5)]
    options = {"vocab_size": 150, "max_characters": 3_000, "seed": 3}
    assert train_wordpiece(lines, **options).tokens == train_wordpiece(lines[::-1], **options).tokens


def test_seed_changes_the_sample():
    lines = [f"{number:x} {number * 7919:x}" for number in range(2_000)]
    tokens = {tuple(train_wordpiece(lines, vocab_size=200, max_characters=2_000, seed=seed).tokens) for seed in (0, 1)}
    assert len(tokens) == 2


def test_sample_holds_a_prefix_of_the_hash_order():
    texts = [f"text {number} {'x' * (number % 50)}" for number in range(500)]
    everything = list(sample_texts(texts, seed=5, max_characters=10**6, on_text=None))
    some = list(sample_texts(texts[::-1], seed=5, max_characters=4_000, on_text=None))
    assert sorted(everything) == sorted(texts)
    assert some == everything[: len(some)]
    assert sum(map(len, some)) <= 4_000 < sum(map(len, everything[: len(some) + 1]))


@pytest.mark.parametrize("text", [ENGLISH, "x" * 1_000, "a b " * 200, ""])
def test_parts_join_to_the_text(text):
    parts = list(_parts(text, 90))
    assert "".join(parts) == text and max(map(len, parts)) <= 90


def test_on_text_receives_the_length_of_each_text():
    seen = []
    train_wordpiece(["to be", "or not to be"], vocab_size=24, on_text=seen.append)
    assert seen == [5, 12]


TRAIN = """
import sys
from stemformer.data.tokenization.trainers import train_wordpiece
train_wordpiece([open(sys.argv[1], encoding="utf-8").read()], vocab_size=700, min_frequency=1).save(sys.argv[2])
"""


def test_training_is_the_same_in_every_process(tmp_path):
    rng = np.random.default_rng(0)  # many ties between merges, where hash-map order matters
    words = ["".join(rng.choice(list("abcdefghijklmnop"), size=rng.integers(2, 9))) for _ in range(3_000)]
    (tmp_path / "text").write_text(" ".join(words) + "\n".join(TEXTS), encoding="utf-8")
    files = []
    for seed, threads in (("1", "1"), ("2", "2"), ("777", "2")):
        folder = tmp_path / f"{seed}-{threads}"
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
        }
        subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path / "text"), str(folder)], env=environment, check=True)
        files.append((folder / "tokenizer.json").read_bytes())
    assert files[0] == files[1] == files[2]
    assert json.loads(files[0])["model"]["vocab"].__len__() == 700


def test_normalized_words_are_composed_as_trained():
    tokenizer = small(lowercase=True)
    assert (
        tokenizer.encode("Zürich").ids.tolist() == tokenizer.encode(unicodedata.normalize("NFD", "zürich")).ids.tolist()
    )


# Extended vocabularies


@pytest.fixture(scope="module")
def general():
    return train_wordpiece(["the cat sees the dog and the dog sees the cat ."] * 3, vocab_size=60)


def test_extended_vocabulary_keeps_existing_ids(general):
    extended = extend_wordpiece(general, ["the catscan sees the dogsee"] * 2, vocab_size=100)
    assert extended.tokens[: general.vocab_size] == general.tokens
    assert general.vocab_size < extended.vocab_size <= 100
    assert set(extended.tokens[general.vocab_size :]) == {"catscan", "dogsee"}


def test_words_that_save_most_tokens_are_added_first(general):
    texts = ["catdog"] * 5 + ["dogcatdogcat"] * 3 + ["thecat"] * 2
    gains = {word: n * (len(general.encode(word).ids) - 1) for word, n in (("catdog", 5), ("dogcatdogcat", 3))}
    extended = extend_wordpiece(general, texts, vocab_size=general.vocab_size + 1)
    assert extended.tokens[-1] == max(gains, key=lambda word: gains[word])


def test_unknown_word_can_be_added(general):
    assert general.tokens[general.encode("zzz").ids[0]] == "[UNK]"
    extended = extend_wordpiece(general, ["zzz zzz"], vocab_size=100)
    assert extended.decode(extended.encode("zzz").ids) == "zzz"


def test_text_with_new_words_becomes_shorter_and_decodes_the_same(general):
    extended = extend_wordpiece(general, ["catdog sees thedog"] * 2, vocab_size=100)
    before, after = (t.encode("the catdog sees thedog") for t in (general, extended))
    assert len(after.ids) < len(before.ids)
    assert extended.decode(after.ids) == general.decode(before.ids)


def test_rare_words_and_existing_ones_are_not_added(general):
    extended = extend_wordpiece(general, ["dogdog dogdog catcat the the"], vocab_size=100)
    assert extended.tokens[general.vocab_size :] == ["dogdog"]


@pytest.mark.parametrize("vocab_size", [10, 20])
def test_vocabulary_without_room_is_refused(general, vocab_size):
    with pytest.raises(TokenizerError, match=r"vocab_size is \d+: expected more than the 36 existing ids"):
        extend_wordpiece(general, ["catdog"] * 2, vocab_size=vocab_size)


def test_extended_vocabulary_comes_back_from_disk(general, tmp_path):
    extended = extend_wordpiece(general, ["catdog"] * 2, vocab_size=100)
    extended.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == extended.fingerprint != general.fingerprint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ฉันรักภาษาไทยที่นี่ " * 5, "Thai"),
        ("किताब में कुछ हिन्दी " * 5, "Devanagari"),
        ("كِتَابٌ جَدِيدٌ " * 5, "Arabic"),
        ("Crème brûlée, déjà vu, Ελλάδα, ещё чай " * 5, None),
        ("plain text " * 5, None),
    ],
)
def test_removed_vowels_and_tones_are_noted(text, name):
    notes = []
    train_wordpiece([text], vocab_size=300, lowercase=True, on_note=notes.append)
    assert len(notes) == (name is not None)
    assert name is None or (f"({name})" in notes[0] and "Train without --lowercase" in notes[0])
    kept = []
    train_wordpiece([text], vocab_size=300, lowercase=True, strip_accents=False, on_note=kept.append)
    assert kept == []
