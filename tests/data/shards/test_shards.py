import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from stemformer.data.shards import encoding
from stemformer.data.shards.encoding import batch_documents, encode_batch
from stemformer.data.shards.manifest import check_tokenizer, read_manifest
from stemformer.data.shards.reader import open_shards
from stemformer.data.shards.splits import is_held_out
from stemformer.data.shards.writer import write_shards
from stemformer.data.text.documents import read_documents
from stemformer.data.text.sentences import sentence_ends
from stemformer.data.tokenization.tokenizer import EncodedDocument, Tokenizer
from stemformer.data.tokenization.trainers import train_wordpiece
from stemformer.errors import ConfigError, DataError, TokenizerError

BLOCK = 2_000  # characters: several blocks in a small corpus
TEXT = "the a cat dog river old green house sleeps runs under over because never quickly and then it she sees"
WORDS = TEXT.split()


class LetterTokenizer(Tokenizer):
    """One token per letter, ids are code points; a word starts after anything but a letter."""

    vocab_size = 256
    fingerprint = "letters" * 9

    def __init__(self):
        pass

    def encode_documents(self, texts, sentence_ends):
        return [self._encode(text, ends) for text, ends in zip(texts, sentence_ends, strict=True)]

    def _encode(self, text, ends):
        kept = [i for i, character in enumerate(text) if character.isalpha()]
        bounds = [0, *ends]
        starts = np.unique([sum(i < bound for i in kept) for bound in bounds]).astype(np.int64)
        return EncodedDocument(
            ids=np.array([ord(text[i]) for i in kept], np.uint32),
            word_starts=np.array([i == 0 or not text[i - 1].isalpha() for i in kept], bool),
            sentence_starts=starts[starts < len(kept)],
        )

    def save(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "letters.txt").write_text("letters")


class SpyTokenizer(LetterTokenizer):
    """Wrap a tokenizer and record the texts that it encodes."""

    def __init__(self, inner):
        self.inner, self.texts = inner, []
        self.vocab_size, self.fingerprint = inner.vocab_size, inner.fingerprint

    def encode_documents(self, texts, sentence_ends):
        self.texts += texts
        return self.inner.encode_documents(texts, sentence_ends)

    def save(self, folder):
        self.inner.save(folder)


class WideTokenizer(LetterTokenizer):
    vocab_size = 65_537
    fingerprint = "wide" * 16


def make_corpus(path: Path, num_documents: int = 120, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(num_documents):
        sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(rng.integers(1, 6))]
        lines.append(f"{number} " + " ".join(sentence.capitalize() for sentence in sentences))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece([TEXT + " 0123456789."] * 3, vocab_size=120, lowercase=True)


@pytest.fixture
def corpus(tmp_path) -> Path:
    return make_corpus(tmp_path / "corpus.txt")


@pytest.fixture
def write(corpus, tokenizer, tmp_path):
    """Write the corpus to a folder, by default in several blocks and without a pool."""

    def run(name="out", inputs=(corpus,), tokenizer=tokenizer, **options):
        options = {"held_out": 0.2, "num_workers": 1, "block_characters": BLOCK} | options
        return write_shards(list(inputs), tokenizer, tmp_path / name, **options)

    return run


def expected_documents(corpus: Path, tokenizer, split: str, held_out: float = 0.2) -> list[EncodedDocument]:
    texts = [document.text for document in read_documents([corpus])]
    kept = [text for text in texts if is_held_out(text.encode(), held_out) == (split == "held_out")]
    return tokenizer.encode_documents(kept, [sentence_ends(text) for text in kept])


# Content


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_shards_hold_ids_words_and_sentences_of_each_document(write, corpus, tokenizer, tmp_path, split):
    write()
    shards = open_shards(tmp_path / "out", split)
    documents = expected_documents(corpus, tokenizer, split)
    assert shards.num_documents == len(documents) > 10
    assert len(list((tmp_path / "out" / split).glob("*.bin"))) > 3
    starts = shards.document_starts
    assert starts.dtype == shards.sentence_starts.dtype == np.int64
    sentences = []
    for number, document in enumerate(documents):
        span = int(starts[number]), int(starts[number + 1])
        np.testing.assert_array_equal(shards.tokens(*span), document.ids)
        np.testing.assert_array_equal(shards.word_starts(*span), document.word_starts)
        sentences += (document.sentence_starts + starts[number]).tolist()
    assert shards.sentence_starts.tolist() == [*sentences, shards.num_tokens]
    assert shards.num_tokens == starts[-1] == sum(len(document.ids) for document in documents)


def test_word_starts_of_any_span_equal_those_of_the_shard(write, tmp_path):
    write(block_characters=10**9)
    shards = open_shards(tmp_path / "out")
    expected = shards.word_starts(0, shards.num_tokens)
    assert expected.dtype == bool and 0 < expected.sum() < len(expected)
    for start in range(20):
        for stop in range(start, 40):
            np.testing.assert_array_equal(shards.word_starts(start, stop), expected[start:stop])


def test_counts_in_the_manifest_are_those_of_the_text(write, corpus, tmp_path):
    manifest = write(tokenizer=LetterTokenizer(), held_out=0)
    texts = [document.text for document in read_documents([corpus])]
    counts = manifest.splits["train"]
    assert set(manifest.splits) == {"train"}
    assert counts.documents == len(texts)
    assert counts.characters == counts.bytes == sum(map(len, texts))
    assert counts.tokens == sum(character.isalpha() for text in texts for character in text)
    assert manifest == read_manifest(tmp_path / "out")
    assert [(record.name, record.bytes) for record in manifest.inputs] == [("corpus.txt", corpus.stat().st_size)]


def test_bytes_and_characters_differ_if_the_text_is_not_ascii(write, tmp_path):
    (tmp_path / "é.txt").write_text("été là\n", encoding="utf-8")
    counts = write(inputs=[tmp_path / "é.txt"], held_out=0, tokenizer=LetterTokenizer()).splits["train"]
    assert (counts.characters, counts.bytes) == (6, 9)


def test_unigram_counts_are_those_of_the_train_split(write, corpus, tokenizer, tmp_path):
    write()
    ids = np.concatenate([document.ids for document in expected_documents(corpus, tokenizer, "train")])
    for split in ("train", "held_out"):
        counts = open_shards(tmp_path / "out", split).unigram_counts
        np.testing.assert_array_equal(counts, np.bincount(ids, minlength=tokenizer.vocab_size))


@pytest.mark.parametrize(("tokenizer_class", "size"), [(LetterTokenizer, 2), (WideTokenizer, 4)])
def test_ids_take_four_bytes_only_if_the_vocabulary_needs_them(write, tmp_path, tokenizer_class, size):
    write(tokenizer=tokenizer_class())
    shards = open_shards(tmp_path / "out")
    assert shards.tokens(0, 1).itemsize == size
    assert sum(path.stat().st_size for path in (tmp_path / "out/train").glob("*.bin")) == size * shards.num_tokens


def test_vocabulary_of_65536_takes_two_bytes():
    assert [encoding.id_dtype(size).itemsize for size in (65_536, 65_537)] == [2, 4]


def test_id_outside_the_vocabulary_is_refused(write):
    narrow = LetterTokenizer()
    narrow.vocab_size = 100
    with pytest.raises(TokenizerError, match=r"the id \d+, its vocabulary has 100"):
        write(tokenizer=narrow)


def test_documents_without_a_token_are_counted_and_skipped(write, tmp_path):
    (tmp_path / "some.txt").write_text("one two\n123\n\nthree four\n. . .\n")
    manifest = write(inputs=[tmp_path / "some.txt"], held_out=0, tokenizer=LetterTokenizer(), documents="line")
    assert manifest.skipped == {"no token": 2}
    assert open_shards(tmp_path / "out").num_documents == 2


def test_manifest_holds_no_path_above_the_inputs(write, tmp_path):
    write()
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


# Blocks and splits


def test_blocks_end_before_the_document_that_would_make_them_longer():
    texts = ["a" * 4, "b" * 5, "c" * 2, "d" * 30, "e"]
    batches = list(batch_documents(texts, 10))
    assert [batch.texts for batch in batches] == [texts[:2], texts[2:3], texts[3:4], texts[4:]]
    assert [(batch.block, batch.is_last, batch.num_documents) for batch in batches] == [
        (0, True, 2),
        (1, True, 1),
        (2, True, 1),
        (3, True, 1),
    ]


def test_batches_never_cross_blocks_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 7)
    texts = [str(number) for number in range(200)]
    batches = list(batch_documents(texts, 50))
    assert [text for batch in batches for text in batch.texts] == texts
    for block in range(batches[-1].block + 1):
        in_block = [batch for batch in batches if batch.block == block]
        assert [batch.is_last for batch in in_block] == [False] * (len(in_block) - 1) + [True]
        assert sum(len(text) for batch in in_block for text in batch.texts) <= 50


def test_held_out_fraction_is_about_right_and_a_function_of_the_document():
    texts = [f"document {number}".encode() for number in range(5_000)]
    chosen = [is_held_out(text, 0.1) for text in texts]
    assert 430 < sum(chosen) < 570  # 500 +- 3.3 standard deviations
    assert chosen == [is_held_out(text, 0.1) for text in texts]
    more = [is_held_out(text, 0.2) for text in texts]
    assert all(later for earlier, later in zip(chosen, more, strict=True) if earlier)
    assert not any(is_held_out(text, 0.0) for text in texts)


def test_equal_documents_are_in_the_same_split():
    texts = [f"word{'x' * (number % 7)}" for number in range(70)]
    splits = encode_batch(texts, LetterTokenizer(), 0.5)
    seen = {
        name: {bytes(piece) for piece in np.split(split.ids, split.document_starts[1:])}
        for name, split in splits.items()
    }
    assert len(seen) == 2 and not seen["train"] & seen["held_out"]


@pytest.mark.parametrize("held_out", [-0.1, 1.0, 1.5])
def test_fraction_out_of_range_is_refused(write, held_out):
    with pytest.raises(ConfigError, match="held_out"):
        write(held_out=held_out)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_one_of_few_documents_is_held_out(write, tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(encoding, "POOL_CHARACTERS", 1)
    (tmp_path / "three.txt").write_text("one two three four\nfive six\nseven eight nine ten\n")
    notes = []
    # The document whose size is nearest to the fraction.
    manifest = write(inputs=[tmp_path / "three.txt"], held_out=0.001, num_workers=num_workers, on_note=notes.append)
    assert manifest.splits["held_out"].characters == len("five six") and manifest.splits["train"].documents == 2
    assert notes == ["too few documents to choose by hash: holding out one of 3, 17.4% of the text"]


def test_one_of_few_documents_trains(write, tmp_path):
    (tmp_path / "two.txt").write_text("one two three four\nfive six\n")
    manifest = write(inputs=[tmp_path / "two.txt"], held_out=0.999)
    assert (manifest.splits["train"].documents, manifest.splits["held_out"].documents) == (1, 1)


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("One two. Three four. Five six. Seven eight. Nine ten.", "Seven eight. Nine ten."),
        ("One two. Three four.\n\nFive six. Seven eight. Nine.", "Five six. Seven eight. Nine."),
        ("One two. Three four.\n\nFive six.\n", "Five six."),
    ],
)
def test_the_last_part_of_a_single_document_is_held_out(write, tokenizer, tmp_path, text, tail):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/one.txt").write_text(text)
    notes = []
    write(inputs=[tmp_path / "in"], held_out=0.4, on_note=notes.append)
    shards = open_shards(tmp_path / "out", "held_out")
    [expected] = tokenizer.encode_documents([tail], [sentence_ends(tail)])
    np.testing.assert_array_equal(shards.tokens(0, shards.num_tokens), expected.ids)
    assert open_shards(tmp_path / "out").num_documents == 1
    assert notes[0].startswith("the text is one document: holding out its last part")


def test_a_single_sentence_has_no_held_out_part(write, tmp_path):
    (tmp_path / "one.txt").write_text("one two\none two\n")
    message = r"Of 2 documents, none is in the held-out split.*: all have the same text \(see --dedup exact\)"
    with pytest.raises(DataError, match=rf"{message}.*--held-out 0"):
        write(inputs=[tmp_path / "one.txt"], held_out=0.001)
    assert not (tmp_path / "out").exists()


def test_corpus_without_a_token_is_refused_and_removed(write, tmp_path):
    (tmp_path / "digits.txt").write_text("1 2\n3 4\n")
    with pytest.raises(DataError, match=r"no document with a token \(2 no token\)"):
        write(inputs=[tmp_path / "digits.txt"], tokenizer=LetterTokenizer())
    assert not (tmp_path / "out").exists()


# Reproducibility


def test_repeated_runs_give_the_same_bytes(write, tmp_path):
    for name in "abc":
        write(name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_two_workers_give_the_same_bytes_as_one(write, tmp_path, monkeypatch):
    write("one", num_workers=1)
    monkeypatch.setattr(encoding, "POOL_CHARACTERS", 1)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 500)
    write("two", num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_block_size_changes_the_files_but_not_the_tokens(write, tmp_path):
    write("small")
    write("large", block_characters=10**9)
    small, large = open_shards(tmp_path / "small"), open_shards(tmp_path / "large")
    assert len(contents(tmp_path / "small")) > len(contents(tmp_path / "large"))
    np.testing.assert_array_equal(small.document_starts, large.document_starts)
    np.testing.assert_array_equal(small.sentence_starts, large.sentence_starts)
    assert small.manifest.text_fingerprint == large.manifest.text_fingerprint


def test_fingerprint_depends_on_text_tokenizer_and_split(write, tmp_path):
    other = make_corpus(tmp_path / "other.txt", seed=1)
    manifests = [
        write("a"),
        write("b", inputs=[other]),
        write("c", tokenizer=LetterTokenizer()),
        write("d", held_out=0.3),
    ]
    assert len({manifest.fingerprint for manifest in manifests}) == 4


def test_fingerprint_does_not_depend_on_file_names(write, corpus, tmp_path):
    copy = tmp_path / "renamed.txt"
    copy.write_bytes(corpus.read_bytes())
    assert write("a").fingerprint == write("b", inputs=[copy]).fingerprint


# Interrupted runs

KILLED_RUN = """
    import os, sys
    from pathlib import Path
    from stemformer.data.shards.writer import write_shards
    from stemformer.data.tokenization.tokenizer import load_tokenizer

    corpus, vocabulary, out, fatal_call, resume = sys.argv[1:]
    calls, replace, sync = 0, Path.replace, os.fsync

    def counted(function):
        def call(*args):
            global calls
            calls += 1
            if calls == int(fatal_call):
                os._exit(9)
            return function(*args)
        return call

    Path.replace, os.fsync = counted(replace), counted(sync)
    write_shards(
        [corpus], load_tokenizer(vocabulary), out, held_out=0.2, num_workers=1, block_characters=2_000,
        resume=resume == "resume",
    )
"""


def killed_run(*arguments: object) -> int:
    command = [sys.executable, "-c", textwrap.dedent(KILLED_RUN), *map(str, arguments)]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize("fatal_call", [1, 2, 4, 5, 30, 31, 32, 100, 133])
def test_run_killed_at_any_point_is_resumed_to_the_same_bytes(write, corpus, tokenizer, tmp_path, fatal_call):
    write("reference")
    tokenizer.save(tmp_path / "vocabulary")
    assert killed_run(corpus, tmp_path / "vocabulary", tmp_path / "out", fatal_call, "fresh") == 9
    with pytest.raises(DataError):
        open_shards(tmp_path / "out")
    write("out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_run_killed_at_each_of_its_last_steps_is_resumed_to_the_same_bytes(write, corpus, tokenizer, tmp_path):
    write("reference")
    tokenizer.save(tmp_path / "vocabulary")
    codes, fatal_call = [], 140
    out = tmp_path / "out"
    while not codes or codes[-1] == 9:  # each run gets a little further than the one before
        codes.append(killed_run(corpus, tmp_path / "vocabulary", out, fatal_call, "resume" if codes else "fresh"))
        fatal_call = 1 + 3 * len(codes)
    assert codes[-1] == 0 and len(codes) > 4
    assert contents(out) == contents(tmp_path / "reference")


def test_finished_blocks_are_not_encoded_again(write, tokenizer, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, batches=4)
    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"interrupted\. Continue with stemformer prepare --resume"):
        open_shards(tmp_path / "out")
    spy = SpyTokenizer(tokenizer)
    write(tokenizer=spy, resume=True)
    assert 0 < len(spy.texts) < 100


def test_incomplete_last_line_of_progress_is_dropped(write, tmp_path, monkeypatch):
    write("reference")
    interrupt_after(monkeypatch, batches=4)
    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    path = tmp_path / "out/progress.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "out/train/shard-00099.bin.tmp").write_bytes(b"left over")
    write(resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_resume_of_finished_data_returns_its_manifest(write, tmp_path):
    manifest = write()
    before = contents(tmp_path / "out")
    (tmp_path / "out/progress.jsonl").write_text("left by a kill just after the manifest\n")
    assert write(resume=True) == manifest
    assert contents(tmp_path / "out") == before


def test_resume_in_a_new_folder_starts(write):
    assert write(resume=True).splits["train"].documents > 0


@pytest.mark.parametrize("is_finished", [False, True])
def test_resume_with_another_setting_is_refused_with_both_values(write, tmp_path, monkeypatch, is_finished):
    if not is_finished:
        interrupt_after(monkeypatch, batches=4)
        with pytest.raises(KeyboardInterrupt):
            write()
        monkeypatch.undo()
    else:
        write()
    with pytest.raises(DataError, match=r"started with held_out 0\.2, now it is 0\.3"):
        write(held_out=0.3, resume=True)
    with pytest.raises(DataError, match=r"started with block_characters 2000, now it is 9000"):
        write(block_characters=9_000, resume=True)
    with pytest.raises(
        DataError, match=r"started with tokenizer \w{12} \(\d+ ids\), now it is letterslette \(256 ids\)"
    ):
        write(tokenizer=LetterTokenizer(), resume=True)
    more = make_corpus(tmp_path / "more.txt")
    with pytest.raises(DataError, match=r"started with input none, now it is more.txt of \d+ bytes"):
        write(inputs=[tmp_path / "corpus.txt", more], resume=True)


def test_resume_with_changed_text_of_the_same_size_is_refused(write, corpus, monkeypatch):
    interrupt_after(monkeypatch, batches=4)
    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    corpus.write_text("X" + corpus.read_text()[1:])
    with pytest.raises(DataError, match=r"changed since the interrupted run \(from document 1 on\)"):
        write(resume=True)


def interrupt_after(monkeypatch, *, batches: int) -> None:
    """Raise KeyboardInterrupt after a number of batches are encoded."""
    original, calls = encoding.encode_batch, []

    def encode(*args, **options):
        calls.append(args)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(encoding, "encode_batch", encode)


def test_full_disk_leaves_no_temporary_file_and_can_be_resumed(write, tmp_path, monkeypatch):
    write("reference")
    calls, sync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write()
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    write(resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_failure_in_the_first_block_leaves_no_folder(write, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        write(inputs=[tmp_path / "bad.txt"])
    assert not (tmp_path / "out").exists()


# Workers

POOL_RUN = """
    import sys
    from stemformer.data.shards import encoding, writer
    from stemformer.data.tokenization.tokenizer import load_tokenizer

    if __name__ == "__main__":
        corpus, vocabulary, out = sys.argv[1:]
        encoding.POOL_CHARACTERS, encoding.BATCH_CHARACTERS = 1, 500

        def announced(texts):
            for number, text in enumerate(texts):
                if number == 60:
                    print("under way", flush=True)
                yield text

        original = writer.batch_documents
        writer.batch_documents = lambda texts, size: original(announced(texts), size)
        writer.write_shards(
            [corpus], load_tokenizer(vocabulary), out, held_out=0.2, num_workers=2, block_characters=2_000
        )
"""


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def pool_run(tmp_path, tokenizer):
    """Run with two workers on a long corpus; yields once a first shard has been written."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find processes")
    corpus = make_corpus(tmp_path / "long.txt", num_documents=20_000)
    tokenizer.save(tmp_path / "vocabulary")
    (tmp_path / "run.py").write_text(textwrap.dedent(POOL_RUN))
    command = [sys.executable, "run.py", corpus, "vocabulary", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "under way\n"
        while not list((tmp_path / "out").glob("train/*.bin")) and process.poll() is None:
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def workers_of(process: subprocess.Popen) -> list[int]:
    return [pid for pid in children(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_killed_worker_is_an_error_not_a_hang(pool_run):
    os.kill(workers_of(pool_run)[0], signal.SIGKILL)
    _, stderr = pool_run.communicate()
    assert pool_run.returncode == 1
    assert "DataError: A worker process was killed, possibly for lack of memory" in stderr


def test_interrupt_stops_the_pool_without_tracebacks_of_workers(pool_run):
    workers = workers_of(pool_run)
    assert len(workers) == 2
    os.killpg(pool_run.pid, signal.SIGINT)  # as a terminal does
    _, stderr = pool_run.communicate()
    assert stderr.count("Traceback") == 1 and "KeyboardInterrupt" in stderr
    assert not any(map(is_alive, workers))


def test_workers_exit_when_the_main_process_is_killed(pool_run):
    workers = workers_of(pool_run)
    os.kill(pool_run.pid, signal.SIGKILL)
    assert len(workers) == 2
    while any(map(is_alive, workers)):
        time.sleep(0.1)


def test_exception_in_a_worker_is_raised_unchanged(write, corpus, tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "POOL_CHARACTERS", 1)
    changed = SpyTokenizer(tokenizer)
    changed.fingerprint = "another"
    with pytest.raises(TokenizerError, match=r"saved in .* has the fingerprint \w+ after loading, expected another"):
        write(tokenizer=changed, num_workers=2)


def test_small_inputs_start_no_process(write, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pool was started")

    monkeypatch.setattr(encoding, "ProcessPoolExecutor", refuse)
    write(num_workers=8)


def test_number_of_workers_below_one_is_refused(write):
    with pytest.raises(ConfigError, match="num_workers is 0"):
        write(num_workers=0)


# Output folder


@pytest.mark.parametrize(("make", "message"), [("foreign", "not empty"), ("finished", "already holds prepared data")])
def test_folder_that_is_not_empty_is_refused_and_unchanged(write, tmp_path, make, message):
    if make == "foreign":
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.txt").write_text("precious")
    else:
        write()
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        write()
    assert contents(tmp_path / "out") == before


def test_resume_of_a_foreign_folder_is_refused(write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"nothing to resume \(it has thesis.txt"):
        write(resume=True)


def test_output_inside_an_input_folder_is_refused(write, tmp_path):
    with pytest.raises(DataError, match="is inside the input folder"):
        write(inputs=[tmp_path])


# Reading


def test_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a folder of prepared data.*Run stemformer prepare"):
        open_shards(tmp_path)


def test_other_format_version_is_refused(write, tmp_path):
    write()
    path = tmp_path / "out/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(DataError, match="has format 2, this release reads 1"):
        open_shards(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', "\ufeff{}"])
def test_manifest_that_cannot_be_read_is_damaged(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json") as caught:
        open_shards(tmp_path)
    assert caught.value.exit_code == 3


def test_changed_manifest_is_damaged(write, tmp_path):
    write()
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["sentences"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed since it was written") as caught:
        open_shards(tmp_path / "out")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("suffix", ["bin", "doc", "sent", "word"])
@pytest.mark.parametrize("verify", [False, True])
def test_truncated_file_is_named_with_both_sizes(write, tmp_path, suffix, verify):
    write()
    path = tmp_path / f"out/train/shard-00001.{suffix}"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    message = rf"shard-00001\.{suffix} has {size - 1:,} bytes, the manifest says {size:,}"
    with pytest.raises(DataError, match=message) as caught:
        open_shards(tmp_path / "out", verify=verify)
    assert caught.value.exit_code == 3


def test_missing_file_is_named(write, tmp_path):
    write()
    (tmp_path / "out/train/shard-00000.sent").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.sent is missing"):
        open_shards(tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["train/shard-00001.bin", "train/shard-00000.word", "unigram.npy", "tokenizer/vocab.txt"]
)
def test_flipped_bit_is_detected(write, tmp_path, name):
    write()
    path = tmp_path / "out" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} was changed since it was written") as caught:
        open_shards(tmp_path / "out")
    assert caught.value.exit_code == 3
    open_shards(tmp_path / "out", verify=False)


def test_spans_outside_the_split_or_across_shards_are_refused(write, tmp_path):
    write()
    shards = open_shards(tmp_path / "out")
    end = np.fromfile(tmp_path / "out/train/shard-00000.doc", "<u8")[-1].item()
    assert len(shards.tokens(0, end)) == end
    assert len(shards.tokens(shards.num_tokens, shards.num_tokens)) == 0
    for start, stop in [(end - 1, end + 1), (0, shards.num_tokens), (-1, 2), (5, 4), (0, shards.num_tokens + 1)]:
        for read in (shards.tokens, shards.word_starts):
            with pytest.raises(IndexError):
                read(start, stop)


def test_spans_across_shards_can_be_copied(write, tmp_path):
    write()
    shards = open_shards(tmp_path / "out")
    files = sorted((tmp_path / "out" / "train").glob("*.bin"))
    assert len(files) > 2
    every = np.concatenate([np.fromfile(file, "<u2") for file in files])
    end = len(np.fromfile(files[0], "<u2"))
    for start, stop in [(0, len(every)), (end - 1, end + 1), (3, 9), (end, end), (0, 0), (len(every), len(every))]:
        assert shards.tokens_across(start, stop).tolist() == every[start:stop].tolist()


def test_tokens_are_read_only(write, tmp_path):
    write()
    with pytest.raises(ValueError, match="read-only"):
        open_shards(tmp_path / "out").tokens(0, 3)[0] = 1


def test_missing_held_out_split_is_refused(write, tmp_path):
    write(held_out=0)
    with pytest.raises(DataError, match="no held-out text"):
        open_shards(tmp_path / "out", "held_out")


def test_unknown_split_is_refused(write, tmp_path):
    write()
    with pytest.raises(DataError, match="no split 'test', expected one of train, held_out"):
        open_shards(tmp_path / "out", "test")


def test_other_tokenizer_is_refused_with_both_fingerprints(write, tokenizer):
    manifest = write()
    check_tokenizer(manifest, tokenizer)
    with pytest.raises(TokenizerError, match=rf"letters.* 256 ids.*{manifest.tokenizer_fingerprint[:12]}"):
        check_tokenizer(manifest, LetterTokenizer())
