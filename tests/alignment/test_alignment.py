"""Layer maps and token alignment, on small tokenizers and against the reference's records."""

from __future__ import annotations

import json
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lcfbench.alignment.layers import layer_map, layer_sources
from lcfbench.alignment.remap import candidates, remap_ids, remap_prompt, shared_length
from lcfbench.alignment.tokens import aligned_positions, content_tokens, turn_ends
from lcfbench.errors import UserError
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import Prompt, render
from tests import helpers
from tests.c2c_chat import remap_chat
from tests.helpers import BESIDE

REFERENCE = BESIDE / "fixtures" / "c2c_reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no recorded reference at {REFERENCE}")
TEXTS = [
    "Which of these is a good conductor of heat?",
    "Der Schlüssel liegt in Zürich, naïve café — façade.",
    "鍵は箱の中にあります。 한국어 😀👩‍👩‍👧 ok",
    "  two  spaces\nand\tlines\n\n0123456789",
    "a",
]


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """Lower-cased word pieces, whose tokens cover no spaces; CLS in front, no EOS."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(
        helpers.TEXT,
        trainers.WordPieceTrainer(vocab_size=260, special_tokens=["[UNK]", "[CLS]"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="[CLS]", unk_token="[UNK]")


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Sentencepiece-like: a blank belongs to the word after it, unknown characters fall back on bytes."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    inner.train_from_iterator(
        helpers.TEXT, trainers.BpeTrainer(vocab_size=480, special_tokens=special[:3], show_progress=False)
    )
    inner.add_tokens(special[3:])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def kinds() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bytes-400": helpers.tokenizer(400),
        "bytes-330": helpers.tokenizer(330, bos=True),
        "bytes-300-chat": helpers.tokenizer(300, bos=True, chat=True),
        "wordpiece": wordpiece(),
        "metaspace": metaspace(),
    }


PAIRS = [(a, b) for a in kinds() for b in kinds() if a != b]


def shown(text: str, name: str, prefix: str = "") -> Prompt:
    return render(View(text, prefix), kinds()[name], chat=True, choices=False)


# -- layers ----------------------------------------------------------------------------------------


def test_layer_maps():
    assert layer_map("terminal", 6, 4) == [0, 0, 0, 1, 2, 3]
    assert layer_map("terminal", 28, 24)[:6] == [0, 0, 0, 0, 0, 1] and layer_map("terminal", 3, 5) == [
        2,
        3,
        4,
    ]
    assert layer_map("proportional", 30, 18)[0] == 0 and layer_map("proportional", 30, 18)[-1] == 17
    assert layer_map("proportional", 5, 3) == [0, 0, 1, 2, 2] and layer_map("proportional", 1, 3) == [2]
    with pytest.raises(UserError, match="terminal"):
        layer_map("terminl", 6, 4)


@needs_reference
@pytest.mark.parametrize(
    ("name", "scheme"), [("last_aligned_sources", "terminal"), ("k_nearest_sources", "nearest")]
)
def test_layer_maps_are_the_reference_s(name, scheme):
    recorded = json.loads((REFERENCE / "functions" / "layer_maps.json").read_text())[name]
    for key, sources in recorded.items():
        assert layer_sources(scheme, *map(int, key.split(","))) == sources, key
    assert len(recorded) > 100


# -- span ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_span_reads_the_token_that_covers_the_last_character(text, a, b):
    mine, theirs = shown(text, a, "The answer is 'é"), shown(text, b, "The answer is 'é")
    reads = aligned_positions(mine, theirs, "span")
    assert len(reads) == len(mine.ids) and any(r >= 0 for r in reads)
    for token, source in enumerate(reads):
        start, lm = mine.offsets[token]
        span = next((k for k, (s, e) in enumerate(mine.spans) if s < lm <= e), None) if lm > start else None
        if span is None:
            assert source == -1
            continue
        place = lm - 1 - mine.spans[span][0] + theirs.spans[span][0]
        covering = [t for t, (s, e) in enumerate(theirs.offsets) if s <= place < e]
        if covering:
            assert source == covering[-1]
            s, e = theirs.offsets[source]
            assert mine.text[lm - 1] == theirs.text[place] and s <= place < e
        elif source >= 0:  # a character no token of the sharer covers: the nearest one before it
            assert theirs.offsets[source][1] <= place
    assert sorted(r for r in reads if r >= 0) == [r for r in reads if r >= 0]  # in reading order


def test_span_of_a_model_with_itself_is_the_identity_inside_the_contents():
    prompt = shown("Zürich 😀 ok", "bytes-300-chat", "Answer:")
    inside = set(content_tokens(prompt))
    reads = aligned_positions(prompt, prompt, "span")
    for token, source in enumerate(reads):
        same = prompt.offsets[token] == prompt.offsets[source]
        assert source == -1 if token not in inside else source == token or (same and source > token)
    assert -1 in reads[:5] and reads[-1] == len(reads) - 1


def test_several_tokens_of_one_character_read_the_one_that_completes_it():
    mine = Prompt("é!", (1, 2, 3), ((0, 1), (0, 1), (1, 2)), ((0, 2),))
    theirs = Prompt("<é!>", (9, 5, 6, 7, 8, 9), ((0, 1), (1, 2), (1, 2), (1, 2), (2, 3), (3, 4)), ((1, 3),))
    assert aligned_positions(mine, theirs, "span") == [3, 3, 4]


def test_tokens_across_a_border():
    """`x: ab`, content `ab`: the token `: a` ends inside and is edited, `b\\n` ends outside and is not."""
    mine = Prompt("x: ab\n", (1, 2, 3), ((0, 1), (1, 4), (4, 6)), ((3, 5),))
    theirs = Prompt("ab", (7, 8), ((0, 1), (1, 2)), ((0, 2),))
    assert aligned_positions(mine, theirs, "span") == [-1, 0, -1]


def test_different_contents_are_refused():
    one, other = shown("What is copper?", "bytes-400"), shown("What is glass?", "bytes-330")
    with pytest.raises(UserError, match="same contents"):
        aligned_positions(one, other, "span")
    with pytest.raises(UserError, match="same contents"):  # a template that rewrites contents leaves no spans
        aligned_positions(Prompt("abc", (1,), ((0, 3),), ()), Prompt("abc", (1,), ((0, 3),), ()), "span")
    with pytest.raises(UserError, match="unknown token alignment"):
        aligned_positions(one, one, "spam")


# -- remap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_remapped_prompt_has_one_token_for_one(text, a, b):
    mine, own = shown(text, a, "The answer is"), shown(text, b, "The answer is")
    theirs = remap_prompt(mine, own, kinds()[a], kinds()[b], "longest")
    assert (
        theirs.text == own.text
        and len(theirs.ids) == len(theirs.offsets)
        and max(theirs.ids) < len(kinds()[b])
    )
    source = aligned_positions(mine, theirs, "remap")
    read = [s for s in source if s >= 0]
    assert read == content_tokens(theirs)  # every content token of the sharer is read, once, in order
    for token, s in enumerate(source):
        if s >= 0:
            assert theirs.ids[s] == remap_ids([mine.ids[token]], kinds()[a], kinds()[b], "longest")[0]
    # the template round the contents is the sharer's own
    outside = [i for t, i in enumerate(theirs.ids) if t not in set(read)]
    if mine.offsets[content_tokens(mine)[0]][0] == mine.spans[0][0] and len(turn_ends(mine)) == 1:
        assert outside == [i for t, i in enumerate(own.ids) if t not in set(content_tokens(own))]


def test_a_blank_that_the_receiver_s_token_brings_is_not_said_twice():
    """Plain text: a space joins question and answer, and the receiver's ` The` carries it along."""
    receiver, sharer = helpers.tokenizer(400), helpers.tokenizer(330)
    mine, own = (
        render(View("Which box?", "Answer"), t, chat=False, choices=False) for t in (receiver, sharer)
    )
    assert " Answer" in [receiver.decode([i]) for i in mine.ids]
    theirs = remap_prompt(mine, own, receiver, sharer, "longest")
    assert len(theirs.ids) == len(mine.ids) and aligned_positions(mine, theirs, "remap") == list(
        range(len(mine.ids))
    )


def test_a_newline_that_the_receiver_s_token_takes_along_is_not_said_twice():
    """The receiver's `:\\n` begins in the content and ends in the template.

    The sharer's template goes on after the newline.
    """
    receiver, sharer = helpers.tokenizer(400), helpers.tokenizer(330)
    mine = Prompt("Notes:\nAnswer", (40, 41), ((0, 5), (5, 7)), ((0, 6),))
    theirs = remap_prompt(mine, Prompt(mine.text, (), (), mine.spans), receiver, sharer, "longest")
    assert (
        list(theirs.ids[2:]) == sharer.encode("Answer", add_special_tokens=False)
        and theirs.offsets[2][0] == 7
    )
    assert theirs.offsets[:2] == ((0, 5), (5, 6))


def test_equal_vocabularies_are_the_identity():
    one, other = helpers.tokenizer(400), helpers.tokenizer(400, bos=True)
    ids = list(range(len(one)))  # parts of characters and specials too
    assert remap_ids(ids, one, other, "longest") == remap_ids(ids, one, other, "first") == ids
    prompt = render(View("Zürich 😀"), one, chat=False, choices=False)
    assert aligned_positions(prompt, prompt, "same") == list(range(len(prompt.ids)))


def test_specials_go_by_role_then_by_string_then_nowhere():
    one, other = helpers.tokenizer(400), wordpiece()
    assert other.eos_token_id is None and other.pad_token_id is None
    assert remap_ids([one.bos_token_id, one.unk_token_id], one, other, "longest") == [
        other.bos_token_id,
        other.unk_token_id,
    ]
    assert remap_ids([one.eos_token_id, one.pad_token_id], one, other, "longest") == [other.unk_token_id] * 2
    meta = metaspace()
    assert meta.pad_token_id is None
    assert remap_ids([one.pad_token_id], one, meta, "first") == [
        meta.eos_token_id
    ]  # padding falls back on EOS
    bare = PreTrainedTokenizerFast(tokenizer_object=helpers.tokenizer(300).backend_tokenizer)
    assert bare.unk_token_id is None and remap_ids([meta.eos_token_id], meta, bare, "longest") == [0]
    same = PreTrainedTokenizerFast(
        tokenizer_object=helpers.tokenizer(300).backend_tokenizer, extra_special_tokens=["<|im_start|>"]
    )
    full = PreTrainedTokenizerFast(
        tokenizer_object=helpers.tokenizer(400).backend_tokenizer, extra_special_tokens=["<|im_start|>"]
    )
    start = full.convert_tokens_to_ids("<|im_start|>")
    assert remap_ids([start], full, same, "longest") == [same.convert_tokens_to_ids("<|im_start|>")]


def test_longest_shares_most_and_first_is_first():
    one, other = helpers.tokenizer(400), helpers.tokenizer(330)
    many = [i for i in range(len(one)) if len(candidates(i, one, other)) > 1]
    longest, first = (remap_ids(many, one, other, s) for s in ("longest", "first"))
    assert longest != first
    for token, best, head in zip(many, longest, first, strict=True):
        found, text = candidates(token, one, other), one.decode([token])
        assert head == found[0] and best in found
        assert all(
            shared_length(text, other.decode([best])) >= shared_length(text, other.decode([c])) for c in found
        )
    with pytest.raises(UserError, match="longest"):
        remap_ids([1], one, other, "longst")


@cache
def recorded() -> dict:
    return json.loads((REFERENCE / "aligner" / "alignment.json").read_text())


def both():
    return [
        AutoTokenizer.from_pretrained(REFERENCE / "aligner" / f"tokenizer-{side}")
        for side in ("receiver", "sharer")
    ]


@needs_reference
def test_sequences_are_the_reference_s():
    mine, theirs = both()
    for case in recorded()["sequences"]:
        ids = case["slm_token_ids"]
        assert (
            mine.encode(case["text"], add_special_tokens=False) == ids
            and theirs.encode(case["text"]) == case["original_llm_token_ids"]
        )
        assert remap_ids(ids, mine, theirs, case["strategy"]) == case["aligned_llm_token_ids"], case["text"]
        assert [[i, candidates(i, mine, theirs)] for i in ids] == case["mapping"]


@needs_reference
def test_chats_are_the_reference_s():
    mine, theirs = both()
    for case in recorded()["chats"]:
        kwargs = {**case["kwargs"], "continue_final_message": case["kwargs"].get("remove_last_surfix", False)}
        kwargs.pop("remove_last_surfix", None)
        chat = remap_chat(case["messages"], mine, theirs, case["strategy"], **kwargs)
        assert (chat.receiver_ids, chat.sharer_ids) == (case["slm_ids_padded"], case["llm_ids_padded"])
        for name, mask in (
            ("message_mask", chat.message),
            ("slm_padding_mask", chat.receiver_padding),
            ("llm_padding_mask", chat.sharer_padding),
        ):
            assert [int(m) for m in mask] == case[name]
        sections = [
            {"type": "message" if m else "template", "slm_range": [a, b], "llm_range": [a, b]}
            for m, a, b in chat.sections
        ]
        assert sections == case["sections"]
        assert (chat.receiver_text, chat.sharer_text) == (case["slm_text"], case["llm_text"])


@needs_reference
def test_our_prompts_are_the_reference_s_chats_without_the_padding():
    mine, theirs = both()
    checked = 0
    for case in recorded()["chats"]:
        messages = case["messages"]
        if (
            case["kwargs"] != {"add_generation_prompt": True, "enable_thinking": False}
            or messages[0]["role"] != "user"
        ):
            continue  # `render` shows neither system turns nor thinking
        history = [(m["role"], m["content"]) for m in messages[:-1]]
        receiver, own = (
            render(View(messages[-1]["content"]), t, chat=True, choices=False, history=history)
            for t in (mine, theirs)
        )
        sharer = remap_prompt(receiver, own, mine, theirs, case["strategy"])
        real = [i for i, pad in zip(case["slm_ids_padded"], case["slm_padding_mask"], strict=True) if not pad]
        real_sharer = [
            i for i, pad in zip(case["llm_ids_padded"], case["llm_padding_mask"], strict=True) if not pad
        ]
        assert list(receiver.ids) == real and list(sharer.ids) == real_sharer
        fused = [
            t
            for t, m in enumerate(
                m for m, p in zip(case["message_mask"], case["slm_padding_mask"], strict=True) if not p
            )
            if m
        ]
        assert [t for t, s in enumerate(aligned_positions(receiver, sharer, "remap")) if s >= 0] == fused
        checked += 1
    assert checked == 6
