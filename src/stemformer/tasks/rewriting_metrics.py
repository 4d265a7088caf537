"""Metrics of rewritten texts, and those of returning the source.

Source: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), both as in sacreBLEU (Post 2018).
"""

import re
from collections.abc import Sequence
from typing import Any

# Source, references (the target first), the written text, and whether it ended by itself.
Outcome = tuple[str, Sequence[str], str, bool]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# Scripts without spaces between words: kana, Thai, Lao, Burmese, Khmer.
_NO_SPACES = re.compile("[\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
# Share of the characters of such a script from which on texts are compared by characters.
_MIN_SHARE = 0.2


def rewriting_metrics(outcomes: Sequence[Outcome]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of written texts and details.

    Returns:
        `bleu` and `chrf` of the corpus from 0 to 100, `exact_match` (share equal to a reference), `copied` (share equal to
        the source), `length_ratio` (characters written for each of the reference), `cut` (share that ran into its
        maximum length); and as details sacreBLEU's `signature` and `baseline`, the metrics of the sources themselves.
    """
    if not outcomes:
        return dict.fromkeys(("bleu", "chrf", "exact_match", "copied", "length_ratio", "cut"), 0.0), {}
    sources, references, written, _ = zip(*outcomes, strict=True)
    tokenizer = bleu_tokenizer([texts[0] for texts in references])
    metrics, signature = _corpus_metrics(written, references, tokenizer)
    metrics["copied"] = _share(a == b for a, b in zip(written, sources, strict=True))
    metrics["cut"] = _share(not is_complete for *_, is_complete in outcomes)
    baseline, _ = _corpus_metrics(sources, references, tokenizer)
    return metrics, {"signature": signature, "baseline": baseline}


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
        "exact_match": _share(text in refs for text, refs in zip(texts, references, strict=True)),
        "length_ratio": sum(map(len, texts)) / shorter,
    }
    return metrics, str(bleu.get_signature())


def _share(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)
