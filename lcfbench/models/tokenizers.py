"""Tokenizers, loaded fast.

>>> tokenizer = load_tokenizer(find_model("gemma3-270m").path)

Weights need no help: `from_pretrained` maps safetensors into memory (0.1–0.2 s for half a
gigabyte), where nothing has to be converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.sources.cache import cache_dir
from lcfbench.sources.model_folder import STEP, needs_code
from lcfbench.sources.models import find_tokenizer, split_pair
from lcfbench.tasks.chat_template import Thinking, parse_thinking

PLAIN = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
LARGE_BYTES = 4_000_000  # of a tokenizer.json; looking for a copy of a smaller one takes as long as it
FORM = "merges as one string, tokens sorted, few declared"  # of the copy
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "config.json"),
)


def load_tokenizer(path: Path, trust_remote_code: bool = False, thinking: Thinking = "off") -> Any:
    """Loads a tokenizer as `AutoTokenizer.from_pretrained` does.

    thinking: whether prompts that it makes leave room for a thought.

    A large vocabulary that its class would rebuild from the file (Gemma's: 4 s) comes from a copy
    in the cache that is read as it is (0.6 s), made and compared at the first time. Raises UserError.
    """
    made = _loaded(path, trust_remote_code)
    try:
        made.thinking = parse_thinking(thinking)
    except ValueError as error:
        raise UserError(f"thinking={thinking!r}: {error}.", "Leave it out for off.") from error
    return made


def _loaded(path: Path, trust_remote_code: bool) -> Any:
    file = path / "tokenizer.json"
    if not file.is_file() or file.stat().st_size < LARGE_BYTES or trust_remote_code:
        return _made(path, trust_remote_code)
    place = cache_dir() / "tokenizers" / _key(path)
    if (place / "tokenizer_config.json").is_file():
        return _copied(place, path)
    made = _made(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written: nothing is lost but time
        _keep(made, place, path)
    return made


def load_tokenizers(
    pair: str, *, offline: bool, trust_remote_code: bool = False, thinking: Thinking = "off"
) -> tuple[Any, Any]:
    """Loads the tokenizers of RECEIVER:SHARER, without weights. Raises UserError."""
    receiver, sharer = (
        load_tokenizer(find_tokenizer(name, offline=offline), trust_remote_code, thinking)
        for name in split_pair(pair)
    )
    return receiver, sharer


def _made(path: Path, trust_remote_code: bool = False) -> Any:
    """Builds the tokenizer that a folder declares, without code of its own unless it is trusted.

    Raises UserError.

    For some types of model transformers takes the type's own class instead, which adds an unk and a
    pad token that the files do not have; translated tokens then differ (C2C's token alignment).
    """
    from transformers import AutoTokenizer, TokenizersBackend
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        made = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
        plain = get_tokenizer_config(path).get("tokenizer_class") in PLAIN
        if plain and isinstance(made, TokenizersBackend) and type(made) is not TokenizersBackend:
            return TokenizersBackend.from_pretrained(path, trust_remote_code=False)
        return made
    except Exception as error:  # the tokenizers library raises plain Exceptions
        if "trust_remote_code" in str(error):
            raise needs_code(path) from error
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise UserError(f"the tokenizer of {path} cannot be loaded ({line}).", STEP) from error


def _key(path: Path) -> str:
    """Returns a key that changes with a tokenizer's files and the libraries that read them."""
    import tokenizers
    import transformers

    found = [(name, (path / name).stat()) for name in FILES if (path / name).is_file()]
    stats = [(name, s.st_size, s.st_mtime_ns) for name, s in found]
    about = [FORM, str(path.resolve()), stats, transformers.__version__, tokenizers.__version__]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _keep(made: Any, place: Path, path: Path) -> None:
    """Writes the copy, unless the tokenizer that is read back differs in anything."""
    from transformers import TokenizersBackend

    if not isinstance(made, TokenizersBackend):
        return
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        made.save_pretrained(part)
        backend = made.backend_tokenizer.to_str()
        (part / "tokenizer.json").write_text(_quick(backend))
        config = json.loads((part / "tokenizer_config.json").read_text())
        config |= {"tokenizer_class": "TokenizersBackend", "padding_side": made.padding_side}
        added = {str(i): token for i, token in made.added_tokens_decoder.items()}
        named = set(made.all_special_tokens)
        # without any it parses the whole file for them, and thousands of unused ones take 0.15 s
        for wanted in (named, {token.content for token in added.values()}):
            states = {i: token.__getstate__() for i, token in added.items() if token.content in wanted}
            config["added_tokens_decoder"] = states
            (part / "tokenizer_config.json").write_text(json.dumps(config))
            again = _copied(part, path)
            if _seen(again) == _seen(made) and again.backend_tokenizer.to_str() == backend:
                os.replace(part, place)
                return
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _quick(backend: str) -> str:
    """Returns a tokenizer.json in the form that is parsed in the least time.

    Each merge is one string, where no token holds the space that parts it (Gemma's: 0.8 s against 1.1 s).
    Tokens are in the order of their bytes, in which the library's tree of them grows (0.15 s less).
    """
    whole = json.loads(backend)
    if isinstance(vocabulary := whole["model"].get("vocab"), dict):  # unigram has a list, whose order counts
        whole["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda token: token[0].encode()))
    merges = whole["model"].get("merges")
    if merges and not any(" " in token for merge in merges for token in merge):
        whole["model"]["merges"] = [" ".join(merge) for merge in merges]
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def _copied(place: Path, path: Path) -> Any:
    from transformers import TokenizersBackend

    tokenizer = TokenizersBackend.from_pretrained(place, trust_remote_code=False)
    tokenizer.name_or_path = str(path)
    return tokenizer


def _seen(tokenizer: Any) -> tuple[Any, ...]:
    """Returns the facts that, beside the backend, decide an answer."""
    t = tokenizer
    lists = t.special_tokens_map, t.all_special_ids, t.model_input_names
    return *lists, t.chat_template, t.padding_side, t.model_max_length, len(t)
