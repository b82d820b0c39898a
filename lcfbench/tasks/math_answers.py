r"""Written answers to problems of mathematics: which text counts, and whether it equals the gold.

Plain numbers are compared exactly, lists and intervals part by part, all else by the library
math-verify (`math_worker`). Units, currencies and degrees are left out, as the published scorers do.

>>> from lcfbench.tasks.math_answers import answer_scores
>>> answer_scores("She earns 9 * 2 = $18 a day.\n#### 18", "18", last_number=True)
{'exact_match': 1.0, 'parsed': 1.0}
>>> answer_scores(r"Therefore \boxed{\frac{3}{6}}.", r"\frac12")                      # doctest: +SKIP
{'exact_match': 1.0, 'parsed': 1.0}
"""

from __future__ import annotations

import re
from fractions import Fraction

from lcfbench.tasks.math_worker import LONGEST, ask

PLACES = 6  # decimals from which on a rounded number is taken for one that has no end
DIGITS = 400  # longest number that is read as one
TAIL = 20_000  # characters at the end of a text that are looked at
# in the order in which they are replaced
_SIGNS = {
    **dict.fromkeys("−–—", "-"),
    **dict.fromkeys("\u2009\u202f", ""),
    "\u00a0": " ",
    **dict.fromkeys("＄", "$"),
    **dict(zip("０１２３４５６７８９，．", "0123456789,.", strict=True)),
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "°": r"^\circ ",
    "²": "^2",
    "³": "^3",
    "½": r"\frac12",
    "¼": r"\frac14",
    "¾": r"\frac34",
}
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_CURRENCY = r"(?:(?:US|Rs\.?)?\s*\\?[$€£¥₹]|USD|EUR|GBP)"
_NO_UNIT = r"(?!(?:pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|[abcxyz]+)(?![A-Za-z]))"
_SCALE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# a unit is a word of two letters or more, a text, or one of these letters behind a space: `5x` is no number
_WORD = (
    rf"(?:\\(?:text|mbox|mathrm|textrm|textbf|operatorname)\s*\{{[^{{}}]*\}}|{_NO_UNIT}[A-Za-z]{{2,}}\.?"
    r"|(?<=[\s/])[mgshLlJNWVCFK]\b)(?:\s*\^\s*\{?[23]\}?)?"
)
_PLAIN = re.compile(
    rf"""(?:about|approximately|exactly|around|\\approx)?\s*
    (?P<sign>[+-]?)\s*{_CURRENCY}?\s*(?P<sign_behind>[+-]?)\s*
    (?:(?:(?P<whole>\d+)(?:\s*(?=\\frac)|\s+(?=\d+\s*/)))?
        (?:\\frac\s*(?:\{{\s*(?P<a>-?\d+)\s*\}}|(?P<a1>\d))\s*(?:\{{\s*(?P<b>\d+)\s*\}}|(?P<b1>\d))
          |(?P<a2>\d[\d,]*)\s*/\s*(?P<b2>\d[\d,]*))
      |(?P<number>{_NUMBER})
        (?:[eE](?P<power>[+-]?\d{{1,3}})
          |\s*(?:\\times|\*|x)\s*10\s*(?:\^|\*\*)\s*\{{?\s*(?P<power1>[+-]?\d{{1,3}})\s*\}}?)?)
    (?P<unit>\s*\\?%|\s*\^?\{{?\\circ\s*\}}?|[\s-]*{_WORD}(?:(?:\s+|\s*/\s*|-){_WORD})*)?""",
    re.VERBOSE,
)
_SAID = re.compile(
    r"\b(?:answer|result|solution)\b(?:\s+(?:to|of|for)\b[^.:=\n]{0,80}?)?\**\s*(?:(?:is|are|equals)\b|[:=])(?!\s*not\b)[\s:*]*"
    r"|答案(?:是|为)?\s*[:：]?\s*",
    re.I,
)
# behind the number that a sentence begins with; behind the others a calculation goes on
_GOES_ON = r"times|plus|minus|multiplied|divided|more|less|of\b|percent|and\b|or\b"
_PROSE = rf"[,(]|\\(?:text|mbox)|(?!{_GOES_ON})[A-Za-z]{{2,}}"
_OPENED = {"$$": "$$", "$": "$", r"\[": r"\]", r"\(": r"\)"}
_BASED = re.compile(r"([0-9A-F]+)(?:_\{?(\d+)\}?)?")  # `2516_8`
_AND = r"\\text\{\s*(?:and|or)\s*\}"
_NAMED = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*([^=<>]+)")  # `x = 5`
_BRACKETS = {"(": ")]", "[": ")]", "{": "}"}


def answer_scores(text: str, gold: str, *, last_number: bool = False) -> dict[str, float]:
    """`exact_match`, and `parsed`: whether the text has an answer that can be read.

    last_number: where the text marks no answer, its last number counts (GSM8K); else the library looks
    for the mathematics that stands last (MATH).
    """
    equal = _equals(text, gold, last_number)
    return {"exact_match": float(equal is True), "parsed": float(equal is not None)}


def marked(text: str) -> str | None:
    r"""The answer that a text marks, or None: of the first of these that it has, the last one.

    `\boxed{…}` (several that follow each other are one list); `#### …`; "the answer is …".
    """
    text = _until_next(text)
    if (found := _boxed(text)) is not None:
        return found
    if lines := re.findall(r"####[ \t]*\n?[ \t]*([^\n]*\S)", text):
        return str(lines[-1])
    for match in reversed(list(_SAID.finditer(text))):
        if said := _sentence(text[match.end() :]):
            return said
    return None


def _until_next(text: str) -> str:
    """The text behind a thought, up to the next question that a model asks itself."""
    text = text.rpartition("</think>")[2]
    return re.sub(r"(?<=\S)\s*\n\s*(?:Question|Problem|Q)\s*\d*\s*:.*", "", text, flags=re.S)


def _boxed(text: str) -> str | None:
    boxes: list[str] = []
    end = 0
    for match in re.finditer(r"\\f?box(?:ed)?\s*(\{|[^\s{])", text):
        if match.start() < end:  # inside of the box before
            continue
        inner: str | None = match[1]
        stop = match.end()
        if inner == "{":
            inner, stop = _braced(text, match.end())
        if inner is None:  # never closed
            continue
        between = text[end : match.start()]
        if not (boxes and re.fullmatch(r"[\s$,]*(?:\\text\{)?\s*(?:and|or|,)?\s*\}?[\s$]*", between)):
            boxes = []
        boxes.append(inner)
        end = stop
    return ", ".join(dict.fromkeys(box.strip() for box in boxes)) if boxes else None


def _braced(text: str, start: int) -> tuple[str | None, int]:
    """The text up to the brace that closes one opened before `start`, and the place behind it."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start : match.start()], match.end()
    return None, len(text)


def _sentence(rest: str) -> str:
    """The beginning of a text: its mathematics where it begins with such, else its first sentence."""
    for opening, closing in _OPENED.items():
        if rest.startswith(opening):
            inside, found, behind = rest[len(opening) :].partition(closing)
            if found and opening + inside and not re.match(r"\s*[\w(\\]", behind.partition("\n")[0][:3]):
                return inside
            break
    line = rest.partition("\n")[0]
    return re.split(r"\.(?:\s|$)|[。;；]", line, maxsplit=1)[0].strip()


def _equals(text: str, gold: str, last_number: bool) -> bool | None:
    """Whether the answer of a text equals the gold; None where there is none that can be read."""
    gold, text = tidy(gold), _until_next(text[-TAIL:])
    if (answer := marked(text)) is not None:
        answer = tidy(answer)
        words = re.search(rf"(?<![\\A-Za-z]){_NO_UNIT}[A-Za-z]{{2,}}", re.sub(_AND, ",", answer))
        if words and not _PLAIN.fullmatch(answer):
            answer = _in_prose(answer, last_number or number(gold) is not None)
        if answer:
            return same(gold, answer)
    if last_number:
        last = _numbers(tidy(text))
        return same(gold, last[-1]) if last else None
    return ask(gold, text, prose=True)


def _in_prose(sentence: str, is_number: bool) -> str:
    """The answer in a sentence that has one: its last formula, else the number where one is looked for.

    That is the number at its beginning, where no calculation begins there, else the last one.
    """
    if formulas := re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", sentence):
        return tidy("".join(formulas[-1]))
    if not is_number:
        return sentence
    found = _numbers(sentence)
    first = re.match(rf"-?{_CURRENCY}?\s*-?(?:\d+\s*/\s*\d+|{_NUMBER})\s*({_PROSE})", sentence)
    return (found[0] if first else found[-1]) if found else ""


def _numbers(text: str) -> list[str]:
    found = re.findall(
        rf"(?:(?<![\d)])-)?{_CURRENCY}?\s*-?(?:\d+\s*/\s*\d+(?!\d)|{_NUMBER})(?:\s+(?:{'|'.join(_SCALE)})\b)?",
        text,
    )
    return [tidy(number) for number in found]


def tidy(text: str) -> str:
    r"""An answer without delimiters, emphasis, spaces of LaTeX and its last full stop."""
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = re.sub(r",\\!\s*", ",", text)
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:|quad|qquad|bigl?|bigr?)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("{,}", ",").replace("**", "").replace("`", "")
    text = re.sub(r"(?<!\\)\\ |~", " ", text)
    before = None
    while text != before:
        before, text = text, text.strip(" \n\t*_\"'")
        text = re.sub(r"(?<![\d.])\.$|(?<=\d)\.$|[,:]$", "", text)
        for opening, closing in _OPENED.items():
            if len(text) > len(opening) and text.startswith(opening) and text.endswith(closing):
                inside = text[len(opening) : -len(closing)]
                text = inside if closing not in inside else text
    return text


def number(text: str) -> tuple[Fraction, bool] | None:
    """A plain number's exact value and whether it is per cent; None for all that is none."""
    if len(text) > DIGITS or not (found := _PLAIN.fullmatch(text)):
        return None

    def part(*names: str) -> str:
        return next((value.replace(",", "") for name in names if (value := found[name])), "")

    if top := part("a", "a1", "a2"):
        if not (bottom := int(part("b", "b1", "b2"))):
            return None
        value = Fraction(int(top), bottom) + int(part("whole") or 0)
    else:
        value = Fraction(part("number").rstrip(".")) * Fraction(10) ** int(part("power", "power1") or 0)
    if (found["sign"] == "-") != (found["sign_behind"] == "-"):
        value = -value
    return value, bool(re.match(r"\s*(?:\\?%|per ?cent\b|pct\b)", part("unit"), re.I))


def same(gold: str, answer: str) -> bool | None:
    """Whether two tidied answers are equal; None where the library cannot read the answer."""
    if len(answer) > LONGEST:
        return None
    gold, answer = (re.sub(r"^[A-Za-z]\s*\\in\b\s*", "", text) for text in (gold, answer))
    if "=" not in gold and (named := _named(gold, answer)):
        answer = named
    elif "=" not in gold:  # `9 * 2 = 18` is 18, `x = 5` is 5
        answer = re.split(r"(?<![<>!\\])(?:=|\\approx)", answer)[-1].strip() or answer
    if _bare(gold) == _bare(answer):
        return True
    if (value := number(gold)) and (other := number(answer)):
        said = re.search(rf"\b(?:{'|'.join(_SCALE)})\b", answer)
        scale = _SCALE[said[0]] if said else 0
        scaled = other[0] * 10**scale, other[1]
        places = len(answer.partition(".")[2])
        return any(_same_number(value, each, places=places) for each in (other, scaled))
    if number(gold) and re.search(r"\d\s*:\s*\d", answer):  # a ratio or a time is no number
        return False
    if re.fullmatch(r"\\text\{[^{}]*\}", gold):  # a word, or the letter of a choice and perhaps its text
        word = _word(gold)
        choice = re.match(r"\(?([A-Z])[).:]", answer) if len(word) == 1 else None
        return (choice[1].casefold() if choice else _word(answer)) == word
    if (based := _BASED.fullmatch(gold)) and (read := _BASED.fullmatch(answer)):
        return based[1] == read[1] and read[2] in (None, based[2])
    if r"\pm" not in gold + answer:
        ours, theirs = _parts(gold), _parts(answer)
        if ours:
            return _same_parts(ours, theirs)
        if theirs:  # forms of one answer
            return not theirs[0] and all(same(gold, part) for part in theirs[1])
    return ask(gold, answer)


def _named(gold: str, answer: str) -> str | None:
    """The values of `x = 3, y = 5`, in brackets where the gold has such; None for all that is none."""
    parts = _parts(answer)
    if parts is None or not all(found := [_NAMED.fullmatch(part) for part in parts[1]]):
        return None
    values = ", ".join(match[2].strip() for match in found if match)
    several = len({match[1] for match in found if match}) > 1
    return f"({values})" if several and gold.startswith("(") else values


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _word(text: str) -> str:
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox|textit|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"[^\w]+", " ", text).strip().casefold()


def _same_number(gold: tuple[Fraction, bool], answer: tuple[Fraction, bool], *, places: int) -> bool:
    (ours, ours_per_cent), (theirs, theirs_per_cent) = gold, answer
    if ours == theirs:
        return True
    if ours_per_cent != theirs_per_cent:  # 10 % is 10 and 0.1
        per_cent, plain = (ours, theirs) if ours_per_cent else (theirs, ours)
        return per_cent == 100 * plain
    rest = ours.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1 and places >= PLACES and round(ours, places) == theirs


def _parts(text: str) -> tuple[str, list[str]] | None:
    """The brackets and parts of a list, tuple or interval; None for all that is none."""
    text = text.replace(r"\{", "{").replace(r"\}", "}") if re.match(r"\\\{.*\\\}$", text, re.S) else text
    kind = ""
    if len(text) > 1 and text[0] in _BRACKETS and text[-1] in _BRACKETS[text[0]] and _whole(text):
        kind, text = (text[0] + text[-1]).replace("{}", ""), text[1:-1]
    else:
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # of thousands
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"\\?[()\[\]{}]|,|\s+(?:and|or)\s+|" + _AND, text):
        bracket = match[0].strip("\\")
        if bracket in "()[]{}":
            depth += 1 if bracket in "([{" else -1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts = [part for part in [*parts, text[start:].strip()] if part]
    return (kind, parts) if len(parts) > 1 else None


def _whole(text: str) -> bool:
    """Whether the bracket at the beginning is closed at the end alone."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


def _same_parts(ours: tuple[str, list[str]], theirs: tuple[str, list[str]] | None) -> bool | None:
    if theirs is None or ours[0] != theirs[0] or len(ours[1]) != len(theirs[1]):
        return False
    if ours[0]:
        return all(same(a, b) is True for a, b in zip(ours[1], theirs[1], strict=True))
    left = list(theirs[1])  # without an order
    for part in ours[1]:
        found = next((other for other in left if same(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True
