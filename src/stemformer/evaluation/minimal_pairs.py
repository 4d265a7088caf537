"""Minimal pairs: sets of an acceptable and an unacceptable sentence each, in the format of BLiMP.

Published results are in `blimp.toml`.

Source: Warstadt et al. 2020, sections 3 (sets) and 4 (the sentence of higher log-likelihood is chosen).
"""

import os
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from stemformer.data.labelled.table import read_table, required_text
from stemformer.data.text.files import files_below, split_suffixes
from stemformer.data.tokenization.tokenizer import Encoding, Tokenizer
from stemformer.errors import DataError
from stemformer.evaluation.few_shot.scoring import score_texts
from stemformer.models.model import Model

_KEYS = ("sentence_good", "sentence_bad")
_EXPECTED = "Pass the directory with BLiMP's .jsonl files (sentence_good, sentence_bad)."
PUBLISHED_BLIMP: list[dict[str, Any]] = tomllib.loads(
    (files("stemformer.evaluation") / "blimp.toml").read_text(encoding="utf-8")
)["published"]
"""Published results: `system`, `words` of its training, `scoring`, `accuracy` in percent, `source`."""


@dataclass(frozen=True)
class MinimalPairSet:
    """Set of minimal pairs about one phenomenon, such as `anaphor_agreement` of the field `morphology`.

    Attributes:
        sentences: Acceptable and unacceptable sentence of each pair.
        locations: Where each pair is, as `file.jsonl:12`.
    """

    name: str
    field: str
    phenomenon: str
    sentences: list[tuple[str, str]]
    locations: list[str]


def read_minimal_pairs(folder: str, *, limit: int | None = None) -> list[MinimalPairSet]:
    """Read the sets of a directory: its `.jsonl` files, also compressed, named without the suffix.

    Args:
        limit: Maximum number of pairs of each set, the first ones.

    Raises:
        DataError: There is no set, two have the same name, or a line lacks a sentence.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{folder} is not a directory. {_EXPECTED}")
    found = [file for file in files_below(root, Counter()) if split_suffixes(file.name)[1] == ".jsonl"]
    if not found:
        raise DataError(f"{folder} holds no set of minimal pairs. {_EXPECTED}")
    root = Path(os.path.commonpath([file.parent for file in found]))
    names = [split_suffixes(str(file.relative_to(root)))[0].removesuffix(".jsonl") for file in found]
    if repeated := [str(file) for file, name in zip(found, names, strict=True) if names.count(name) > 1]:
        raise DataError(f"{' and '.join(repeated[:2])} are sets of the same name. Remove or rename one.")
    return [_read_set(file, name, limit) for file, name in zip(found, names, strict=True)]


def _read_set(file: Path, name: str, limit: int | None) -> MinimalPairSet:
    table = read_table([file])
    rows = [{key: value for key, value in row.items() if value is not None} for row in table.rows[:limit]]
    pairs = [
        (required_text(row, _KEYS[:1], location), required_text(row, _KEYS[1:], location))
        for row, location in zip(rows, table.locations, strict=False)
    ]
    # One published set has a slash in its field.
    field = str(rows[0].get("field", "")).replace("/", "_")
    return MinimalPairSet(name, field, str(rows[0].get("linguistics_term", "")), pairs, table.locations[: len(pairs)])


def encode_pairs(pairs: MinimalPairSet, tokenizer: Tokenizer, *, max_tokens: int) -> list[Encoding]:
    """Return the tokens of the sentences of a set: of each pair, the acceptable one first.

    Raises:
        DataError: A sentence has no token, or more than `max_tokens`.
    """
    encodings = tokenizer.encode_batch([sentence for pair in pairs.sentences for sentence in pair])
    for number, encoding in enumerate(encodings):
        if not 0 < len(encoding.ids) <= max_tokens:
            location, key = pairs.locations[number // 2], _KEYS[number % 2]
            problem = f"{key} has {len(encoding.ids):,} tokens, expected 1 to {max_tokens:,}"
            raise DataError(f"{location}: {problem}. Remove the pair, or use another model.")
    return encodings


def count_correct(
    model: Model, tokenizer: Tokenizer, encodings: Sequence[Encoding], scorings: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Score the sentences of a set (see `encode_pairs`); return `correct` pairs and `ties`, which are wrong, by scoring.

    `scorings` are values of `pll` of `score_texts`, or `causal` for a causal model.
    """
    correct, ties = {}, {}
    for scoring in scorings:
        scores = score_texts(model, tokenizer, encodings, pll=scoring)
        pairs = list(zip(scores[::2], scores[1::2], strict=True))
        correct[scoring] = sum(good > bad for good, bad in pairs)
        ties[scoring] = sum(good == bad for good, bad in pairs)
    return {"correct": correct, "ties": ties}
