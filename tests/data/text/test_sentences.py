"""Sentence ends: cases by script and rule, and properties of any text."""

import random
import time

import pytest

from stemformer.data.text.sentences import sentence_ends


def split(text: str) -> list[str]:
    ends = sentence_ends(text)
    return [text[begin:end].strip() for begin, end in zip([0, *ends], ends, strict=False)]


ONE_SENTENCE = [
    "Mr. Brown met Dr. Smith at St. Mary.",
    "Use a list, e.g. This one.",
    "The U.S. President spoke.",
    "J. K. Rowling wrote it.",
    "Pi is 3.14 or so.",
    "See No. 5 and vol. 12 of it.",
    "Apples, pears, etc. were sold.",
    "He came at 5 p.m. on Monday.",
    "“Really?” she said.",
    "Wait ... what?",
    "Am 3. Oktober war es soweit.",
    "Es geschah im 19. Jahrhundert in Wien.",
    "Obst, z. B. Äpfel, und bzw. Birnen.",
    "Das war 44 v. Chr. in Rom.",
    "Es kostet 2 Mrd. Euro im Jahr.",
    "M. Dupont et Mme. Durand arrivent.",
    "El Sr. García y la Sra. Pérez.",
    "Murió en el 300 a. C. en Roma.",
    "1. Open the box.",
]
SPLIT = {
    "english": ["He left.", "She stayed!", "Did they?", "Yes."],
    "closing quotes": ["He said “no.”", "(She did too.)", "'Fine.'", "End"],
    "opening quotes": ["It ended.", "“So be it,” he said.", "[Applause]"],
    "sentence ending in an acronym": ["He lives in the U.S.", "The house is big."],
    "sentence ending in a number": ["It was built in 1995.", "No one lives there."],
    "no as a word": ["She said no.", "Then she left."],
    "german quotes": ["„Das ist gut.“", "Er ging.", "»Halt!«", "Sie lief."],
    "french": ["« Bonjour ! »", "Elle sourit.", "Où est-il ?", "Là."],
    "spanish": ["Hola.", "¿Qué tal?", "¡Bien!"],
    "russian": ["Он ушёл.", "Она осталась."],
    "russian dialogue": ["— Что? — спросил он.", "— Ничего."],
    "arabic": ["ذهب الولد.", "هل عاد؟", "نعم."],
    "hindi": ["वह गया।", "वह आई।"],
    "armenian": ["Նա գնաց։", "Նա եկավ։"],
    "ethiopic": ["ሰላም ነው።", "ደህና ነኝ።"],
    "korean": ["그는 갔다.", "그녀는 왔다."],
}


@pytest.mark.parametrize("text", ONE_SENTENCE)
def test_sentence_ends_does_not_split_after_abbreviations_and_numbers(text: str) -> None:
    assert split(text) == [text]


@pytest.mark.parametrize("sentences", SPLIT.values(), ids=SPLIT)
def test_sentence_ends_splits_between_sentences(sentences: list[str]) -> None:
    assert split(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["他走了。", "她留下！", "真的吗？", "是的"],
        ["他說「好。」", "她走了。"],
        ["“走吧！”", "他们走了……。", "完"],
        ["你好!", "他说."],
    ],
)
def test_sentence_ends_needs_no_space_in_chinese(sentences: list[str]) -> None:
    assert split("".join(sentences)) == sentences


def test_sentence_ends_does_not_split_before_a_chinese_comma() -> None:
    assert split("他問「好嗎？」，然後走了。") == ["他問「好嗎？」，然後走了。"]


def test_sentence_ends_splits_at_every_newline() -> None:
    assert split("A title\n\nthe text continues\nhere") == ["A title", "the text continues", "here"]


def test_sentence_ends_puts_white_space_into_the_sentence_before_it() -> None:
    assert sentence_ends("One.  Two.\n\n Three. ") == [6, 13, 20]


def test_sentence_ends_ignores_leading_white_space() -> None:
    assert sentence_ends("\n\n  One. Two.") == [9, 13]


@pytest.mark.parametrize(("text", "ends"), [("", []), (" ", [1]), ("\n\n", [2]), ("a", [1]), (".", [1]), ("a.\n", [3])])
def test_sentence_ends_of_tiny_texts(text: str, ends: list[int]) -> None:
    assert sentence_ends(text) == ends


def test_sentence_ends_of_random_texts_are_ascending_and_leave_no_blank_sentence() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices("aB1 .!?\n\t\"'»«“”…。」「中a. Mr3।", k=rng.randint(1, 40)))
        ends = sentence_ends(text)
        assert ends == sorted(set(ends)) and ends[-1] == len(text)
        if text.strip():
            assert all(text[begin:end].strip() for begin, end in zip([0, *ends], ends, strict=False)), repr(text)


@pytest.mark.parametrize("text", [".", ". ", "\n", '."', "。", "a.", "中!", "1. "])
@pytest.mark.parametrize("ending", [("", "", ""), ("", "\n", ""), ("", ".", "中"), (".", " ", "a"), ("", '"', "")])
def test_sentence_ends_takes_time_in_proportion_to_the_text(text: str, ending: tuple[str, str, str]) -> None:
    def cpu_seconds(size: int) -> float:
        before, repeated, after = ending
        long = "a" + text * size + before + repeated * size + after
        began = time.process_time()
        sentence_ends(long)
        return time.process_time() - began

    short = min(cpu_seconds(500) for _ in range(3))
    assert cpu_seconds(10_000) < 100 * short  # about 20 times as long; 400 times if it were quadratic
