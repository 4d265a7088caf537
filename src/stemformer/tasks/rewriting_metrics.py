"""Metrics of rewritten texts, and those of returning the source.

Source: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), both as in sacreBLEU (Post 2018); Lin 2004 (ROUGE), as in the
package rouge-score without stemming, except that words have letters of any script, or are characters.
"""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

# Source, references (the target first), the written text, and whether it ended by itself.
Outcome = tuple[str, Sequence[str], str, bool]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# Scripts without spaces between words: kana, Thai, Lao, Burmese, Khmer.
_NO_SPACES = re.compile("[\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRIC_NAMES = ("bleu", "chrf", *_ROUGE_NAMES, "exact_match", "copied", "length_ratio", "cut")
_WORD = re.compile(r"[^\W_]+")
# Share of the characters of such a script from which on texts are compared by characters.
_MIN_SHARE = 0.2


def rewriting_metrics(outcomes: Sequence[Outcome]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of written texts and details.

    Returns:
        `bleu` and `chrf` of the corpus and `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (mean F1 of the texts, each with its
        best reference), from 0 to 100; `exact_match` (share equal to a reference), `copied` (share equal to the source),
        `length_ratio` (characters written for each of the reference), `cut` (share that ran into its maximum length).
        Details are sacreBLEU's `signature` and `baseline`, the metrics of the sources themselves.
    """
    if not outcomes:
        return dict.fromkeys(METRIC_NAMES, 0.0), {}
    sources, references, written, _ = zip(*outcomes, strict=True)
    tokenizer = bleu_tokenizer([texts[0] for texts in references])
    metrics, signature = _corpus_metrics(written, references, tokenizer)
    metrics["copied"] = _share(a == b for a, b in zip(written, sources, strict=True))
    metrics["cut"] = _share(not is_complete for *_, is_complete in outcomes)
    baseline, _ = _corpus_metrics(sources, references, tokenizer)
    return {name: metrics[name] for name in METRIC_NAMES}, {"signature": signature, "baseline": baseline}


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


def _corpus_metrics(
    texts: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> tuple[dict[str, float], str]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    number = max(map(len, references))
    # sacreBLEU has a list for each reference of all texts; None where a text has fewer.
    columns: list[Any] = [[refs[i] if i < len(refs) else None for refs in references] for i in range(number)]
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    shorter = sum(len(refs[0]) for refs in references) or 1
    metrics = {
        "bleu": float(bleu.corpus_score(list(texts), columns).score),
        "chrf": float(chrf.corpus_score(list(texts), columns).score),
        **_rouge(texts, references, by_character=tokenizer != "13a"),
        "exact_match": _share(text in refs for text, refs in zip(texts, references, strict=True)),
        "length_ratio": sum(map(len, texts)) / shorter,
    }
    return metrics, str(bleu.get_signature())


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
