"""Messages that a run keeps beside its rows, as the bytes that crossed. No torch is needed to look at them.

`<out>/<run_id>/messages/<doc_hash>.json` says what a document's message is; `<doc_hash>.safetensors` (text:
`.txt`) beside it holds the bytes. A document whose choices have prompts of their own has several:
`<doc_hash>.0.safetensors`, `<doc_hash>.1.safetensors`, … With several sharers each has its own:
`<doc_hash>.sharer1.safetensors`, `<doc_hash>.sharer2.safetensors`, …

>>> read_message(folder, doc_hash).packets[0][:8]                                # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.files import write, write_json, writing
from lcfbench.results.schema import check_regular

MESSAGES = "messages"  # the folder in a run's folder
HASH = re.compile(r"[0-9a-zA-Z_-]{1,128}")
LARGEST = 1 << 24  # bytes of what is said about a message


class DamagedMessageError(UserError):
    """A message whose bytes are not those that crossed, or cannot be read."""


@dataclass(frozen=True)
class KeptMessage:
    """A document's message: the bytes that crossed, one entry a prompt, and what is known of them.

    about: doc_id, doc_hash, message_from (a document's hash), form, text (whether it is UTF-8), and
    `spans`, where some tokens of the sharer's prompt were chosen: [start, stop) and their text, a list for
    each prompt. With several sharers `sharers` is their number, packets and spans are those of the first,
    then those of the second, and so on, and `each_message_from` names a document for each.
    """

    packets: tuple[bytes, ...]
    about: Mapping[str, Any]

    @property
    def is_text(self) -> bool:
        return bool(self.about.get("text"))

    @property
    def sharers(self) -> int:
        """The number of sharers whose messages these are."""
        return int(self.about.get("sharers", 1))

    def of_each(self) -> list[KeptMessage]:
        """Returns the message of each sharer, in their order."""
        count, parts = self.sharers, []
        each, senders = len(self.packets) // count, self.about.get("each_message_from")
        for k in range(count):
            at = slice(k * each, (k + 1) * each)
            about = {x: v for x, v in self.about.items() if x not in ("sharers", "each_message_from")}
            if "spans" in about:
                about["spans"] = about["spans"][at]
            if senders:
                about["message_from"] = senders[k]
            parts.append(KeptMessage(self.packets[at], about))
        return parts


def keep_message(run: Path, message: KeptMessage) -> None:
    """Stores a document's message in the folder of its run: bytes first, then what is said about them.

    Raises UserError where the disk is full or read-only; LostError where another process took over.
    """
    name, folder = str(message.about["doc_hash"]), run / MESSAGES
    files = names_of(name, len(message.packets), message.is_text, message.sharers)
    told = [
        {"file": file, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for file, data in zip(files, message.packets, strict=True)
    ]
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for file, data in zip(files, message.packets, strict=True):
            write(folder / file, data)
        write_json(folder / f"{name}.json", {**message.about, "packets": told})


def names_of(name: str, count: int, text: bool, sharers: int = 1) -> list[str]:
    """The names of the files of a document's message, those of several sharers one after another."""
    if sharers > 1:
        parts = (names_of(f"{name}.sharer{k + 1}", count // sharers, text) for k in range(sharers))
        return [file for part in parts for file in part]
    end = "txt" if text else "safetensors"
    return [f"{name}.{end}"] if count == 1 else [f"{name}.{i}.{end}" for i in range(count)]


def kept_names(run: Path) -> set[str]:
    """Hashes of the documents whose messages are kept in a run's folder."""
    try:
        return {path.stem for path in (run / MESSAGES).glob("*.json") if not path.name.startswith(".")}
    except OSError:
        return set()


def about_message(run: Path, name: str) -> dict[str, Any]:
    """Returns what is said about a document's message.

    Raises UserError where none is kept, DamagedMessageError where that cannot be read.
    """
    path = run / MESSAGES / f"{name}.json"
    if not os.path.lexists(path):
        step = "Run it with --keep-messages; a run that is complete needs --fresh too."
        raise UserError(f"no message of document {name[:12]} is kept in {run}.", step)
    try:
        check_regular(path)
        if path.stat().st_size > LARGEST:
            raise ValueError("far too large")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.get("doc_hash") != name:
            raise ValueError("it is about another document")
        for each in found["packets"]:
            if Path(each["file"]).name != each["file"] or not isinstance(each["bytes"], int):
                raise ValueError("it names a file that is not beside it")
            str(each["sha256"])
        sharers = found.get("sharers", 1)
        if type(sharers) is not int or sharers < 1 or not found["packets"] or len(found["packets"]) % sharers:
            raise ValueError("its files are not those of its sharers")
        _check_told(found, sharers)
        return found
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _check_told(about: Mapping[str, Any], sharers: int) -> None:
    """Raises ValueError, LookupError or TypeError where what is said of a message is of another shape."""
    texts = [about[name] for name in ("message_from", "mode", "control")]
    texts += [about.get("wire", ""), *about.get("each_message_from", ())]
    spans = [span for prompt in about.get("spans", ()) for span in prompt]
    numbers = [span[name] for span in spans for name in ("start", "stop")]
    if not all(isinstance(text, str) for text in [*texts, *(span["text"] for span in spans)]):
        raise ValueError("it names no document, method or control")
    if not all(type(number) is int for number in numbers):
        raise ValueError("its spans have no places")
    if "spans" in about and len(about["spans"]) != len(about["packets"]):
        raise ValueError("its spans are not those of its prompts")
    if "each_message_from" in about and len(about["each_message_from"]) != sharers:
        raise ValueError("its files are not those of its sharers")


def read_message(run: Path, name: str) -> KeptMessage:
    """Returns a document's message. Raises DamagedMessageError for bytes that are not those that crossed."""
    about = about_message(run, name)
    packets = []
    for each in about["packets"]:
        path = run / MESSAGES / each["file"]
        try:
            check_regular(path)
            if path.stat().st_size != each["bytes"]:
                raise ValueError(f"{path.stat().st_size:,} bytes, {each['bytes']:,} crossed")
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != each["sha256"]:
                raise ValueError("its bytes are not those that crossed")
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        packets.append(data)
    return KeptMessage(tuple(packets), about)


def tensors_of(data: bytes) -> dict[str, tuple[str, list[int]]]:
    """Returns the dtype and the shape of each tensor of a message, from the header alone.

    Raises ValueError for bytes that are no file of safetensors.
    """
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except RecursionError as error:
        raise ValueError("no header") from error
    if not isinstance(header, dict):
        raise ValueError("no header")
    return {
        name: (str(each["dtype"]), [int(n) for n in each["shape"]])
        for name, each in header.items()
        if name != "__metadata__"
    }


def spans_of(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the spans [start, stop) of places in ascending order."""
    start = stop = None
    for place in places:
        if place != stop:
            if start is not None and stop is not None:
                yield start, stop
            start = place
        stop = place + 1
    if start is not None and stop is not None:
        yield start, stop


def copy_message(source: Path, run: Path, name: str) -> None:
    """Copies a document's message from another folder of the run's rows, where one is kept there.

    Raises UserError where it is damaged or cannot be written.
    """
    if source != run and name in kept_names(source):
        keep_message(run, read_message(source, name))


def forget_messages(run: Path) -> None:
    """Removes what is kept of a run that starts over."""
    with suppress(FileNotFoundError):
        shutil.rmtree(run / MESSAGES)


def _damaged(path: Path, error: Exception) -> DamagedMessageError:
    why = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
    step = "Run it again with --fresh --keep-messages."
    return DamagedMessageError(f"the message {path} is damaged ({why}).", step)
