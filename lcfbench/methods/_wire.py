"""Lets messages cross to the receiver's side as bytes, where a batch names a form of them.

Each document has one message of its own: no padding is sent, and no other document of the batch changes
a byte of it. Without a form nothing is done.

>>> theirs = cache_across(batch, theirs)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.methods.base import Batch
from lcfbench.models.kv_cache import KV
from lcfbench.models.wire import pack, unpack

LATENTS = "latents"


def texts_across(batch: Batch, texts: Sequence[str]) -> list[str]:
    """Returns texts as they are read on the receiver's side, from UTF-8."""
    if batch.wire is None:
        return list(texts)
    for row, text in enumerate(texts):
        batch.packets[row] = _stored(batch, row) if batch.replays else text.encode("utf-8", "replace")
    try:
        return [batch.packets[row].decode() for row in range(len(texts))]
    except UnicodeDecodeError as error:
        what = "a message cannot be read: it is no UTF-8."
        raise UserError(what, "Its bytes were changed or cut on the way; run again.") from error


def _stored(batch: Batch, row: int) -> bytes:
    """Returns the bytes that crossed before for a row; none where nothing did."""
    return (batch.stored or {}).get(row, b"")


def latents_across(
    batch: Batch, latents: Sequence[Tensor | None], like: Tensor | None = None
) -> list[Tensor | None]:
    """Returns the latents (L, T, d) of each document as they are read; None where none are sent.

    like: has their dtype and device, where a replay may read some in the place of None.
    """
    form = batch.wire
    if form is None:
        return list(latents)
    found: list[Tensor | None] = []
    for row, x in enumerate(latents):
        new = b"" if x is None or batch.replays else pack({LATENTS: x}, form)
        data = _stored(batch, row) if batch.replays else new
        near = like if x is None else x
        if not data or near is None:
            found.append(None)
            continue
        batch.packets[row] = data
        found.append(unpack(data)[LATENTS].to(near.device, near.dtype))
    return found


def deltas_across(
    batch: Batch, notes: Sequence[str], ends: Sequence[Sequence[int]], deltas: Sequence[Tensor]
) -> list[tuple[str, list[int], Tensor]]:
    """Returns notes, characters at which their tokens end, and the tokens' vectors (l, T, d), as read.

    An empty note has no bytes.
    """
    found = []
    for row, (note, at, x) in enumerate(zip(notes, ends, deltas, strict=True)):
        stored = _stored(batch, row)
        if batch.wire is None or not (stored if batch.replays else note):
            found.append((note, list(at), x))
            continue
        data = torch.tensor(list(note.encode("utf-8", "replace")), dtype=torch.uint8)
        parts = {"note": data, "ends": torch.tensor(list(at), dtype=torch.int32), "deltas": x}
        batch.packets[row] = stored if batch.replays else pack(parts, batch.wire)
        read = unpack(batch.packets[row])
        text = bytes(read["note"].tolist()).decode()
        found.append((text, read["ends"].tolist(), read["deltas"].to(x.device, x.dtype)))
    return found


def cache_across(batch: Batch, kv: KV, layers: Sequence[int] | None = None) -> KV:
    """Returns a cache as it is read: the entries that are real and not hidden; all others are zeros.

    layers: those that are sent; None for all. Raises UserError for a cache that holds more than entries.
    """
    form = batch.wire
    if form is None:
        return kv
    weighed = kv.hidden is not None and kv.hidden.is_floating_point()
    if weighed or kv.tokens is not None or kv.present is not kv.mask:
        raise UserError("this cache is no list of entries: no bytes can be made of it.", "Leave out --wire.")
    keys, values = torch.zeros_like(kv.keys), torch.zeros_like(kv.values)
    mask, positions = torch.zeros_like(kv.mask), torch.zeros_like(kv.positions)
    hidden = None if kv.hidden is None else kv.mask.bool().expand(len(kv.keys), -1, -1).clone()
    for row in range(kv.rows):
        data = _stored(batch, row) if batch.replays else pack(_entries(kv, row, layers), form)
        batch.packets[row] = data
        _put(unpack(data), kv, row, (keys, values, mask, positions, hidden))
    return replace(kv, keys=keys, values=values, mask=mask, positions=positions, hidden=hidden, states=None)


def _entries(kv: KV, row: int, layers: Sequence[int] | None) -> dict[str, Tensor]:
    """Returns the entries of a document, layers with equally many of one shape together.

    `keys`, `values` (l, T, H·D); with several groups `layers` (l,) too. `at` (T,): which of the
    document's entries they are, where they are not its first. `length`: entries of the document, where no
    group has all. `positions` (N,): where they are not 0, 1, 2 and so on.
    """
    real = kv.mask[row].nonzero()[:, 0]
    groups: dict[tuple[tuple[int, ...], tuple[int, int, int]], list[int]] = {}
    for layer in range(len(kv.keys)) if layers is None else sorted(set(layers)):
        shown = real if kv.hidden is None else real[~kv.hidden[layer, row, real]]
        groups.setdefault((tuple(shown.tolist()), kv.shapes[layer]), []).append(layer)
    parts: dict[str, Tensor] = {}
    place = {column: k for k, column in enumerate(real.tolist())}
    whole = layers is None and len(groups) == 1
    for number, ((columns, (heads, k, v)), some) in enumerate(groups.items()):
        end = f".{number}" if len(groups) > 1 else ""
        index = torch.tensor(columns, dtype=torch.long, device=kv.keys.device)
        for name, x, size in (("keys", kv.keys, k), ("values", kv.values, v)):
            found = x[some, row, :heads, :, :size].index_select(2, index)
            parts[name + end] = found.transpose(1, 2).flatten(2)
        if not whole:
            parts["layers" + end] = torch.tensor(some, dtype=torch.int16)
        which = [place[column] for column in columns]
        if which != list(range(len(which))):
            parts["at" + end] = torch.tensor(which, dtype=torch.int32)
    if max((len(columns) for columns, _ in groups), default=0) < len(real):
        parts["length"] = torch.tensor([len(real)], dtype=torch.int32)
    own = kv.positions[row, real].cpu()
    if own.tolist() != list(range(len(own))):
        parts["positions"] = own.to(torch.int32)
    return parts


def _put(
    parts: dict[str, Tensor], kv: KV, row: int, into: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
) -> None:
    """Writes a document's entries, as read, behind the padding of its row."""
    keys, values, mask, positions, hidden = into
    groups = [name.removeprefix("keys") for name in parts if name.startswith("keys")]
    length = int(parts["length"]) if "length" in parts else max(parts[f"keys{g}"].shape[1] for g in groups)
    first, device = kv.length - length, keys.device
    mask[row, first:] = 1
    own = parts["positions"] if "positions" in parts else torch.arange(length)
    positions[row, first:] = own.to(positions.device, positions.dtype)
    for g in groups:
        some = parts[f"layers{g}"].long() if f"layers{g}" in parts else torch.arange(len(kv.keys))
        count = parts[f"keys{g}"].shape[1]
        columns = first + (parts[f"at{g}"].long() if f"at{g}" in parts else torch.arange(count))
        heads, k, v = kv.shapes[int(some[0])]
        for name, x, size in (("keys", keys, k), ("values", values, v)):
            found = parts[name + g].to(device, x.dtype).view(len(some), count, heads, size)
            x[some[:, None].to(device), row, :, columns.to(device)] = _filled(found, x.shape[2], x.shape[4])
        if hidden is not None:
            hidden[some[:, None].to(device), row, columns.to(device)] = False


def _filled(x: Tensor, heads: int, size: int) -> Tensor:
    """Returns entries (l, T, h, d) with zeros up to `heads` and `size`."""
    return torch.nn.functional.pad(x, (0, size - x.shape[3], 0, heads - x.shape[2]))
