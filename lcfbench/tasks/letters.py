"""One parser for the option that a written answer names, with the rule by which it was read.

>>> options = ["Paris", "London", "Rome", "Berlin"]
>>> read_letter("Rome has the Colosseum, so the answer is (C).", options)
('C', 'stated')
>>> read_letter("Okay. Option A is Paris, but", options)
(None, 'unread')

A text is cleaned (thoughts, Markdown, LaTeX, tags, full-width letters), and letters that name no answer
are struck: "not A", "A is wrong", "A or B", a list of all options. Then the first of these rules counts:

`option`: the whole answer is one option's text; `letter`: it is one letter; `marked`: a box, a tag or a
JSON key holds it; `stated`: "the answer is B", "I choose B", "B is correct", the last one of several;
`leading`: the answer begins with it; `ending`: its last line is the letter, or its one sentence ends
with "(B)." or with one option's text.

Where no letter is read the rule says why: `empty`; `unfinished`, a thought without end; `withdrawn`,
"no, wait" and no answer after it; `several`, letters that are joined; `unread`. A letter counts even
where another option's text follows it. Letters of other alphabets are not read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lcfbench.tasks.thought_text import behind_thoughts

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STRUCK, MARK = "\x00", "\x01"  # stands for a letter that names no answer; an answer follows
_BEFORE_TEXT, _BEHIND_TEXT = " \n\"'“«([\x01", " \n\"'”»).,;:!?。]"
GAP, LONGEST_OPTION = 60, 500  # characters between a cue and its answer, and of an option that is looked for

_SIGNS = str.maketrans({"🅰": "A", "🅱": "B", "，": ",", "．": ".", "$": None})
_KEYS = (
    r"(?:final|correct|best|selected|chosen)?[ _-]?(?:answer|choice|option|letter)"
    r"(?:[ _-](?:letter|choice|option))?|ans|prediction|result|response|output|答案"
)
_TO_MARK = re.compile(
    rf"\\{{1,2}}(?:boxed|fbox)(?![a-z])|\bboxed{{|<(?:{_KEYS}|solution)\b[^<>\n]{{0,80}}>"
    rf"|[\"'](?:{_KEYS})[\"']\s*:|\[\[|(?:^|\s)####\s|【[^】\n]{{0,4}}答案】",
    re.I | re.M,
)
_TO_LINE = re.compile(
    r"<\|[\w-]{1,40}\|>|</?[a-z_][\w:-]{0,40}\s?/?>|^[ \t]*(?:#+|>|[-•]\s)[ \t]*|```\w*", re.I | re.M
)
_TO_SPACE = re.compile(r"\\{1,2}[a-zA-Z]+|\\.|[{}|~]+|\]\]|[*`]+|(?<!\w)_+|_+(?!\w)")
_QUESTION = re.compile(
    r"\n\W{0,8}(?:(?:next )?(?:question|problem|exercise)|Q|问题|題目|题目|問題|질문|문제|frage|pregunta"
    r"|pergunta|domanda|вопрос|السؤال|प्रश्न|user|human)\s*\d{0,4}\s*[:：.]",
    re.I,
)


def _compiled(words: str) -> re.Pattern[str]:
    """Returns a pattern for text in the form NFKC."""
    return re.compile(unicodedata.normalize("NFKC", words), re.I)


# A letter stands alone: not in a word, "C++", "A+", "D-day", "U.S.A".
_W = r"A-Za-z0-9À-ɏͰ-ӿ+&/"
_BEFORE, _AFTER = rf"(?<![{_W}])(?<![{_W}][-'’.])", rf"(?![{_W}#-])(?!['’]\w)(?!\.\w\b)"
_ALONE = re.compile(rf"{_BEFORE}[A-Z]{_AFTER}")
_FILL = re.compile(
    r"(?:[\s\x01\"'“”‘’«»„(\[【「『:：=,!—–>→✅-]|(?:the|in fact|definitely|clearly|probably|most likely"
    r"|likely|indeed|surely"
    r"|correct|right|final|option|choice|letter|answer|number|sure|certainly|yes|ok|okay|of course|well"
    r"|maybe|perhaps|assistant|output|prediction|la|le|die|der|das|el|o|a letra|a opção|a alternativa"
    r"|opción|opção|opzione"
    r"|lettera|letra|lettre|buchstabe|alternativa|вариант|буква|选项|選項|選択肢|选|選|第|الخيار|सही"
    r"|विकल्प)(?![a-zà-ÿ])|l['’]){0,14}+",
    re.I,
)
_WORDS = (
    r"(?:as|rather|instead|because|since|for|with|and|or|due|given|based|in|if|weil|da|denn|car|parce|porque"
    r"|perché)\b"
)
_GOES_ON = re.compile(rf"[^\S\n]+(?!{_WORDS})[a-zà-ÿа-я]|[)\].]?\s?[?]")  # "A dog", "B?"
_ENDED = re.compile(r"\s*(?:[.,;:!。，；！)\]\"'”»(\n]|$|(?:because|since|as)\b|[\u3040-\uffef])")

_AND = r"(?:and|or|und|oder|et|ou|y|o|e|и|или|أو|nor|và|ve|en|of)"
_NOUN = r"(?:(?:the|be|maybe|perhaps|answer|option|choice|letter|alternative)\s+){0,3}"
_JOINED = re.compile(
    rf"{_BEFORE}[A-Z][)\].]?(?:(?:\s*[,、/&]\s*(?:{_AND}\s+)?|\s+{_AND}\s+|\s*[和或与與及やと와과]\s*)"
    rf"{_NOUN}[(\[]?(?!I\s+[a-z]|A\s+(?!is\b|are\b)[a-z])(?:[A-Z]|(?<=\w\s){STRUCK})(?![{_W}'’])[)\]]?)++"
)
_NOT_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|eliminate|exclude|reject|rule out|instead of|rather than"
    r"|except|unlike"
    r"|anything but|nicht|kein|pas|no es|no|non è|non|não é|não|не|nie)\b|n['’]t\b"
    r"|不是|并非|不选|不選|排除|非)"
    rf"\s*(?:(?:think|believe|say|necessarily|really|be|it'?s|it is"
    rf"|that)\s+){{0,4}}{_NOUN}[(\[]?([A-Z]){_AFTER}",
    re.I,
)
_IS = (
    r"(?:is|are|was|seems|looks|would be|must be|est|ist|es|è|é|está|это|jest|[はが는은이가是]|[选選]?[项項])"
)
_DENIAL = (
    rf"\(?(?:(?<!\()not\b|(?<=\()not\b(?!\s+{_NOUN}[(\[]?[A-Z](?![{_W}'’]))"
    r"|isn['’]t|wrong|incorrect|false\b|untrue|impossible|cannot|can['’]t|doesn['’]t|does not"
    r"|didn['’]t|n['’]est pas|falsch|nicht|faux|fausse|no es|falso|falsa|errad|sbagliat|non è|não é"
    r"|неверн|неправильн|не\b|错|錯|不|아니|아닙|틀|ではな|じゃな|間違|❌|✗|✘|(?<=[:—–-]\s)no\b)"
)
_NOT_AFTER, _IS_NOT = (
    re.compile(
        rf"{_BEFORE}([A-Z]){_AFTER}[)\].:]{{0,2}}\s*(?:[—–-]\s*)?(?:{_IS}\s*){needed}"
        rf"(?:(?:also|clearly|definitely|obviously|simply|just)\s+)?{_DENIAL}",
        re.I,
    )
    for needed in ("?", "")
)
_WITHDRAWN = re.compile(
    r"\b(?:no,? wait|wait,? no|scratch that|on second thoughts?|i take (?:it|that) back"
    r"|let me (?:reconsider|rethink)"
    r"|nein,? (?:warte|moment)|moment,? doch|non,? attend\w*|no,? espera|não,? espera|нет,? (?:стоп"
    r"|подожди\w*)"
    r")\b|(?:^|[.!?…—–\n-]\s?)(?:(?:h+m+|oh|but)[,.…]{0,3} )?(?:wait|correction)\b[\s,.:!…—-]"
    r"|不对[,。]|不對[,。]|等等[,。]|更正|아니,? 잠깐"
    r"|(?<=\b[A-D])[.,?]{1,3} ?no[,.] ",
    re.I | re.M,
)

_ANSWER = _compiled(
    r"(?:\bans\.|(?<![^\W_])(?:answer|ans|(?:correct|right|best|final|my|chosen) "
    r"(?:option|choice|letter|alternative|response|one)|antwort"
    r"|lösung|réponse|reponse|respuesta|resposta|risposta|ответ|відповідь|antwoord|odpowiedź|odpověď"
    r"|cevap|yanıt|svar"
    r"|svaret|vastaus|válasz|răspuns\w{0,3}|απάντηση|jawaban(?:nya)?|jawapan|jibu)\b|đáp án|trả lời"
    r"|答案|答え|回答|解答|正解|答"
    r"|정답|답변|답|الإجابة|الاجابة|إجابة|الجواب|جواب|پاسخ|תשובה|उत्तर|सही विकल्प|الخيار الصحيح|जवाब|উত্তর"
    r"|คำตอบ|பதில்)"
    r"(?!\s+(?:choices|options|key|the|this|these|questions?|with|using|by)\b|s\b)"
)
_CHOICE = re.compile(
    r"(?<!each )(?<!every )\b(?:option|choice|letter|alternative|conclusion|correct|richtig|korrekt"
    r"|final|solution|result|response|verdict|selection|pick|opción"
    r"|opção|alternativa|opzione|correcta|correta|corretta|wahl|choix|bonne|вариант|seçenek)\b"
    r"|选项|選項|选择|選擇|選択肢|선택|보기|विकल्प|الخيار|结论|結論",
    re.I,
)
_LINK = re.compile(
    r"\b(?:is|was|would be|should be|must be|will be|has to be|might be|may be|could be|ist|lautet|wäre"
    r"|est|serait|es|sería|é"
    r"|seria|è|sarebbe|это|является|είναι|jest|je|är|er|on|là|adalah|ialah)\b|[:：=→]|[-=]+>|\s[-–—]+\s"
    r"|应该是|應該是|应为"
    r"|應為|是|为|為|は|が|은|는|이|هي|هو|है",
    re.I,
)
_SENTENCE = re.compile(rf"(?:[^.。!?！？\n{STRUCK}A-Z]|[A-Z](?=[\w'’])|(?<=\w)[A-Z]){{0,{GAP}}}+")
_CHOSEN = re.compile(
    r"\b(?:i(?:['’]d| would|['’]ll| will| am going to|['’]m going to| have to| must|)(?: \w+ly)?"
    r" (?:choose|pick|select|go (?:with|for)|say|guess|vote for|opt for|answer|think"
    r"|believe)(?: that)?(?: it(?:['’]s| is| must be| should be))?"
    r"|my (?:guess|pick|vote) is|(?:it|that)(?:['’]s| is| must be| should be| has to be| would be)"
    r"|must be|should be"
    r"|go(?:ing)? with|opt for|lean towards?|(?P<weak>therefore|thus|hence|so|actually|sorry|rather"
    r"|eher|sondern|mais|but)|je (?:choisis|pense que c['’]est)|c['’]est"
    r"|ich (?:wähle|nehme)|es ist|elijo|es la|es el|escolho|é a|scelgo|è la|выбираю|это)\b"
    r"|应选|應選|故选|故選|选择|選擇|选|選|应该是|應該是|所以是|(?:认为|覺得|觉得|認為)是?|[∴⇒]",
    re.I,
)
_RIGHT = (
    r"(?:correct|right\b|the (?:best|answer)|true\b|accurate|richtig|korrekt|juste|exacte?|bonne"
    r"|correct[ao]|corret[ao]"
    r"|corrett[ao]|giust[ao]|верн|правильн|正确|正確|对的|對的|正解|正しい|정답|맞|صحيح|सही|才是|才对|才對|符合题意|✓|✔|✅"
    r"|(?<=[:—–-]\s)yes\b)"
)
_VERDICT = re.compile(
    rf"{_BEFORE}([A-Z]){_AFTER}[)\].:]{{0,2}}\s*(?:[—–-]\s*)?(?:{_IS}\s*){{0,2}}(?:(?:the|la|le|die|der"
    rf"|el|o|a|most|indeed|clearly|definitely"
    rf"|probably|also|only|one|answer|option|choice|response|réponse|antwort|respuesta|opción|resposta"
    rf"|risposta)\s+){{0,4}}{_RIGHT}"
    r"(?!\s*(?:only\s+)?(?:if|unless|but|\?))"
    rf"|{_BEFORE}([A-Z]){_AFTER}[)\].]{{0,2}}\s+(?:fits best|is best|makes (?:the most )?sense"
    r"|(?:is|seems|looks) (?:the )?most (?:likely|plausible|appropriate|suitable|reasonable|accurate)\b)",
    re.I,
)
_IS_RIGHT = r"(?= (?:is|was) (?:the )?(?:correct|right|best|answer)\b)"
_LEADS = re.compile(  # before a verdict; "vitamin C is correct" is about no option
    r"(?:\A|[^\w\s]\s?|\n|[\u3040-\uffef]\s?|\b(?:option|choice|answer|letter|alternative|so|thus|hence"
    r"|therefore|that|think"
    r"|believe|because|and|but|since|means|only|antwort|lösung|réponse|respuesta|resposta|risposta|ответ"
    r"|opción|opção|opzione|вариант)\s[(\[]?)$",
    re.I,
)
_DOUBT = re.compile(
    r"\b(?:if|whether|suppose|assume|assuming|unless|why|wenn|si|если)\b[^.\n]{0,30}$|如果[^。\n]{0,9}$", re.I
)
_LOOKED_AT = re.compile(
    r"\b(?:consider|at|with|examine|evaluate|check|compare|for|in|like|option|choice)\s*$", re.I
)
_LABEL = re.compile(r"^[ \t*(]{0,4}([A-Z])[).:]", re.M)
_SAYS = re.compile(r"(?:\b(?:is|are|was|were|called|est|ist|es|é|è|это)\b|是)\s*$", re.I)


def read_letter(text: str, options: Sequence[str]) -> tuple[str | None, str]:
    """Returns the letter of the option that a written answer names, or None, and the rule.

    options: their texts; the first has the letter A. The time is linear in the length of the text.
    """
    answer = behind_thoughts(text)
    if answer is None:
        return None, "unfinished"
    parser = _Parser(options)
    answer = parser.cleaned(answer).strip()
    if not answer:
        return None, "empty"
    answer = parser.unlisted(answer)
    if MARK not in answer and (named := parser.same(answer)):
        return named, "option"
    begins = parser.same(answer.partition("\n")[0])  # before any of its words is struck
    blocks = _QUESTION.split(parser.condensed(answer))  # questions that follow are invented
    letter, rule = parser.read(blocks[0])
    if begins and rule not in ("marked", "stated", "withdrawn"):
        return begins, "leading"
    if letter is None and len(blocks) > 1 and STRUCK * 2 in blocks[1]:
        return parser.read(blocks[1])  # the question itself, repeated with its options
    return letter, rule


class _Parser:
    """The rules for one list of options."""

    def __init__(self, options: Sequence[str]) -> None:
        self.letters = ALPHABET[: len(options)]
        self.options = [self.cleaned(str(option)).strip()[:LONGEST_OPTION] for option in options]
        self.plain = [_plain(option) for option in self.options]
        order = sorted(range(len(self.letters)), key=lambda i: -len(self.options[i]))
        self.longest_first = [(self.letters[i], self.options[i]) for i in order if self._is_text(i)]

    def _is_text(self, i: int) -> bool:
        """Whether an option's text can be an answer: one option's only, and no letter, which is a label."""
        text = self.plain[i]
        return (
            bool(text)
            and self.plain.count(text) == 1
            and not (len(text) == 1 and text.isascii() and text.isalpha())
        )

    @staticmethod
    def cleaned(text: str) -> str:
        """Returns the text without its marks of form; `MARK` stands where they hold an answer."""
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
        text = re.sub("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe0f\ufeff\x00\x01]", "", text)
        text = _TO_LINE.sub("\n", _TO_MARK.sub(MARK, text))
        text = _TO_SPACE.sub(" ", text.replace("**", "").replace("__", ""))
        return re.sub(r"\n(?: ?\n)+", "\n\n", re.sub(r"[^\S\n]+", " ", text))

    def same(self, text: str) -> str | None:
        """Returns the letter of the one option whose text this is."""
        plain = _plain(text)
        return next(
            (self.letters[i] for i, own in enumerate(self.plain) if own == plain and self._is_text(i)), None
        )

    def unlisted(self, text: str) -> str:
        """Returns the text; where it begins with a list of all options' texts, the list is struck."""
        lines = text.split("\n")
        if [_plain(line) for line in lines if line.strip()][:2] != self.plain[:2]:
            return text
        return "\n".join([STRUCK * 2, *(line for line in lines if _plain(line) not in self.plain)])

    def condensed(self, text: str) -> str:
        """Returns the text with each "B. its text" as "B", and letters that name no answer struck."""
        for letter, option in zip(self.letters, self.options, strict=False):
            if option:
                own = re.escape(option)
                text = re.sub(
                    rf"{_BEFORE}({letter})(?:([).:\]–—-])\W{{0,4}}"
                    rf"|\W{{1,5}})(?i:{own})(?!\w)(?:[\"'”)](?!\w))?",
                    lambda found: found[1] + ("." if found[2] else ""),
                    text,
                )
                text = re.sub(rf"(?<!\w)(?i:{own})\s?[(\[]{letter}[)\]]", f"({letter}).", text)
        for letter, option in self.longest_first:
            verdict = "" if _ALONE.search(option) else _IS_RIGHT  # "Vitamin C", "Both A and B"
            text = re.sub(rf"(?<!\w)(?i:{re.escape(option)})(?!\w){verdict}", letter, text)
        denials = any(re.match(_DENIAL, option, re.I) for option in self.options)  # "C. False, False"
        text = _JOINED.sub(STRUCK * 2, (_IS_NOT if denials else _NOT_AFTER).sub(self._strike, text))
        return self._order().sub(STRUCK * 2, _NOT_BEFORE.sub(self._strike, text))

    @staticmethod
    def _strike(found: re.Match[str]) -> str:
        """Returns a match with its letter struck; a lower-case one is a word."""
        a, b = found.span(1)
        whole, start = found.string, found.start()
        return whole[start:a] + (STRUCK if found[1].isupper() else found[1]) + whole[b : found.end()]

    def _order(self) -> re.Pattern[str]:
        """The letters one after another from A on, with nothing between: the list of options."""
        more = ""
        for letter in reversed(self.letters[2:]):
            more = rf"(?:[\s).:(;\]\[•*-]{{1,8}}{letter}(?![{_W}'’]){more})?"
        return re.compile(rf"{_BEFORE}A[\s).:(;\]\[•*-]{{1,8}}B(?![{_W}'’]){more}")

    def read(self, text: str) -> tuple[str | None, str]:
        """Returns the letter and the rule for a condensed text."""
        withdrawn = [found.end() for found in _WITHDRAWN.finditer(text)]
        if withdrawn:
            letter, rule = self.read_firm(text[withdrawn[-1] :])
            return (letter, rule) if letter else (None, "withdrawn")
        return self.read_firm(text)

    def read_firm(self, text: str) -> tuple[str | None, str]:
        marked = [letter for at in _ends(re.compile(MARK), text) if (letter := self.named(text, at))]
        if marked:
            return marked[-1], "marked"
        bare = re.fullmatch(r"[\W_]*([A-Za-z])(?![+#&/-])[\W_]*", text)
        if bare and bare[1].upper() in self.letters:
            return bare[1].upper(), "letter"
        if stated := self.stated(text):
            return stated, "stated"
        if self.remarks(text):
            letter = self.ending(text)
            return letter, "ending" if letter else "several"
        if (letter := self.named(text, 0, leading=True)) is not None:
            return letter, "leading"
        if letter := self.ending(text):
            return letter, "ending"
        return None, "several" if STRUCK * 2 in text else "unread"

    def remarks(self, text: str) -> bool:
        """Whether the text begins with a list that says something of each letter: "A: 10%", "B: 70%"."""
        labels = "".join(found[1] for found in _LABEL.finditer(text))
        return labels[:1] == text.strip(" \n*(")[:1] and labels[:3] == self.letters[:3]

    def stated(self, text: str) -> str | None:
        """Returns the letter of the last statement."""
        found: list[tuple[int, str]] = []
        for pattern, adjacent in ((_ANSWER, True), (_CHOICE, False)):
            for end in _ends(pattern, text):
                stop = _SENTENCE.match(text, end)
                assert stop is not None
                places = [m.end() for m in _LINK.finditer(text, end, stop.end() + 1)]
                for at in [end, *places] if adjacent else places:
                    if letter := self.named(text, at):
                        found.append((at, letter))
                        break
        for cue in _CHOSEN.finditer(text):
            cut = cue[0].lower() in ("but", "mais")  # "not A but B"; else a sentence may be cut off
            if cut and STRUCK not in text[max(cue.start() - GAP, 0) : cue.start()]:
                continue
            if letter := self.named(text, cue.end(), texts=not cue["weak"]):
                found.append((cue.end(), letter))
        for verdict in _VERDICT.finditer(text):
            letter = verdict[1] or verdict[2]
            if letter in self.letters and _LEADS.search(text, max(verdict.start() - 20, 0), verdict.start()):
                found.append((verdict.start(), letter))
        firm = [(at, letter) for at, letter in found if not _DOUBT.search(text, max(at - GAP, 0), at)]
        return max(firm)[1] if firm else None

    def named(self, text: str, at: int, *, texts: bool = True, leading: bool = False) -> str | None:
        """Returns the letter that a text names at a place, behind quotes, brackets and articles."""
        filled = _FILL.match(text, at)
        assert filled is not None
        place = filled.end()
        goes_on = r"[.,]\d|," if leading else r"[.,]\d"
        article = re.match(r"an? ", text[place : place + 3], re.I)
        starts = [place, place + article.end()] if article else [place]
        for start in starts if texts else ():
            for letter, option in self.longest_first:
                end = start + len(option)
                same = text[start:end].casefold() == option.casefold() and _ENDED.match(text, end)
                if same and not re.match(goes_on, text[end : end + 2]):
                    return letter
        letter = text[place : place + 1]
        after = re.compile(_AFTER).match(text, place + 1)
        if letter in self.letters and letter and after and not _GOES_ON.match(text, place + 1):
            return letter
        if letter.upper() in self.letters and letter.islower() and after:
            bracketed = re.match(r"\s?[)\].:\"'](?:\s|$)|\s?[)\]]", text[place + 1 : place + 4])
            if bracketed or (not leading and re.match(r"\s*(?:$|[\n.,;])", text[place + 1 : place + 4])):
                return letter.upper()
        return None

    def ending(self, text: str) -> str | None:
        """Returns the letter with which an answer ends."""
        lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
        last = lines[-1]
        alone = re.fullmatch(r"\W{0,8}([A-Z])\W{0,8}", last)
        if len(lines) > 1 and alone and alone[1] in self.letters and not lines[-2].endswith(":"):
            return alone[1]
        closed = re.search(r"[(\[]([A-Z])[)\]][.!。]\W{0,4}$", last)
        if closed and closed[1] in self.letters and not _LOOKED_AT.search(last[: closed.start()][-20:]):
            return closed[1]
        if len(lines) > 1 or _ALONE.search(last) or STRUCK in last or not last.endswith((".", "!", "。")):
            return None
        body = last.rstrip(".!。 ")
        for letter, option in self.longest_first:
            before = body[: len(body) - len(option)].rstrip("\"'“ ")
            if body.casefold().endswith(option.casefold()) and not re.search(
                r"[.!?。]|\bnot\b|n['’]t\b", before
            ):
                return letter if _SAYS.search(re.sub(r"\b(?:an?|the)$", "", before).rstrip()[-20:]) else None
        return None


def _ends(pattern: re.Pattern[str], text: str) -> list[int]:
    return [found.end() for found in pattern.finditer(text)]


def _plain(text: str) -> str:
    return " ".join(text.lstrip(_BEFORE_TEXT).rstrip(_BEHIND_TEXT).casefold().split())
