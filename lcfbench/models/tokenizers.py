"""What a run waits for before its first document: the libraries, and the tokenizers.

>>> import_libraries()                                      # torch, transformers, lm-eval: seconds, all in one go
>>> tokenizer = load_tokenizer(find_model("gemma3-270m").path)

Weights need no help: `from_pretrained` maps safetensors into memory (0.1–0.2 s for half a gigabyte, resident memory grows by 20 MB), where
nothing has to be converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from lcfbench.sources.cache import cache_dir

LARGE_BYTES = (
    4_000_000  # of a tokenizer.json; a smaller one is rebuilt in the time it takes to look for a copy
)
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
)


def load_tokenizer(path: Path) -> Any:
    """As `AutoTokenizer.from_pretrained`. A large vocabulary that its class would rebuild from the file (Gemma's: 4 s) comes from a copy in
    the cache that is read as it is (1 s), made and compared at the first time.
    """
    from transformers import AutoTokenizer

    file = path / "tokenizer.json"
    if not file.is_file() or file.stat().st_size < LARGE_BYTES:
        return AutoTokenizer.from_pretrained(path)
    place = cache_dir() / "tokenizers" / _key(path)
    if (place / "tokenizer_config.json").is_file():
        return _copied(place, path)
    made = AutoTokenizer.from_pretrained(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written: nothing is lost but time
        _keep(made, place, path)
    return made


def _key(path: Path) -> str:
    """Changes with every file a tokenizer is made from, and with the libraries that make it."""
    import tokenizers
    import transformers

    stats = [
        (name, s.st_size, s.st_mtime_ns)
        for name in FILES
        if (path / name).is_file()
        for s in [(path / name).stat()]
    ]
    about = [str(path.resolve()), stats, transformers.__version__, tokenizers.__version__]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _keep(made: Any, place: Path, path: Path) -> None:
    """Writes the copy, unless what is read back differs in anything."""
    from transformers import TokenizersBackend

    if not isinstance(made, TokenizersBackend):
        return
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        made.save_pretrained(part)
        backend = made.backend_tokenizer.to_str()
        (part / "tokenizer.json").write_text(backend)
        config = json.loads((part / "tokenizer_config.json").read_text())
        added = {
            str(i): token.__getstate__() for i, token in made.added_tokens_decoder.items()
        }  # or it parses the whole file for them
        config |= {
            "tokenizer_class": "TokenizersBackend",
            "padding_side": made.padding_side,
            "added_tokens_decoder": added,
        }
        (part / "tokenizer_config.json").write_text(json.dumps(config))
        again = _copied(part, path)
        if _seen(again) == _seen(made) and again.backend_tokenizer.to_str() == backend:
            os.replace(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copied(place: Path, path: Path) -> Any:
    from transformers import TokenizersBackend

    tokenizer = TokenizersBackend.from_pretrained(place)
    tokenizer.name_or_path = str(path)
    return tokenizer


def _seen(tokenizer: Any) -> tuple[Any, ...]:
    """What of a tokenizer, beside its backend, decides an answer."""
    t = tokenizer
    return (
        t.special_tokens_map,
        t.all_special_ids,
        t.chat_template,
        t.padding_side,
        t.model_max_length,
        t.model_input_names,
        len(t),
    )
