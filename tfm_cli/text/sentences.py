"""Sentence and clause ends in text of any language and script."""

import functools
import re
import unicodedata

# Marks that end a sentence only before a blank or a closing quotation mark.
_NARROW = ".!?…‥‼⁇⁈⁉‽⸮"
# Marks that end a sentence before any character: Unicode's Sentence_Terminal (Unicode 16) without
# the narrow ones, without `၊`, which is a comma, and with the Tibetan shads.
_WIDE = (
    "\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965"
    "\u0f0d\u0f0e\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945"
    "\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u2e3c"
    "\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e"
    "\uaa5f\uaaf0\uaaf1\uabeb\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
_ETHIOPIC_STOP = "\u1361\u1361"  # the full stop `።` as many keyboards write it
_UNCONDITIONAL = frozenset(_WIDE + _ETHIOPIC_STOP)
# No-break spaces.
NO_BREAK = "\u00a0\u2007\u202f"
_CLAUSE = ";:,،؛၊、，；：､﹐﹔﹕፣፤፥፦᠂᠈།·՝"
_CLOSING = "\"'”’»)\\]}」』）】〉》〕］｝｣›"
_OPENING = "\"'“‘«‹„‚(\\[{「『（【〈《〔［｛｢¿¡—–-"


@functools.cache
def _end() -> re.Pattern[str]:
    """Return the pattern of marks that may end a sentence; its compilation takes 1 ms."""
    # A semicolon ends a question in Greek. Some quotation marks close in one language and open in
    # another; they close only before a blank.
    return re.compile(
        rf"(?:[{_NARROW}{_WIDE}]|{_ETHIOPIC_STOP}|(?<=[\u0370-\u03ff\u1f00-\u1fff]);)+"
        rf"(?:[{_CLOSING}]|“(?=\s|$)|[ \u00a0\u202f]»(?=[\s.,!?]|$))*"
    )


_MARKS = re.compile(rf"(?:[{_NARROW}{_WIDE}]|{_ETHIOPIC_STOP})+")
_CLAUSE_END = re.compile(rf"[{_CLAUSE}]+[{_CLOSING}]*")
_NEXT = re.compile(rf"[\s{_OPENING}]*")
_WORD = re.compile(rf"[^\s{_OPENING}]*\Z")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations that occur in the middle of a sentence; single letters need no entry.
_ABBREVIATIONS = _words(
    """
    mr mrs ms messrs dr prof st mt ft gen col lt capt cmdr sgt rev hon gov sen rep pres jr sr vs
    approx eq eqs ch eds pp dept inc ltd co corp cf viz al esp jan feb apr
    jun jul aug sept oct nov dec
    abb abs aufl bd bzw ca dipl evtl fr ggf hr hrsg inkl ing jh kap kgl nr sog str tab tel usw vgl
    zzgl
    av chap env ex mme mmes mlle mgr réf tél sig dott avv pag pagg cap ecc sra sres sras
    srta dra lic ud uds pág págs núm ej dto ee uu gral sto sta exmo ilmo nº c.-à-d
    mw dhr mevr bv bijv blz ds drs enz jl nl resp zgn bl eks fx kl sml jfr tlf osv dvs
    np tzn tzw ul pl im inż hab wg zob rys por tzv např č odst obr kb ún ld sz örn bkz yy vb vd doç
    alm
    ул пр пл пер просп им рис стр см ср гг вв тов проф акад доц инж табл гл изд обл респ руб коп
    млн млрд тыс чел вул бул напр св ред
    tp ts ths gs pgs bs ks esim mm ym jne mim toim kirj prov dl dna
    திரு திருமதி মো মোছা মি
    κ κα δρ βλ σελ αρ डॉ श्री प्रो पं कु सं
    """
)
# Abbreviations only before a number: `No. 5`, but not `No. That is all.`
_BEFORE_NUMBERS = _words(
    """
    no nos nr nº vol art fig figs abb tab bd kap ch sec abschn pág pag st sv č str стр рис табл гл
    ст №
    """
)


def sentence_ends(text: str) -> list[int]:
    """Return the end of each sentence except the last: the offset after its closing marks.

    Doubtful ends are omitted, such as a full stop that may belong to an abbreviation or an ordinal
    number.
    """
    ends = []
    has_capitals = text != text.lower()
    length = len(text.rstrip())
    for match in _end().finditer(text, 0, length):
        end = match.end()
        if end < length and _is_end(text, match, has_capitals=has_capitals):
            ends.append(end)
    return ends


def count_marks(text: str) -> int:
    """Return the number of groups of marks that may end a sentence."""
    return len(_MARKS.findall(text))


def clause_ends(text: str) -> list[int]:
    """Return the offsets after commas, colons and semicolons.

    In scripts with blanks between words they count only before a blank.
    """
    ends = []
    for match in _CLAUSE_END.finditer(text):
        end = match.end()
        if end < len(text) and (text[end].isspace() or ord(match[0][0]) > 0x1000):
            ends.append(end)
    return ends


def _is_end(text: str, match: re.Match[str], *, has_capitals: bool) -> bool:
    """Return True if a sentence ends at these marks, which are not the end of the text.

    Args:
        text: the whole text.
        match: the marks.
        has_capitals: the text has capital letters, so a sentence begins with one.
    """
    marks, end = match[0], match.end()
    has_blank = text[end].isspace() and text[end] not in NO_BREAK
    start = _NEXT.match(text, end)
    following = text[start.end() : start.end() + 1] if start else ""
    if any(mark in _UNCONDITIONAL for mark in marks):
        if marks == "\uff0e" and following.isdigit():
            return False
        # A quotation inside a sentence is followed by a particle, a comma or a small letter.
        is_quoted = marks[-1] not in _UNCONDITIONAL and marks[-1] not in _NARROW
        return not (is_quoted and (text[end] in "とっって、，,;；" or following.islower()))
    is_ellipsis = marks[:2] == ".." or marks[0] in "…‥"
    if not has_blank or (following.islower() and (has_capitals or is_ellipsis)):
        return False
    if marks[0] != "." or is_ellipsis:
        return True
    before = text[max(0, match.start() - 40) : match.start()]
    if following == "." or before.endswith(". "):  # an ellipsis with blanks between the dots
        return False
    return not _is_abbreviation(before, following, is_closed=len(marks) > 1)


def _is_abbreviation(before: str, following: str, *, is_closed: bool) -> bool:
    """Return True if a full stop may belong to the word before it rather than end the sentence."""
    match = _WORD.search(before)
    word = match[0].strip("'’-") if match else ""
    lower = word.lower()
    last = lower.rpartition(".")[2]
    if not last or (is_closed and not _is_letter(last)):
        return False
    if following.isdigit() and last in _BEFORE_NUMBERS:
        return True
    if lower in _ABBREVIATIONS or last in _ABBREVIATIONS:
        return True
    if word.isdigit():  # an ordinal, as before a German or Czech month
        return len(word) <= 2
    return _is_letter(last)


def _is_letter(word: str) -> bool:
    """Return True for a single letter of an alphabet, with its combining marks."""
    base = unicodedata.normalize("NFD", word)[:1]
    is_alphabetic = base.lower() != base.upper() or "\u0590" <= base <= "\u0dff"
    return len(word) == 1 and is_alphabetic
