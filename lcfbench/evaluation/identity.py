"""Names a run by everything that changes its answers.

A run's id is a digest of its identity: equal questions have equal ids, anything that may change an
answer gives another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.models.causal_lm import CausalLM
from lcfbench.provenance import digest
from lcfbench.registry import source_digest
from lcfbench.results.manifest import MANIFEST, Manifest, read_manifest
from lcfbench.tasks.chat_template import DATE, chat_of, thinking_of
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import adapted_for, contents_of, rendered
from lcfbench.tasks.special_text import special_text

# Raised by hand when the same question may get another answer from this version of the package than
# from the one before; `results/baseline` is then made again.
BEHAVIOUR = 2
LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval")  # their versions may change answers
# Recipe fields that change an answer, and those that do not. Together they are all fields (tested).
IDENTITY_FIELDS = frozenset(
    "pair mode task control scoring limit shots prompt seed seeds adapter options task_options batch_size "
    "dtype device receiver_device sharer_device device_map attention trust_remote_code thinking wire "
    "join".split()
)
OTHER_FIELDS = frozenset(
    "quick latency_documents max_failed require_proof out offline fresh wait train train_options tracker "
    "processes on gpus_per_worker only shard keep_messages".split()
)
# Parts of an identity that depend on the machine, or on the day; a run's key has none of them.
OF_THE_MACHINE = frozenset("dtype device attention quantisation versions prompts_sha256 date".split())
# Parts of an identity that change without the user asking for anything else, in words.
CIRCUMSTANCES = {
    "versions": "the versions of libraries",
    "behaviour": "lcfbench's behaviour number",
    "prompts_sha256": "the rendered prompts",
    "task_sha256": "the task's files or the modules they import",
    "data_sha256": "the data",
    "examples_sha256": "the data of the worked examples",
    "plugins": "the code of plugins",
    "version": "the version of lcfbench, which older runs recorded",
}


def key_of(identity: Mapping[str, Any], dtype: str, attention: str) -> str:
    """Returns `r` and 8 hex digits, which name a run on every kind of device.

    dtype, attention: as they were asked.
    """
    asked = {name: value for name, value in identity.items() if name not in OF_THE_MACHINE}
    return "r" + digest({**asked, "dtype": dtype, "attention": attention})[:8]


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the libraries that may change an answer, and of those that a task names."""
    return {name: version(name) for name in (*LIBRARIES, *more)}


def prompts_sha256(documents: Iterable[Document], receiver: CausalLM, *sharers: CausalLM) -> str:
    """Digest of the prompts as text, all models' views under their own chat templates."""
    found = hashlib.sha256()
    for d in documents:
        alone = (d.sharer,) * len(sharers)
        theirs = d.sharers if len(sharers) > 1 and d.sharers else alone
        for view, lm in ((d.receiver, receiver), *zip(theirs, sharers, strict=True)):
            found.update(rendered(view, lm.tokenizer, d.chat and lm.has_chat).encode() + b"\0")
    return found.hexdigest()


def chat_facts(documents: Sequence[Document], models: Iterable[CausalLM]) -> dict[str, Any]:
    """The date that the models' chat templates print and the thoughts that they ask for, where they do."""
    chats = [chat_of(lm.tokenizer) for lm in models if any(d.chat for d in documents)]
    found: dict[str, Any] = {}
    if any(chat and chat.dated for chat in chats):
        found["date"] = DATE.isoformat()
    if thinking := [str(thinking_of(chat.tokenizer)) for chat in chats if chat and chat.thought]:
        found["thinking"] = thinking[0]
    return found


def prompt_facts(documents: Sequence[Document], models: tuple[CausalLM, CausalLM]) -> dict[str, Any]:
    """Special tokens that stand in the documents as text, and how chats were changed for a template.

    By role, where there are any: documents and occurrences; the change in words.
    """
    roles = dict(zip(("receiver", "sharer"), models, strict=True))
    counts = {role: {"documents": 0, "occurrences": 0} for role in roles}
    how = dict.fromkeys(roles, "")
    for d in documents:  # one by one: the texts of a long task lie in a file
        for role, lm in roles.items():
            view = getattr(d, role)
            if count := special_text(contents_of(view), lm.tokenizer):
                counts[role]["documents"] += 1
                counts[role]["occurrences"] += count
            how[role] = how[role] or adapted_for(view, lm.tokenizer, d.chat)
    special = {role: found for role, found in counts.items() if found["documents"]}
    adapted = {role: text for role, text in how.items() if text}
    return {k: v for k, v in {"special_text": special, "chat_adapted": adapted}.items() if v}


def plugins_of(used: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Digests of the plugin modules behind names (group, name); none for what ships with the package."""
    return {f"{group}/{name}": found for group, name in used if (found := source_digest(group, name))}


def why_another(out: Path, identity: Mapping[str, Any]) -> str:
    """Says what differs from the nearest recorded run of the same question; empty where there is none.

    Only circumstances are looked at: a run with another limit or seed is another question.
    """
    found: list[tuple[int, str]] = []  # how much differs, and the sentence that says it
    pattern = f"{identity['mode']}-{identity['task']}-{identity['control']}-*/{MANIFEST}"
    question = _question(identity)
    for path in sorted(Path(out).glob(pattern)):
        try:
            about = path.stat()
            if _recorded_question(path.parent, about.st_mtime_ns, about.st_size) != question:
                continue
            recorded = Manifest.lenient(read_manifest(path.parent), path.parent)[0].identity
        except (UserError, FileNotFoundError):  # reading that run reports it, and one may go meanwhile
            continue
        names = sorted({*identity, *recorded})
        differ = [name for name in names if recorded.get(name) != identity.get(name)]
        if differ and set(differ) <= set(CIRCUMSTANCES):
            changes = [f"{CIRCUMSTANCES[n]}{_change(recorded.get(n), identity.get(n))}" for n in differ]
            said = f"{path.parent.name} is another run: {'; '.join(changes)} changed since."
            found.append((len(differ), said))
    return min(found, default=(0, ""))[1]


def _question(identity: Mapping[str, Any]) -> str:
    """Digest of what is asked, without circumstances."""
    return digest({k: v for k, v in identity.items() if k not in CIRCUMSTANCES and v is not None})


@lru_cache(maxsize=1 << 16)
def _recorded_question(folder: Path, changed_ns: int, size: int) -> str:
    """`_question` of a recorded run, read once for each state of its manifest: sweeps open thousands.

    Raises UserError.
    """
    return _question(Manifest.lenient(read_manifest(folder), folder)[0].identity)


def _change(old: Any, new: Any) -> str:
    """` (transformers 5.22.0 → 5.23.0)` for two dicts of versions, else nothing."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return ""
    changed: Sequence[str] = [
        f"{k} {old.get(k)} → {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)
    ]
    short = [text for text in changed if len(text) < 60]
    return f" ({', '.join(short)})" if short else ""
