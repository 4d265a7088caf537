"""Make a small text of two languages for denoising before a model learns to translate from few pairs.

    python benchmarks/denoising_text.py --data DATA --out OUT

`DATA` is the folder of real data sets; nothing happens without it. `OUT/mix.jsonl` has paragraphs of Simple English Wikipedia
(1.6 M words), and each sentence as a document of its own: the French ones of Tatoeba, and the captions of Multi30k's training
pairs in English and in French, shuffled, so that no text says which belong together. `OUT/pairs.en` and `OUT/pairs.fr` are
the training pairs in a random order. Captions for evaluation are not in the mix.
"""

import argparse
import gzip
import json
import random
import zipfile
from pathlib import Path

from ten_million_words import read_captions, read_simplewiki

WIKIPEDIA_WORDS = 1_600_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    if args.data is None:
        parser.print_help()
        return
    rng = random.Random(0)
    english = list(read_captions(args.data))
    french = gzip.decompress((args.data / "multi30k" / "train.fr.gz").read_bytes()).decode("utf-8").splitlines()
    held_out = set(read_evaluation_captions(args.data))
    parts = {
        "simplewiki": _some_paragraphs(list(read_simplewiki(args.data)), rng),
        "tatoeba_fr": sorted(set(read_french(args.data)) - held_out),
        "captions_en": sorted(set(english) - held_out),
        "captions_fr": sorted(set(french) - held_out),
    }
    for name, texts in parts.items():
        print(f"{name}: {sum(len(text.split()) for text in texts):,} words in {len(texts):,} documents")
    documents = [text for texts in parts.values() for text in texts]
    rng.shuffle(documents)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    (args.out / "mix.jsonl").write_text("".join(lines), "utf-8")
    pairs = list(zip(english, french, strict=True))
    rng.shuffle(pairs)
    for language, column in zip(("en", "fr"), zip(*pairs, strict=True), strict=True):
        (args.out / f"pairs.{language}").write_text("".join(f"{line}\n" for line in column), "utf-8")


def _some_paragraphs(paragraphs: list[str], rng: random.Random) -> list[str]:
    """Return paragraphs with at least 20 words, in a random order, up to the limit of words."""
    rng.shuffle(paragraphs)
    chosen, number = [], 0
    for text in paragraphs:
        if number >= WIKIPEDIA_WORDS:
            break
        if (size := len(text.split())) >= 20:
            chosen.append(text)
            number += size
    return chosen


def read_french(data: Path) -> list[str]:
    archive = zipfile.ZipFile(data / "tatoeba_pairs" / "fra-eng.zip")
    lines = archive.read("fra.txt").decode("utf-8-sig").splitlines()
    return [line.split("\t")[1] for line in lines if "\t" in line]


def read_evaluation_captions(data: Path) -> list[str]:
    names = [f"{split}.{language}.gz" for split in ("val", "test_2016_flickr") for language in ("en", "fr")]
    files = [data / "multi30k" / name for name in names]
    return [line for file in files for line in gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()]


if __name__ == "__main__":
    main()
