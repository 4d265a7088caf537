"""Make sentences with synthetic errors and their corrections, and the real errors of JFLEG to measure on.

    python benchmarks/grammar_pairs.py --data DATA --jfleg JFLEG --out OUT

`DATA` is the folder of real data sets, `JFLEG` a checkout of https://github.com/keisks/jfleg (Napoles et al. 2017,
CC BY-NC-SA 4.0); nothing happens without them. `OUT/train.jsonl` has sentences of Simple English Wikipedia, spaced as
JFLEG's, of which seven in ten get errors that learners make: spelling, articles, prepositions, number, verb forms,
words of similar sound, punctuation. `OUT/dev.jsonl` and `OUT/test.jsonl` have JFLEG's sentences with four corrections
each. No sentence of JFLEG is used to make errors.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ten_million_words import read_simplewiki

from stemformer.data.text.sentences import sentence_ends

NUM_SENTENCES = 150_000
MIN_WORDS, MAX_WORDS = 4, 35
# Share of the sentences that stay as they are, and of the words of the others that get an error.
UNCHANGED, ERROR_RATE = 0.3, 0.2

_TOKENS = re.compile(r"\d+(?:[,.]\d+)+|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.]\w+)*|[^\w\s]", re.IGNORECASE)
_ARTICLES = ("a", "an", "the")
_PREPOSITIONS = ("in", "on", "at", "of", "for", "to", "with", "by", "from", "about", "into")
_CONFUSED = (
    ("is", "are", "was", "were", "be", "been"),
    ("has", "have", "had"),
    ("do", "does", "did"),
    ("their", "there", "they"),
    ("than", "then"),
    ("to", "too"),
    ("its", "it"),
    ("much", "many"),
    ("other", "another", "others"),
    ("this", "these"),
    ("that", "those", "which"),
    ("he", "his", "him"),
    ("very", "so"),
    ("because", "becouse", "becuase"),
    ("can", "could"),
    ("will", "would"),
)
_SIMILAR = {word: [other for other in words if other != word] for words in _CONFUSED for word in words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--jfleg", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    if args.data is None or args.jfleg is None:
        parser.print_help()
        return
    rng = random.Random(0)
    sentences = list(dict.fromkeys(read_sentences(args.data)))
    rng.shuffle(sentences)
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = [{"source": break_sentence(text, rng), "target": text} for text in sentences[:NUM_SENTENCES]]
    changed = sum(pair["source"] != pair["target"] for pair in pairs)
    print(f"train: {len(pairs):,} sentences, {changed / len(pairs):.1%} with errors")
    write(args.out / "train.jsonl", pairs)
    for split in ("dev", "test"):
        sources, *references = (
            (args.jfleg / split / f"{split}.{name}").read_text("utf-8").splitlines()
            for name in ("src", "ref0", "ref1", "ref2", "ref3")
        )
        rows = [
            {"source": source.strip(), "targets": [text.strip() for text in texts]}
            for source, *texts in zip(sources, *references, strict=True)
        ]
        print(f"{split}: {len(rows):,} sentences of JFLEG")
        write(args.out / f"{split}.jsonl", rows)


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def read_sentences(data: Path) -> Iterator[str]:
    for text in read_simplewiki(data):
        start = 0
        for end in sentence_ends(text):
            tokens, start = _TOKENS.findall(text[start:end]), end
            if MIN_WORDS <= len(tokens) <= MAX_WORDS and tokens[-1] in ".?!" and tokens[0][0].isupper():
                yield " ".join(tokens)


def break_sentence(text: str, rng: random.Random) -> str:
    """Return a sentence with errors, or in some cases as it is."""
    if rng.random() < UNCHANGED:
        return text
    words: list[str] = []
    for word in text.split():
        words += rng.choice(_KINDS)(word, rng) if rng.random() < ERROR_RATE else [word]
        # Words that miss where they belong.
        if word.lower() in (*_ARTICLES, *_PREPOSITIONS) and rng.random() < ERROR_RATE:
            words.pop()
    if words and rng.random() < ERROR_RATE:
        words[0] = words[0].lower()
    return " ".join(words) or text


def _misspell(word: str, rng: random.Random) -> list[str]:
    if len(word) < 4 or not word.isalpha():
        return [word]
    i = rng.randrange(1, len(word) - 1)
    letter = rng.choice("aeiou") if word[i] in "aeiou" else rng.choice("bcdfghklmnprstvy")
    changed = (
        word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + word[i + 1 :],
        word[:i] + word[i] + word[i:],
        word[:i] + letter + word[i + 1 :],
    )
    return [rng.choice(changed)]


def _change_number(word: str, rng: random.Random) -> list[str]:
    if len(word) < 4 or not word.isalpha() or word.endswith("ss"):
        return [word]
    return [word[:-1] if word.endswith("s") else word + "s"]


def _change_form(word: str, rng: random.Random) -> list[str]:
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) > len(ending) + 3:
            stem = word.removesuffix(ending)
            return [rng.choice([stem, stem + "e", stem + ("ed" if ending == "ing" else "ing"), stem + "s"])]
    return [word]


def _change_small_word(word: str, rng: random.Random) -> list[str]:
    for words in (_ARTICLES, _PREPOSITIONS):
        if word.lower() in words:
            return [rng.choice([other for other in words if other != word.lower()])]
    return [rng.choice(_SIMILAR[word])] if word in _SIMILAR else [word]


def _insert_word(word: str, rng: random.Random) -> list[str]:
    return [rng.choice((*_ARTICLES, rng.choice(_PREPOSITIONS))), word] if word.isalpha() else [word]


def _change_mark(word: str, rng: random.Random) -> list[str]:
    return [] if word == "," else [word, ","] if word.isalpha() and rng.random() < 0.3 else [word]


_KINDS: tuple[Callable[[str, random.Random], list[str]], ...] = (
    _misspell,
    _misspell,
    _misspell,
    _change_number,
    _change_number,
    _change_form,
    _change_form,
    _change_small_word,
    _change_small_word,
    _change_small_word,
    _insert_word,
    _change_mark,
)


if __name__ == "__main__":
    main()
