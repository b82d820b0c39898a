"""The answer behind thoughts and channels, found in the text alone.

`models.thinking.spoken` cuts by tokens what a chat template is known to write; this is for text whose
template is unknown, or that has lost its special tokens.

>>> behind_thoughts("<think>A or B?</think>\\n\\nB"), behind_thoughts("<think>A or B?")
('\\n\\nB', None)
"""

from __future__ import annotations

import re

TAGS = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning)(?::\w+)?"
MARKERS = (
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
# The markers of channels, and the words that are left of them where special tokens were skipped.
_CHANNELS = (
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel|>commentary", "assistantfinal"),
    ("<|think|>", "<|content|>"),
)


def _any(texts: list[str], more: str) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, texts), more]))


_PAIRS = [*MARKERS, *_CHANNELS]
_OPENS = _any([opens for opens, _ in _PAIRS], rf"<{TAGS}>|\A\s*(?:assistant)?analysis(?=[^\W\d_])")
_CLOSES = _any([closes for _, closes in _PAIRS], rf"</{TAGS}>")
_ENDS = re.compile(r"<\|(?:end|return|call|calls|im_end|eot_id|endoftext|end_of_text)\|>|<end_of_turn>|</s>")


def behind_thoughts(text: str) -> str | None:
    """Returns the text behind the last thought; None where a thought has no end and no text before it."""
    begin = max((found.end() for found in _CLOSES.finditer(text)), default=0)
    text = text[begin:]
    if opened := _OPENS.search(text):
        text = text[: opened.start()]
        if not text.strip():
            return None
    return _ENDS.split(text, maxsplit=1)[0]
