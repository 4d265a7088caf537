"""Metrics of rewritten texts, next to those of texts that need no model.

Source: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), both as in sacreBLEU (Post 2018); Lin 2004 (ROUGE), as in the
package rouge-score without stemming, except that words have letters of any script, or are characters.
"""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from stemformer.data.text.sentences import sentence_ends
from stemformer.tasks.edit_metrics import gleu, sari

# Source, references (the target first), the written text, and whether it ended by itself.
Outcome = tuple[str, Sequence[str], str, bool]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# Scripts without spaces between words: kana, Thai, Lao, Burmese, Khmer.
_NO_SPACES = re.compile("[\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Metrics from 0 to 100.
POINTS = ("bleu", "chrf", "sari", "gleu", *_ROUGE_NAMES)
METRIC_NAMES = (*POINTS, "exact_match", "copied", "length_ratio", "cut")
_WORD = re.compile(r"[^\W_]+")
# Share of the characters of such a script from which on texts are compared by characters.
_MIN_SHARE = 0.2
# Share of the words of a sentence that a truncated one keeps.
_KEPT_SHARE = 0.8


def rewriting_metrics(
    outcomes: Sequence[Outcome], *, constant: str | None = None, with_baselines: bool = True
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of written texts and details.

    Args:
        constant: Text of the baseline that always writes the same; None leaves it out.
        with_baselines: Whether details have baselines, which take as long as the metrics each.

    Returns:
        `bleu`, `chrf`, `sari` and `gleu` of the corpus and `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (mean F1 of the
        texts, each with its best reference), from 0 to 100; `exact_match` (share equal to a reference), `copied` (share
        equal to the source), `length_ratio` (characters written for each of the reference), `cut` (share that ran into
        its maximum length). Details are sacreBLEU's `signature` and `baselines`: the same metrics, but `cut`, of
        `copy` (the source), `truncate` (see `truncated`) and `constant`.
    """
    if not outcomes:
        return dict.fromkeys(METRIC_NAMES, 0.0), {}
    sources, references, written, _ = zip(*outcomes, strict=True)
    corpus = _Corpus(sources, references)
    metrics = {**corpus.metrics(written), "cut": _share(not is_complete for *_, is_complete in outcomes)}
    details: dict[str, Any] = {"signature": str(corpus.bleu.get_signature())}
    if with_baselines:
        texts = {"copy": sources, "truncate": [truncated(text, by_word=corpus.by_word) for text in sources]}
        texts |= {} if constant is None else {"constant": [constant] * len(sources)}
        details["baselines"] = [{"baseline": name, **corpus.metrics(same)} for name, same in texts.items()]
    return metrics, details


def truncated(text: str, *, by_word: bool = True) -> str:
    """Return the first sentence of several (the lead baseline), of one its first 80 % of words or characters.

    Source: Martin et al. 2022 (MUSS), section 4.4, for single sentences.
    """
    first = text[: next(iter(sentence_ends(text)), 0)]
    if len(first) < len(text):
        return first.strip()
    units = text.split() if by_word else list(text)
    return (" " if by_word else "").join(units[: max(1, int(_KEPT_SHARE * len(units)))])


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """Return the name of sacreBLEU's tokenizer for texts: `zh`, `char` for other scripts without spaces, or `13a`."""
    size = sum(map(len, texts)) or 1
    if sum(len(_NO_SPACES.findall(text)) for text in texts) > _MIN_SHARE * size:
        return "char"
    return "zh" if sum(len(_HAN.findall(text)) for text in texts) > _MIN_SHARE * size else "13a"


def sentence_chrf(text: str, references: Sequence[str]) -> float:
    """Return chrF of one text, from 0 to 100."""
    from sacrebleu import sentence_chrf as score

    return float(score(text, list(references)).score)


class _Corpus:
    """Sources and references of texts, with which the written ones are compared."""

    def __init__(self, sources: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        tokenizer = bleu_tokenizer([texts[0] for texts in references])
        self.by_word = tokenizer == "13a"
        self.bleu, self._chrf = BLEU(tokenize=tokenizer), CHRF()
        self._sources, self._references = sources, references
        number = max(map(len, references))
        # sacreBLEU has a list for each reference of all texts; None where a text has fewer.
        self._columns: list[Any] = [[r[i] if i < len(r) else None for r in references] for i in range(number)]
        # Of SARI and GLEU.
        self._tokens = {
            is_lower: (self._split(sources, is_lower), [self._split(r, is_lower) for r in references])
            for is_lower in (True, False)
        }

    def metrics(self, texts: Sequence[str]) -> dict[str, float]:
        """Return all metrics of written texts but `cut`."""
        references = self._references
        lower, cased = self._tokens[True], self._tokens[False]
        return {
            "bleu": float(self.bleu.corpus_score(list(texts), self._columns).score),
            "chrf": float(self._chrf.corpus_score(list(texts), self._columns).score),
            "sari": sari(lower[0], self._split(texts, True), lower[1]),
            "gleu": gleu(cased[0], self._split(texts, False), cased[1]),
            **_rouge(texts, references, by_character=not self.by_word),
            "exact_match": _share(text in refs for text, refs in zip(texts, references, strict=True)),
            "copied": _share(a == b for a, b in zip(texts, self._sources, strict=True)),
            "length_ratio": sum(map(len, texts)) / (sum(len(refs[0]) for refs in references) or 1),
        }

    def _split(self, texts: Sequence[str], is_lower: bool) -> list[list[str]]:
        """Return the tokens of texts, those of BLEU."""
        return [self.bleu.tokenizer(text.lower() if is_lower else text).split() for text in texts]


def _rouge(texts: Sequence[str], references: Sequence[Sequence[str]], *, by_character: bool) -> dict[str, float]:
    """Return the mean F1 of each ROUGE, from 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_ROUGE_NAMES), tokenizer=_RougeWords(by_character))
    scores = [scorer.score_multi(list(refs), text) for text, refs in zip(texts, references, strict=True)]
    return {name: 100 * fmean(score[name].fmeasure for score in scores) for name in _ROUGE_NAMES}


class _RougeWords:
    """Tokenizer of rouge-score: lower-case words of letters and digits, or such characters."""

    def __init__(self, by_character: bool) -> None:
        self._by_character = by_character

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return list("".join(words)) if self._by_character else words


def _share(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)
