import sys
import tracemalloc
from itertools import pairwise

import msgspec
import numpy as np
import pytest

import stemformer
from stemformer.data.shards import duplicates, encoding, writer
from stemformer.data.shards.duplicates import find_duplicates, note_duplicates
from stemformer.data.shards.manifest import read_manifest
from stemformer.data.shards.reader import open_shards
from stemformer.data.shards.splits import hash_text, is_held_out
from stemformer.data.shards.writer import write_shards
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import ConfigError, DataError
from stemformer.progress import Silent

WORDS = [a + b for a in "abcdefgh" for b in "lmnopqrstu"]
HELD_OUT = 0.2


def make_text(seed, num_words=60):
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_words))


def replace_words(text, *numbers):
    """Replace words by new ones; each, if far from the others, changes five 5-grams."""
    words = text.split(" ")
    for number in numbers:
        words[number] = f"new{number}"
    return " ".join(words)


def is_held(text):
    return is_held_out(text.encode(), HELD_OUT)


def kept_texts(texts, kind, held_out=0.0):
    found = find_duplicates(texts, held_out, kind)
    return list(found.remove(texts)), found


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join(WORDS) + " new0 1 2 3 4 5 6 7 8 9."] * 3, vocab_size=150)


@pytest.fixture
def corpus(tmp_path):
    """Texts, two thirds of them near or exact duplicates of others, some of which are held out."""
    texts = []
    for seed in range(60):
        text = make_text(seed, num_words=200)
        texts += [text, replace_words(text, seed % 50), f" {text.replace(' ', '  ')} "]
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    (tmp_path / "corpus.txt").write_text("\n".join(texts) + "\n")
    return tmp_path / "corpus.txt"


@pytest.fixture
def write(corpus, tokenizer, tmp_path):
    def run(name="out", **options):
        how = {"held_out": HELD_OUT, "documents": "line", "num_workers": 1, "block_characters": 5_000}
        return write_shards([options.pop("source", corpus)], tokenizer, tmp_path / name, **how | options)

    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(folder, split, tokenizer):
    shards = open_shards(folder, split)
    bounds = shards.document_starts.tolist()
    return [tokenizer.decode(shards.tokens(a, b)) for a, b in pairwise(bounds)]


# Exact


def test_exact_keeps_the_first_of_texts_that_differ_in_whitespace_only():
    texts = ["a b", "c", "a  b", "\ta\nb\r\n", "ab", "c", "A b", "a b c"]
    kept, found = kept_texts(texts, "exact")
    assert kept == ["a b", "c", "ab", "A b", "a b c"]
    assert found.kept.tolist() == [0, 1, 0, 0, 4, 1, 6, 7]
    assert found.counts == {"exact duplicates": 3, "exact duplicates in the other split": 0}


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "b"]])
@pytest.mark.parametrize("kind", ["exact", "near"])
def test_texts_without_duplicates_are_kept(texts, kind):
    kept, found = kept_texts(texts, kind)
    assert kept == texts and found.examples() == () and sum(found.counts.values()) == 0


def test_the_share_of_exact_duplicates_is_noted_if_it_is_not_small():
    notes = []
    texts = [make_text(seed) for seed in range(150)]
    assert list(note_duplicates([*texts, texts[3]], notes.append)) == [*texts, texts[3]]
    assert notes == []
    list(note_duplicates([*texts, texts[3], f"{texts[3]} ", texts[5]], notes.append))
    assert notes == ["2.0% of the documents are exact duplicates; --dedup exact removes them"]


# Near


@pytest.mark.parametrize(("num_changed", "is_near"), [(0, True), (1, True), (9, False)])
def test_near_is_a_similarity_of_80_percent(num_changed, is_near):
    # Of 196 5-grams, 5 per changed word differ: similarities of 1, 0.95 and 0.63, four standard deviations from 0.8.
    text = make_text(0, num_words=200)
    changed = replace_words(text, *range(10, 10 + 20 * num_changed, 20))
    kept, found = kept_texts([text, changed], "near")
    assert kept == ([text] if is_near else [text, changed])
    if is_near:
        assert found.examples()[0].similarity == pytest.approx(
            (196 - 5 * num_changed) / (196 + 5 * num_changed), abs=1e-3
        )


def test_near_ignores_case_and_whitespace_and_compares_short_texts_as_one():
    text = make_text(1)
    kept, _ = kept_texts([text, text.upper(), text.replace(" ", "\n"), "one two", "One  two", "one two three"], "near")
    assert kept == [text, "one two", "one two three"]


def test_chinese_characters_are_words():
    first, second = (
        "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏",
        "云腾致雨露结为霜金生丽水玉出昆冈剑号巨阙珠称夜光",
    )
    kept, _ = kept_texts([first + second, first + second + "。", second], "near")
    assert kept == [first + second, second]


def test_every_removed_text_is_near_a_kept_one_and_no_two_kept_ones_are():
    # A chain: each differs from its neighbor in one more word, so its ends are far apart.
    text = make_text(2, num_words=100)
    chain = [replace_words(text, *range(5, 5 + 6 * n, 6)) for n in range(12)]
    kept, found = kept_texts(chain, "near")

    def similarity(a, b):
        a, b = (set(duplicates._ngrams(x)) for x in (a, b))
        return len(a & b) / len(a | b)

    assert 1 < len(kept) < 12
    tolerance = 0.15  # four standard deviations of an estimate
    for number, original in enumerate(found.kept):
        assert similarity(chain[number], chain[original]) > 0.8 - tolerance
    assert all(similarity(a, b) < 0.8 + tolerance for a in kept for b in kept if a != b)


def test_text_with_a_lone_surrogate_is_accepted():
    text = "\ud800 " + make_text(3)
    for kind in ("exact", "near"):
        kept, found = kept_texts([text, text], kind)
        assert kept == [text]
        msgspec.json.encode(found.examples())


def share_bands(values, number, bands, generator):
    """Return new values with some bands of a document, in the others 2 of 8 values differ: a similarity above 0.8."""
    new = values[number].copy()
    for band in set(range(16)) - set(bands):
        new[8 * band : 8 * band + 2] = generator.integers(0, 1 << 16, 2)
    return new


def test_only_the_first_documents_with_an_equal_band_are_compared():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1 << 16, (100, 128)).astype(np.uint16)
    # A template: the first band of all documents is equal.
    values[:, :8] = values[0, :8]
    copies = [share_bands(values, number, range(4), generator) for number in (63, 70)]
    copies += [share_bands(values, number, [0, 9, 10, 11], generator) for number in (63, 70)]
    alone = [share_bands(values, number, range(9), generator) for number in (63, 70)]
    for copy in alone:
        # No band is equal but the first.
        copy[8::8] += 1
    kept = duplicates._first_similar(np.array([*values, *copies, *alone]), np.arange(106))
    assert kept[:100].tolist() == list(range(100))
    assert kept[100:].tolist() == [63, 70, 63, 70, 63, 105]


def test_memory_for_text_with_many_duplicates_is_small():
    # Pairs with 12 of 16 bands in common: all are kept, and each is in 12 buckets.
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1 << 16, (1000, 128)).astype(np.uint16).repeat(2, 0)
    values[:, 96:] = generator.integers(0, 1 << 16, (2000, 32))
    tracemalloc.start()
    try:
        kept = duplicates._first_similar(values, np.arange(2000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.tolist() == list(range(2000))
    # Twice 64 bytes for the buckets, 16 for their sizes and 100 for sorting; 512 KB are fixed.
    assert peak < 2000 * 250 + 100_000


# Held-out documents


@pytest.fixture
def twins():
    """A held-out text, and one for training that differs in whitespace."""
    held = next(text for text in map(make_text, range(100)) if is_held(text))
    return held, next(text for n in range(2, 50) if not is_held(text := held.replace(" ", " " * n, 1)))


@pytest.mark.parametrize("kind", ["exact", "near"])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_document_is_kept_in_its_own_split(twins, kind, is_first):
    texts = list(twins) if is_first else list(twins)[::-1]
    kept, found = kept_texts(texts, kind, HELD_OUT)
    assert kept == texts[:1]
    assert found.counts == {f"{kind} duplicates": 0, f"{kind} duplicates in the other split": 1}


@pytest.mark.parametrize("kind", ["exact", "near"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_held_out_document_of_a_set_is_kept_wherever_it_is(twins, kind, is_first):
    texts = list(twins) if is_first else list(twins)[::-1]
    kept, found = kept_texts(texts, kind, frozenset([hash_text(twins[0].encode())]))
    assert kept == [twins[0]]
    assert found.counts == {f"{kind} duplicates": 0, f"{kind} duplicates in the other split": 1}


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_duplicates_do_not_change_the_share_of_held_out_documents(kind):
    # Of groups of ten, nine in ten hold a held-out document; three standard deviations of the share of the groups: 0.08.
    texts = [make_text(seed).replace(" ", " " * n, 1) for n in range(1, 11) for seed in range(200)]
    kept, found = kept_texts(texts, kind, HELD_OUT)
    assert len(kept) == 200
    assert found.is_held_out[found.kept == np.arange(2000)].mean() == pytest.approx(HELD_OUT, abs=0.08)


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_no_training_document_repeats_a_held_out_one(write, tokenizer, tmp_path, kind):
    write("before")
    write("out", dedup=kind)
    before, after = (
        [set(documents_of(tmp_path / n, s, tokenizer)) for s in ("train", "held_out")] for n in ("before", "out")
    )
    assert before[0] & before[1] and not after[0] & after[1]
    assert len(after[0] | after[1]) == (60 if kind == "near" else 120)


# Prepared data


def test_manifest_counts_duplicates_and_shows_ten_examples(write, tmp_path):
    manifest = write(dedup="near")
    skipped = manifest.skipped
    assert sum(skipped.values()) == 120 and set(skipped) == {"near duplicates", "near duplicates in the other split"}
    assert sum(split.documents for split in manifest.splits.values()) == 60
    assert len(manifest.duplicates) == 10 == len(read_manifest(tmp_path / "out").duplicates)
    for example in manifest.duplicates:
        assert 0.8 < example.similarity <= 1 and len(example.removed) == len(example.kept) == 100
    result = stemformer.inspect(str(tmp_path / "out"))
    assert result["skipped"] == skipped and result["duplicates"][0]["similarity"] == manifest.duplicates[0].similarity


def test_command_removes_or_notes_duplicates(write, corpus, tmp_path):
    write("first")
    lines, progress = [], Silent()
    progress.say = lines.append
    options = {"tokenizer": str(tmp_path / "first/tokenizer"), "documents": "line", "num_workers": 1}
    stemformer.prepare([str(corpus)], out=str(tmp_path / "none"), progress=progress, **options)
    assert "33.3% of the documents are exact duplicates; --dedup exact removes them" in lines
    lines.clear()
    result = stemformer.prepare([str(corpus)], out=str(tmp_path / "exact"), dedup="exact", progress=progress, **options)
    assert sum(result["skipped"].values()) == 60 and not any("--dedup" in line for line in lines)


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_bytes_do_not_depend_on_workers_or_an_interruption(write, tmp_path, monkeypatch, kind):
    write("one", dedup=kind)
    monkeypatch.setattr(encoding, "POOL_CHARACTERS", 1)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 500)
    write("two", dedup=kind, num_workers=2)

    original, calls = encoding.encode_batch, []

    def encode(*args, **options):
        calls.append(args)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(encoding, "encode_batch", encode)
    with pytest.raises(KeyboardInterrupt):
        write("three", dedup=kind)
    monkeypatch.undo()
    assert len((tmp_path / "three/progress.jsonl").read_text().splitlines()) > 1
    with pytest.raises(DataError, match=f"started with dedup {kind}, now it is none"):
        write("three", resume=True)
    write("three", dedup=kind, resume=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_data_of_an_earlier_release_opens_and_has_the_same_fingerprint(write, tmp_path):
    manifest = write()
    path = tmp_path / "out/manifest.json"
    content = msgspec.json.decode(path.read_bytes())
    del content["settings"]["dedup"], content["duplicates"]
    path.write_bytes(msgspec.json.encode(content))
    assert read_manifest(tmp_path / "out") == manifest
    assert write(resume=True) == manifest
    assert write("exact", dedup="exact").fingerprint != manifest.fingerprint


# Bad input


@pytest.mark.parametrize(("texts", "now"), [(["a", "b"], "2"), (["a", "b", "c", "a"], "more")])
def test_another_number_of_documents_in_the_second_pass_is_refused(texts, now):
    found = find_duplicates(["a", "b", "a"], 0.0, "exact")
    with pytest.raises(DataError, match=f"The inputs changed while they were read: they had 3 documents, now {now}"):
        list(found.remove(texts))


def test_a_file_that_changes_between_the_two_passes_is_refused(write, corpus, tmp_path, monkeypatch):
    def change(texts, *args):
        found = find_duplicates(texts, *args)
        corpus.write_text(corpus.read_text().replace("al", "ax"))
        return found

    monkeypatch.setattr(writer, "find_duplicates", change)
    with pytest.raises(DataError, match=r"corpus\.txt: The file changed while it was read"):
        write(dedup="exact")
    assert not (tmp_path / "out").exists()


def test_unknown_kind_is_refused(write, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--dedup is 'nead', expected one of none, exact, near \(did you mean 'near'\?\)"
    ):
        write(dedup="nead")
    assert not (tmp_path / "out").exists()


def test_near_without_its_library_names_the_extra_and_keeps_existing_output(write, corpus, tmp_path, monkeypatch):
    before = write()
    monkeypatch.setitem(sys.modules, "rensa", None)
    options = {"tokenizer": str(tmp_path / "out/tokenizer"), "out": str(tmp_path / "out"), "overwrite": True}
    with pytest.raises(ConfigError, match=r'--dedup near needs the package rensa: pip install "stemformer\[dedup\]"'):
        stemformer.prepare([str(corpus)], dedup="near", **options)
    assert read_manifest(tmp_path / "out") == before
    assert write("exact", dedup="exact").skipped


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_a_single_document_is_prepared_with_a_note(write, tmp_path, kind):
    (tmp_path / "one.txt").write_text(" ".join(f"{make_text(seed).capitalize()}." for seed in range(5)))
    notes = []
    manifest = write(source=tmp_path / "one.txt", dedup=kind, on_note=notes.append)
    assert manifest.splits["train"].documents == manifest.splits["held_out"].documents == 1
    assert notes[1] == f"--dedup {kind} has no effect: the text is one document (split it with --documents)"


def test_splits_that_duplicates_leave_empty_are_refused_with_the_reason(write, tmp_path):
    (tmp_path / "two.txt").write_text("one two\none  two\n")
    with pytest.raises(DataError, match=r"Of 1 document \(skipped: 1 exact duplicates.*\), none is in the train split"):
        write(source=tmp_path / "two.txt", dedup="exact")
