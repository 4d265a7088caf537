"""Make a text of about ten million English words, one sentence a document, for pre-training before BLiMP.

    python benchmarks/ten_million_words.py --data DATA --out mix.jsonl

`DATA` is the folder of real data sets; nothing happens without it. Words are separated by white space: encyclopedia (Simple
English Wikipedia) 2.0 M, classic books 3.9 M, film reviews (IMDB) 2.35 M, sentences for learners (Tatoeba) up to 0.72 M,
dialogs (DREAM, DialogSum) up to 0.68 M, captions (Multi30K) 0.35 M. Paragraphs are taken at random with a fixed seed until
a share is full; sentences are shuffled.
"""

import argparse
import gzip
import json
import lzma
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

# Words of each part.
SHARES = {"simplewiki": 2_000_000, "books": 3_900_000, "reviews": 2_350_000, "tatoeba": 720_000}
SHARES |= {"dialogs": 680_000, "captions": 350_000}
# Parts without sentences of one word, such as titles.
WITHOUT_FRAGMENTS = ("simplewiki", "books")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("mix.jsonl"))
    args = parser.parse_args()
    if args.data is None:
        parser.print_help()
        return
    rng, chosen = random.Random(0), []
    for name, limit in SHARES.items():
        texts, number = list(PARTS[name](args.data)), 0
        rng.shuffle(texts)
        for sentence in (sentence for text in texts for sentence in split_sentences(text)):
            size = len(sentence.split())
            if number + size > limit:
                break
            if size > 1 or name not in WITHOUT_FRAGMENTS:
                chosen.append(sentence)
                number += size
        print(f"{name} {number:,}")
    rng.shuffle(chosen)
    args.out.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in chosen), "utf-8")
    print(f"{sum(len(text.split()) for text in chosen):,} words in {len(chosen):,} sentences")


def split_sentences(text: str) -> list[str]:
    text = re.sub(r"\s+", " ", text).strip()
    parts = re.split(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+(?=[\"'\u201c\u2018(]*[A-Z0-9])", text)
    return [part for part in parts if part]


def members(archive: Path, pattern: str) -> Iterator[str]:
    """Yield the texts of an archive's files whose names match."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and re.search(pattern, member.name):
                file = tar.extractfile(member)
                assert file is not None
                yield file.read().decode("utf-8", "replace")


def read_simplewiki(data: Path) -> Iterator[str]:
    for text in members(data / "simplewiki_2018" / "simplewiki.tar.xz", ""):
        for document in re.findall(r"<doc [^>]*>\n(.*?)</doc>", text, re.S):
            # Without the title.
            yield from document.partition("\n")[2].split("\n")


def read_books(data: Path) -> Iterator[str]:
    for book in members(data / "classic_books_en" / "classic_books.tar.xz", r"\.md$"):
        for paragraph in book.split("\n\n"):
            if not paragraph.startswith("#"):
                yield re.sub(r"[*_]", "", paragraph)


def read_reviews(data: Path) -> Iterator[str]:
    for review in members(data / "imdb" / "aclImdb.tar.xz", r"(train|test)/(pos|neg)/"):
        yield review.replace("<br />", " ")


def read_tatoeba(data: Path) -> Iterator[str]:
    folder = data / "tatoeba_pairs"
    lines = zipfile.ZipFile(folder / "fra-eng.zip").read("fra.txt").decode("utf-8-sig").splitlines()
    lines += lzma.decompress((folder / "cmn.txt.xz").read_bytes()).decode("utf-8-sig").splitlines()
    yield from sorted({line.partition("\t")[0] for line in lines})


def read_dialogs(data: Path) -> Iterator[str]:
    for split in ("train", "dev", "test"):
        for turns, questions, _ in json.loads(lzma.decompress((data / "dream" / f"{split}.json.xz").read_bytes())):
            yield from (re.sub(r"^[A-Za-z ]{1,12}: ", "", turn) for turn in turns)
            for question in questions:
                yield from (question["question"], question["answer"])
    for split in ("dev", "test"):
        packed = (data / "dialogsum" / f"dialogsum.{split}.jsonl.xz").read_bytes()
        for line in lzma.decompress(packed).decode("utf-8").strip().split("\n"):
            for turn in json.loads(line)["dialogue"].split("\n"):
                yield re.sub(r"^#Person\d#: ", "", turn).replace(" ' ", "'")


def read_captions(data: Path) -> Iterator[str]:
    yield from gzip.decompress((data / "multi30k" / "train.en.gz").read_bytes()).decode("utf-8").splitlines()


PARTS = {
    "simplewiki": read_simplewiki,
    "books": read_books,
    "reviews": read_reviews,
    "tatoeba": read_tatoeba,
    "dialogs": read_dialogs,
    "captions": read_captions,
}


if __name__ == "__main__":
    main()
