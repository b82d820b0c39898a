"""Tokenizers and templates of real models: prompts, alignments, letters and thoughts, all pairs."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from lcfbench.alignment.remap import remap_prompt
from lcfbench.alignment.tokens import aligned_positions, content_tokens
from lcfbench.models.causal_lm import CausalLM
from lcfbench.tasks.chat_template import chat_of
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import continuation, continuations, render
from lcfbench.tasks.special_text import special_text
from tests.chat_templates import HARMONY, PLAIN
from tests.helpers import made_method, outcomes, shared_document
from tests.npm_tokenizers import NAMES, npm_folder, npm_tokenizer

TEXTS = {
    "plain": "Question: Which of these conducts heat best?\nA. wood\nB. copper\nC. glass\nD. paper\n",
    "accents": "Zoë’s naïve café — ½ Ærøskøbing, e\u0301 a\u0308 ﬁ ﬀ Straße\u00a0İstanbul",
    "chinese": "问题：哪种金属导热最好？\n甲、木头\n乙、铜\n答案是？ 𠀋𡈽 「東京」",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 😀😀 🇩🇪 text ☕️",
    "code": "def f(x):\n\treturn {k: v for k, v in x.items()  if v}\n\n\n    # done -> `f(0x1F)`;  //\n",
    "right to left": "ما هي عاصمة فرنسا؟ שאלה: מהי בירת צרפת? \u202babc\u202c (123) نعم",
    "scripts": "कौन सी धातु? ตอบคำถาม ქართული አማርኛ Ελληνικά ру́сский 한국어 \u200bx\u200d",
    "spaces": "  two  spaces \t tab \r\n\r\n  end   ",
    "rare": "\ufffd \ue000 𝔘𝔫𝔦 ∀x∈ℝ: ⌈x⌉ ≥ x \x07 ꙮ 🜁",
}
CHATS = [
    (),
    (("user", "Hi"), ("assistant", "Hello, 世界!")),
    (
        ("system", "Be brief. 简短。"),
        ("user", "What? 🤔"),
        ("assistant", "Nothing."),
        ("user", "And?"),
        ("assistant", "No."),
    ),
]
PAIRS = [(one, other) for one in NAMES for other in NAMES]


def tokenizer(name: str):
    found = npm_tokenizer(name)
    if found.chat_template is None:  # the package has none
        found.chat_template = HARMONY
    return found


def shown(name: str, text: str, history=(), prefix="Answer:", choices=True):
    return render(View(text, prefix), tokenizer(name), chat=True, choices=choices, history=history)


@cache
def hflm(name: str):
    """lm-eval's model round a tiny one: only its rules for tokens are used."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=tiny(name).model, tokenizer=copy.deepcopy(tokenizer(name)), device="cpu", batch_size=1
    )


@cache
def tiny(name: str) -> CausalLM:
    torch.manual_seed(NAMES.index(name))
    config = LlamaConfig(
        vocab_size=len(tokenizer(name)),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return CausalLM(name, LlamaForCausalLM(config), tokenizer(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_is_the_files_own(name):
    raw = Tokenizer.from_file(str(npm_folder(name) if tokenizer(name) else "") + "/tokenizer.json")
    for text in TEXTS.values():
        assert tokenizer(name)(text, add_special_tokens=False)["input_ids"] == (
            raw.encode(text, add_special_tokens=False).ids
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_and_choices_are_lm_evals(name, text, chat):
    view = View(TEXTS[text], "Answer:")
    messages = [{"role": "user", "content": view.user}, {"role": "assistant", "content": view.prefix}]
    whole = f"{view.user}{'' if view.user[-1].isspace() else ' '}{view.prefix}"
    if chat:
        whole = tokenizer(name).apply_chat_template(
            messages,
            tokenize=False,
            continue_final_message=True,
            enable_thinking=False,
            **({"reasoning_effort": "low"} if name == "gptoss" else {}),
        )
    prompt = render(view, tokenizer(name), chat=chat, choices=True)
    assert prompt.text + prompt.tail == whole
    for choice in (" A", " 铜", " copper wire", "\n", "👍🏽", "B)", " نعم"):
        before, after = hflm(name)._encode_pair(whole, choice)
        assert list(prompt.ids) == before and continuation(prompt, choice, tokenizer(name)) == after
    assert list(render(view, tokenizer(name), chat=chat, choices=False).ids) == (
        hflm(name).tok_batch_encode([whole])[0][0].tolist()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("history", CHATS, ids=["one turn", "three turns", "a system turn"])
def test_offsets_and_spans_are_where_they_say(name, text, history):
    prompt = shown(name, TEXTS[text], history)
    contents = [c.strip() for c in (*(t for _, t in history), TEXTS[text], "Answer:")]
    assert [prompt.text[a:b] for a, b in prompt.spans] == contents
    covered = {i for a, b in prompt.offsets for i in range(a, b)}
    assert not {i for i, c in enumerate(prompt.text) if not c.isspace()} - covered
    assert [a for a, _ in prompt.offsets] == sorted(a for a, _ in prompt.offsets)
    by_place: dict[tuple[int, int], list[int]] = {}
    for token, spot in zip(prompt.ids, prompt.offsets, strict=True):
        by_place.setdefault(spot, []).append(token)
    for (a, b), ids in by_place.items():  # tokens that share the bytes of a character all cover it
        if len(ids) > 1 and b > a:
            assert prompt.text[a:b].strip() in tokenizer(name).decode(ids) or "\ufffd" in tokenizer(
                name
            ).decode(ids)
    assert tokenizer(name).bos_token_id is None or prompt.ids.count(tokenizer(name).bos_token_id) <= 1
    if history and history[0][0] == "system":
        assert contents[0] in prompt.text


@pytest.mark.parametrize("pair", PAIRS, ids=":".join)
@pytest.mark.parametrize("history", CHATS[:2], ids=["one turn", "three turns"])
def test_a_span_reads_the_token_that_covers_it(pair, history):
    for text in TEXTS.values():
        mine, theirs = (shown(name, text, history) for name in pair)
        reads = aligned_positions(mine, theirs, "span")
        seen = -1
        for (a, b), read in zip(mine.offsets, reads, strict=True):
            span = next((n for n, (s, e) in enumerate(mine.spans) if s <= b - 1 < e and b > a), None)
            if span is None:
                assert read == -1  # the template's own
                continue
            place = theirs.spans[span][0] + b - 1 - mine.spans[span][0]
            c, d = theirs.offsets[read]
            assert c <= place < d or mine.text[b - 1].isspace()
            assert read >= seen
            seen = read


@pytest.mark.parametrize("pair", PAIRS, ids=":".join)
@pytest.mark.parametrize("strategy", ["longest", "first"])
def test_remapped_contents_stand_one_for_one_in_the_sharers_template(pair, strategy):
    both = [tokenizer(name) for name in pair]
    for text in TEXTS.values():
        mine, theirs = (shown(name, text, CHATS[1]) for name in pair)
        new = remap_prompt(mine, theirs, *both, strategy)
        reads = aligned_positions(mine, new, "remap")
        inside = content_tokens(mine)
        assert [reads[t] for t in inside] == content_tokens(new) and sum(r >= 0 for r in reads) == len(inside)
        assert all(0 <= i < len(both[1]) for i in new.ids)
        for token in set(both[1].all_special_ids):  # the template's own tokens stay, none comes in
            assert new.ids.count(token) == theirs.ids.count(token)
        if pair[0] == pair[1]:
            at = dict(zip(inside, content_tokens(new), strict=True))
            assert all(mine.ids[t] == new.ids[at[t]] for t in inside)


@pytest.mark.parametrize("name", NAMES)
def test_letters_are_told_apart(name):
    for prefix in ("Answer:", ""):
        prompt = shown(name, TEXTS["plain"], prefix=prefix)
        letters = continuations(prompt, [f" {c}" for c in "ABCDEFGHIJ"], tokenizer(name))
        assert len({tuple(ids) for ids in letters}) == 10 and all(letters)
        assert [tokenizer(name).decode(ids).strip() for ids in letters] == list("ABCDEFGHIJ")


@pytest.mark.parametrize("name", ["qwen3", "gptoss"])
@pytest.mark.parametrize("text", TEXTS)
def test_thoughts(name, text):
    thinking = copy.copy(tokenizer(name))
    thinking.thinking = "on"
    thought = chat_of(thinking).thought
    for prefix in ("Answer:", ""):
        off = shown(name, TEXTS[text], prefix=prefix, choices=False)
        assert not thought.is_open(off.text)
        on = render(View(TEXTS[text], prefix), thinking, chat=True, choices=True)
        assert thought.is_open(on.text) and on.begin == prefix and thought.closes in on.closing
        closes = thinking.convert_tokens_to_ids(thought.closes)
        assert thinking(on.closing, add_special_tokens=False)["input_ids"][0] == closes


@pytest.mark.parametrize("name", NAMES)
def test_a_date_is_fixed(name):
    dated = copy.copy(tokenizer(name))
    dated.chat_template = PLAIN["dated, where there is a clock"]
    assert "26 Jul 2024" in render(View("Hi"), dated, chat=True, choices=True).text


@pytest.mark.parametrize("pair", PAIRS, ids=":".join)
def test_special_tokens_of_either_model_are_text_in_a_document(pair):
    mine, other = (tokenizer(name) for name in pair)
    special = [t for t in other.all_special_tokens if t.strip()][:4]
    text = f"One {special[0]} two{''.join(special)} three."
    prompt = render(View(text), mine, chat=False, choices=True)
    assert prompt.special == special_text([text], mine) and (mine is not other or prompt.special >= 2)
    assert prompt.ids.count(mine.bos_token_id) <= 1
    assert not set(prompt.ids[1:]) & set(mine.all_special_ids)
    said = mine.decode(prompt.ids, skip_special_tokens=True).strip()
    assert said.replace("▁", " ") == text.replace("▁", " ")  # a space, to sentencepiece
    chat = render(View(text, "Answer:"), mine, chat=True, choices=True)
    plain = render(View("One two three.", "Answer:"), mine, chat=True, choices=True)
    for ident in mine.all_special_ids:
        assert chat.ids.count(ident) == plain.ids.count(ident)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] != p[1]], ids=":".join)
def test_pairs_answer_one_document_as_several(pair):
    ends = tuple(tiny(name) for name in pair)
    documents = [shared_document(i, TEXTS[t].strip()) for i, t in enumerate(("chinese", "emoji", "code"))]
    for mode, kind in (("receiver", None), ("t2t", None), ("lcf", "lcf"), ("c2c", "c2c")):
        method = made_method(mode, kind, ends)
        together, *_ = outcomes(method, documents)
        for document, one in zip(documents, together, strict=True):
            assert one == pytest.approx(outcomes(method, [document])[0][0], abs=1e-4)
