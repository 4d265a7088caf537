"""Rule-based sentence boundaries for many languages, without a language setting.

Hand-written for speed on gigabytes. A newline always ends a sentence, as do `。！？` and full stops of
Devanagari, Arabic, Armenian, Ethiopic, Burmese and Khmer. `. ! ? …` end one before white space and
something that may begin a sentence, except a full stop after an abbreviation, an initial, an ordinal
or a list number. The abbreviations of all languages apply at once; the next word resolves clashes.
"""

import re

CLOSERS = "\"'”’»›)\\]}」』）】》〉］"
OPENERS = frozenset("\"'“‘„‚«‹»›([{「『（【《〈［¿¡*_-–—•·")
NEVER_FIRST = frozenset(",;:.!?…)]}%&=+/|<>")
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WIDE = "。！？｡।॥؟۔։።፧။។"
LONGEST_ABBREVIATION = 6

# Both patterns begin with one plain character set, so that the regex engine can skip to the next
# match; a run of marks is tried at its first mark only and nothing backtracks, so the time is
# linear for any text. `“` and `«` close German and Danish quotes; French has a space before `»`.
_SPACED = rf"(?<![.!?…]{{2}})[.!?…]*+[{CLOSERS}“«‹]*+(?:[^\S\n]»(?=\s))?+[^\S\n]++(?=\S)"
_ASCII_OR_SPACED = re.compile(rf"[\n.!?…](?:(?<=\n)\s*+|{_SPACED})")
_ANY_SCRIPT = re.compile(
    rf"[\n.!?…．{WIDE}](?:(?<=\n)\s*+|(?:(?<=[{WIDE}])|(?<=[{CJK}][!?．])(?=[{CLOSERS}{CJK}]))"
    rf"[.…!?{WIDE}]*+[{CLOSERS}]*+[^\S\n]*+|{_SPACED})"
)
_WIDE = re.compile(rf"[{WIDE}{CJK}]")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


# Abbreviations whose full stop never ends a sentence. Lower case, without the last full stop.
TITLES = """
    mr mrs ms messrs dr drs prof rev hon gen col lt sgt capt cpt cmdr maj adm brig gov sen rep pres supt insp st mt ft
    e.g i.e cf vs viz al approx ca incl esp resp ed eds trans
    z.b d.h u.a u.u bzw bspw evtl ggf vgl sog usf geb gest inkl exkl zzgl hl str hr fr frl dipl ing mag jr.prof
    d.i i.d.r o.ä s.o s.u z.t z.zt v.a m.e i.a i.v av p.s ps
    mm mme mmes mlle mlles mgr p.ex env
    sr sra sres sras srta dña dª dra dres ud uds vd vds p.ej pág págs núm
    sig sig.ra sig.na dott avv dhr mevr bijv
"""
# Abbreviations before a number (months: a day); else their full stop ends the sentence.
BEFORE_NUMBERS = """
    no nos nr nrn n.o nº vol vols pp pg pgs fig figs sec ch chap par para ex ext tab abb bd kap ff art
    jan feb mar apr jun jul aug sep sept oct okt nov dec dez op lib
"""
# Abbreviations whose full stop ends a sentence only before a word that often begins one.
UNSURE = """
    inc ltd pvt corp co bros jr etc usw dept univ assn ave blvd rd sq jan feb aug sept oct nov dec
    ph.d m.d b.a m.a d.c u.s u.k u.n u.s.a a.m p.m b.c a.d ee.uu c.v chr j.-c mrd mio tsd std
"""
STARTERS = """
    the a an this that these those it its he his she her they their we our you your i in on at as by for from with after
    before during since when while where if although though because however but and so yet or nor there here then thus
    also not no what who why how which one some many most all both each every another other
    der die das ein eine es er sie wir ich ihr im am in an auf bei mit nach von vor seit für aus zu zum zur durch wenn
    als während aber und oder doch dann da dort hier dies diese dieser dieses auch nicht wie was wer man sein seine
    le la les un une des il elle ils elles on nous vous je ce cette ces c'est en dans sur pour par avec après avant
    depuis lorsque quand si mais et ou donc ainsi selon à au aux son sa ses leur leurs plusieurs certains
    el los las una unos unas lo yo ella ellos nosotros se su sus este esta estos estas ese esa en con por para desde
    cuando mientras si pero y o como según tras al del más no muchos muchas algunos algunas después entonces también
"""
# Words before and after a German ordinal ("am 3. Oktober", "im 19. Jahrhundert").
BEFORE_ORDINALS = """
    am im der die das den dem des zum zur vom beim ab bis seit vor nach und ein eine einen einem einer seinen seinem
    seiner ihrem ihren ihrer dieser diesem jedem jeden auf
"""
AFTER_ORDINALS = """
    januar jänner februar märz april mai juni juli august september oktober november dezember jahrhundert jahrhunderts
    jahrhunderte jahrtausend jahrtausends weltkrieg weltkriegs weltkrieges jahrestag geburtstag platz tag klasse liga
    bundesliga runde spieltag mal auflage etage stock armee division kapitel teil grad
"""

_STARTERS, _BEFORE_ORDINALS, _AFTER_ORDINALS = (
    frozenset(words.split()) for words in (STARTERS, BEFORE_ORDINALS, AFTER_ORDINALS)
)
# A word of several tables has the last kind.
_TABLES = (("unsure", UNSURE), ("number", BEFORE_NUMBERS), ("title", TITLES))
_KINDS = {word: kind for kind, words in _TABLES for word in words.split()}


def sentence_ends(text: str) -> list[int]:
    """Return the exclusive end offsets of the sentences of `text`, ascending.

    White space after a sentence belongs to it: sentences are `text[ends[i - 1] : ends[i]]`, their
    concatenation is `text`, and none is blank unless the text is. The last offset is `len(text)`;
    an empty text has none. `text` may be any part of a document that begins at a sentence.

    Example:
        >>> sentence_ends("Dr. Smith came. He left.")
        [16, 24]
    """
    if not text:
        return []
    ends: list[int] = []
    start, limit = len(text) - len(text.lstrip()), len(text.rstrip())
    pattern = _ASCII_OR_SPACED if text.isascii() or not _WIDE.search(text) else _ANY_SCRIPT
    for match in pattern.finditer(text, start, limit):
        stop, end = match.span()
        if end == limit:
            break
        mark, following = text[stop], text[end]
        if mark == "\n":
            is_end = True
        elif mark in WIDE or not text[end - 1].isspace():
            is_end = following not in "，、；：,;:\n"
        elif (
            following.islower()
            or following in NEVER_FIRST
            # A quotation mark, bracket or dash before a lower-case word.
            or (following in OPENERS and _word_at(text, end)[:1].islower())
        ):
            is_end = False
        else:
            is_end = (
                mark != "."
                or text[stop + 1] == "."
                or (stop - start > LONGEST_ABBREVIATION and text[stop - LONGEST_ABBREVIATION - 1 : stop].isalpha())
                or not _belongs_to_word(text, stop, end, start)
            )
        if is_end:
            ends.append(end)
            start = end
    return [*ends, len(text)]


def _word_at(text: str, offset: int) -> str:
    word = _WORD.search(text, offset, offset + 40)
    return word.group() if word else ""


def _belongs_to_word(text: str, stop: int, following: int, start: int) -> bool:
    """Return whether the full stop at `stop` belongs to an abbreviation or a number."""
    lowest = max(start, stop - 24)
    begin = max(text.rfind(" ", lowest, stop) + 1, lowest)
    word = text[begin:stop].lstrip("\"'“‘„‚«‹([{¿¡—–-")
    if word.isdigit():
        # At the start of a sentence, it numbers a list item.
        return len(word) <= 3 and (begin <= start or _is_ordinal(text, begin, start, following))
    kind = _KINDS.get(word.lower())
    if kind == "title" or (kind == "number" and text[following].isdigit()):
        return True
    is_initial = len(word) == 1 and word.isalpha()
    is_acronym = len(word) > 2 and word[1] == "." and all(len(part) == 1 for part in word.split("."))
    if is_initial or is_acronym or kind == "unsure":
        return _word_at(text, following).lower() not in _STARTERS
    return False


def _is_ordinal(text: str, begin: int, start: int, following: int) -> bool:
    next_word = _word_at(text, following).lower()
    previous = text[max(start, begin - 16) : begin - 1].rpartition(" ")[2].lower()
    return next_word in _AFTER_ORDINALS or (previous in _BEFORE_ORDINALS and next_word not in _STARTERS)
