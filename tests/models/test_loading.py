"""Tokenizers from the cache are the tokenizers of the folder, or are not taken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, GemmaTokenizer

from lcfbench.models import tokenizers as loading

TEXT = "a sa  sand ß 🙂\n<eos>"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tokenizer whose class builds it anew from the file's vocabulary, as Gemma's does."""
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "LARGE_BYTES", 0)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁asnd", "sa", "nd", "sand"]
    merges = [("s", "a"), ("n", "d"), ("sa", "nd")]
    made = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def never(*_, **__):
    raise AssertionError("built anew")


def copies(folder):
    return sorted(p.name for p in (folder.parent / "cache" / "tokenizers").glob("*"))


def test_the_copy_is_the_tokenizer(folder, monkeypatch):
    first = loading.load_tokenizer(folder)
    assert type(first) is GemmaTokenizer and len(copies(folder)) == 1
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", never)
    second = loading.load_tokenizer(folder)
    assert second(TEXT).input_ids == first(TEXT).input_ids and len(first(TEXT).input_ids) > 8
    assert second.decode(second(TEXT).input_ids) == first.decode(first(TEXT).input_ids)
    assert (
        second(TEXT, return_offsets_mapping=True)["offset_mapping"]
        == first(TEXT, return_offsets_mapping=True)["offset_mapping"]
    )
    assert (second.eos_token_id, second.pad_token_id, second.bos_token_id) == (1, 0, 2)
    assert second.chat_template == first.chat_template and second.padding_side == first.padding_side
    assert second.name_or_path == str(folder)


def test_the_copy_has_a_merge_as_one_string_where_no_token_holds_a_space(folder):
    loading.load_tokenizer(folder)
    [name] = copies(folder)
    kept = json.loads((folder.parent / "cache" / "tokenizers" / name / "tokenizer.json").read_text())
    assert kept["model"]["merges"] == ["s a", "n d", "sa nd"]
    parted = json.dumps({"model": {"merges": [["a ", "b"], ["a", "b"]]}})
    assert json.loads(loading._quick(parted)) == json.loads(parted)
    assert json.loads(loading._quick('{"model": {"vocab": {"é": 1}}}')) == {"model": {"vocab": {"é": 1}}}


def test_the_copy_lists_tokens_in_the_order_of_their_bytes(folder):
    loading.load_tokenizer(folder)
    [name] = copies(folder)
    kept = json.loads((folder.parent / "cache" / "tokenizers" / name / "tokenizer.json").read_text())
    tokens = list(kept["model"]["vocab"])
    assert tokens == sorted(tokens, key=str.encode) and len(tokens) > 5
    unigram = '{"model": {"vocab": [["b", -1.0], ["a", -2.0]]}}'
    assert json.loads(loading._quick(unigram)) == json.loads(unigram)


def added(folder):
    """The tokens that a copy's config declares, after one that no text needs was added."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ident = max(whole["model"]["vocab"].values()) + 1
    whole["model"]["vocab"]["<unused7>"] = ident
    whole["added_tokens"].append({"id": ident, "content": "<unused7>", "special": True, **flags})
    path.write_text(json.dumps(whole))
    made = loading.load_tokenizer(folder)
    [name] = copies(folder)
    config = folder.parent / "cache" / "tokenizers" / name / "tokenizer_config.json"
    declared = json.loads(config.read_text())["added_tokens_decoder"]
    again = loading.load_tokenizer(folder)
    assert repr(again.added_tokens_decoder) == repr(made.added_tokens_decoder)
    assert again("a<unused7>s").input_ids == made("a<unused7>s").input_ids
    assert ident in made("a<unused7>s").input_ids
    return {token["content"] for token in declared.values()}


def test_the_copy_declares_the_tokens_that_have_a_name(folder):
    declared = added(folder)
    assert "<eos>" in declared and "<unused7>" not in declared


def test_the_copy_declares_all_added_tokens_where_it_reads_otherwise_without(folder, monkeypatch):
    copied, first = loading._copied, []

    def other(place, path):
        tokenizer = copied(place, path)
        if not first:
            tokenizer.padding_side = "right"
        first.append(place)
        return tokenizer

    monkeypatch.setattr(loading, "_copied", other)
    assert {"<eos>", "<unused7>"} <= added(folder)


@pytest.mark.parametrize("changed", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_changed_file_makes_another_copy(folder, changed):
    loading.load_tokenizer(folder)
    path = folder / changed
    path.write_text(path.read_text() + " ")
    loading.load_tokenizer(folder)
    assert len(copies(folder)) == 2


def test_a_copy_that_reads_otherwise_is_not_kept(folder, monkeypatch):
    copied = loading._copied

    def other(place, path):
        tokenizer = copied(place, path)
        tokenizer.padding_side = "right"
        return tokenizer

    monkeypatch.setattr(loading, "_copied", other)
    assert loading.load_tokenizer(folder).padding_side == "left" and copies(folder) == []


def test_a_cache_that_cannot_be_written_costs_only_time(folder):
    (folder.parent / "cache").write_text("a file where the folder should be")
    assert (
        loading.load_tokenizer(folder)("sand").input_ids
        == AutoTokenizer.from_pretrained(folder)("sand").input_ids
    )


def test_small_ones_are_left_alone(folder, monkeypatch):
    monkeypatch.setattr(loading, "LARGE_BYTES", 10**9)
    assert type(loading.load_tokenizer(folder)) is GemmaTokenizer and copies(folder) == []


def test_the_libraries_of_a_run_are_all_imported_with_the_collector_at_rest():
    code = """
import gc, json, sys
from lcfbench.cli.run import import_libraries
walks = []
gc.callbacks.append(lambda *given: walks.append(given))
import_libraries()
n = len(walks)
names = "torch", "transformers.modeling_utils", "lm_eval.api.task", "datasets"
have = [name in sys.modules for name in names]
order = list(sys.modules)
early = order.index("torch.distributed.tensor") < order.index("torch._dynamo") < order.index("transformers")
print(json.dumps([n, have, gc.isenabled(), gc.get_freeze_count() > 10_000, early]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    walks, have, enabled, frozen, early = json.loads(done.stdout.splitlines()[-1])
    assert all(have) and enabled and frozen and walks <= 2 and early
