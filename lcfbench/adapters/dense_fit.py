"""Phase I of dense alignment: fit the translation to the receiver's own cache on the same text, before any loss on answers (methods.md, 6 and 10).

Ridge has a closed form: only Gram matrices and cross products are kept, whatever the number of tokens, so it takes one pass and no learning rate.
Low rank is reduced-rank regression: the directions in which the fitted values vary most.

>>> reconstruct(adapter, lambda: read_pairs(receiver, sharer, documents, adapter.config, lead=2), print)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from lcfbench.adapters.dense import CLAMP, DenseAdapter
from lcfbench.adapters.ridge import Ridge
from lcfbench.errors import UserError

STATISTICS_TOKENS = 2_000  # means and deviations are measured on so many tokens, then fixed
HELD_TOKENS = 2_000
WARMUP = 20

Stream = Callable[[], Iterator["Pairs"]]


def reconstruct(adapter: DenseAdapter, pairs: Stream, say: Callable[[str], None]) -> None:
    """Sets statistics and translation of a fresh adapter as its `reconstruction` says. `pairs()` begins a pass over the texts anew.

    `say` is told the held-out R² of keys and of values. Raises UserError where the texts share no token.
    """
    stream = pairs()
    first = _first(stream)
    mean, scale = _measure(adapter, first)
    if adapter.reconstruction == "ridge":
        done, held = _ridge(adapter, chain(first, stream), mean, scale)
    elif adapter.reconstruction == "gradient":
        done, held = _gradient(adapter, pairs)
    else:
        return
    score = r2(adapter, held)
    found = "no held-out text"
    if score is not None:
        layers = [" ".join(f"{x:.2f}" for x in row[::3]) for row in score]
        found = f"held-out R² K {score[0].mean():.3f}, V {score[1].mean():.3f}; every third layer K {layers[0]}, V {layers[1]}"
    say(f"reconstruction by {adapter.reconstruction} on {done:,} tokens: {found}.")


def r2(adapter: DenseAdapter, held: list[Pairs]) -> tuple[Tensor, Tensor] | None:
    """Explained variance of keys and of values (L,) each, over held-out tokens; None where there are none."""
    if not held:
        return None
    targets = torch.cat([p.targets for p in held], 1).float()
    with torch.no_grad():
        made = torch.cat([_translated(adapter, p.entries.float()) for p in held], 1)
    error, spread = (
        (made - targets).pow(2).sum(1),
        (targets - targets.mean(1, keepdim=True)).pow(2).sum(1),
    )  # (L, r)
    half = adapter.width_out // 2
    return tuple(
        1 - error[:, part].sum(1) / spread[:, part].sum(1) for part in (slice(0, half), slice(half, None))
    )  # type: ignore[return-value]


def _translated(adapter: DenseAdapter, entries: Tensor) -> Tensor:
    """Entries (S, T, s) → K|V flattened (L, T, r)."""
    keys, values = adapter(adapter.message(adapter.window(entries))[:, None])  # (L, 1, H, T, D)
    return torch.cat([x[:, 0].transpose(1, 2).flatten(2) for x in (keys, values)], -1)


def _part(pairs: Pairs, keep: Tensor) -> Pairs:
    return type(pairs)(pairs.entries[:, keep], pairs.targets[:, keep], pairs.held[keep])


def _first(stream: Iterator[Pairs]) -> list[Pairs]:
    """The batches statistics are measured on. Raises UserError where there is nothing to measure."""
    first, tokens = [], 0
    for pairs in stream:
        first.append(pairs)
        tokens += pairs.targets.shape[1]
        if tokens >= STATISTICS_TOKENS:
            break
    if tokens < 2:
        raise UserError(
            "the documents give both models no text to compare.",
            "Train on documents whose sharer's view has a text.",
        )
    return first


@torch.no_grad()
def _measure(adapter: DenseAdapter, first: list[Pairs]) -> tuple[Tensor, Tensor]:
    """Means and deviations of inputs and outputs into the adapter; returns those of the sharer's layers (S, 1, s)."""
    x, y = (torch.cat([getattr(p, name).float() for p in first], 1) for name in ("entries", "targets"))
    mean = x.mean(1, keepdim=True)
    # a floor on the deviation, so that nearly constant channels are not blown up
    scale = x.std(1, keepdim=True) + 1e-2 * x.abs().mean((1, 2), keepdim=True) + 1e-6
    adapter.input_mean.copy_(adapter.window(mean))
    adapter.input_scale.copy_(adapter.window(scale))
    adapter.output_mean.copy_(y.mean(1, keepdim=True))
    # one scale for all keys and one for all values: what matters to attention is measured in their own units, not channel by channel
    spread = (y - y.mean(1, keepdim=True)).unflatten(2, (2, -1)).pow(2).mean((1, 3)).sqrt()  # (L, 2)
    adapter.output_scale.copy_(
        (spread + 1e-6)[:, None, :, None].expand(-1, 1, -1, adapter.width_out // 2).flatten(2)
    )
    return mean, scale


# -- closed form ------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _ridge(
    adapter: DenseAdapter, stream: Iterable[Pairs], mean: Tensor, scale: Tensor
) -> tuple[int, list[Pairs]]:
    """Fits one ridge for every window of sharer layers that is read, and writes the weights. Returns tokens used, held-out pairs."""
    readers: dict[tuple[int, ...], list[int]] = {}  # window of sharer layers → stack entries that read it
    for i, read in enumerate(adapter.windows):
        readers.setdefault(tuple(read), []).append(i)
    fits = {
        w: Ridge(adapter.width_in, len(rows) * adapter.width_out, mean.device) for w, rows in readers.items()
    }
    tokens, held, kept = 0, [], 0
    for pairs in stream:
        if bool(pairs.held.any()) and kept < HELD_TOKENS:
            held.append(_part(pairs, pairs.held))
            kept += held[-1].targets.shape[1]
        pairs = _part(pairs, ~pairs.held)
        x = ((pairs.entries.float() - mean) / scale).clamp(-CLAMP, CLAMP)  # (S, T, s)
        y = (pairs.targets.float() - adapter.output_mean) / adapter.output_scale
        for window, rows in readers.items():
            fits[window].add(x[list(window)].transpose(0, 1).flatten(1), y[rows].transpose(0, 1).flatten(1))
        tokens += x.shape[1]
        if tokens >= adapter.ridge_tokens:
            break
    for window, rows in readers.items():
        fit, ridge = fits[window].solve(adapter.ridge_alpha), fits[window]
        for i, W in zip(rows, fit.weight.split(adapter.width_out, 1), strict=True):  # (in, out)
            if adapter.rank:
                down, up = low_rank(W.double(), ridge.moment(adapter.ridge_alpha), adapter.rank)
                adapter.down[i].copy_(down)
                adapter.up[i].copy_(up)
                W = (down @ up).float()
            else:
                adapter.weight[i].copy_(W)
            part = slice(rows.index(i) * adapter.width_out, (rows.index(i) + 1) * adapter.width_out)
            intercept = ridge.mean()[part] - (ridge.x_sum / ridge.tokens).float() @ W
            adapter.output_mean[i, 0] += adapter.output_scale[i, 0] * intercept
    return tokens, held


def low_rank(W: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-r stand-in of W (in, out) for inputs of second moment G (in, in): factors (in, r), (r, out); the code has unit variance.

    The best for the fitted values X·W, of which these are the leading principal directions (reduced-rank regression).
    """
    values, vectors = torch.linalg.eigh(W.T @ G @ W)  # ascending
    top = vectors[:, -rank:].flip(1)  # (out, ≤ r)
    size = values[-rank:].flip(0).clamp(min=1e-12).sqrt()
    down, up = W @ top / size, top.T * size[:, None]
    short = rank - top.shape[1]  # a rank above the outputs' number adds nothing
    return nn.functional.pad(down, (0, short)), nn.functional.pad(up, (0, 0, 0, short))


# -- by gradient ------------------------------------------------------------------------------------------------------------------------


def _gradient(adapter: DenseAdapter, pairs: Stream) -> tuple[int, list[Pairs]]:
    """AdamW on the squared error in standardised units. Returns tokens seen, held-out pairs."""
    parameters = [p for name, p in adapter.named_parameters() if name != "gate_logit"]
    optimiser = torch.optim.AdamW(parameters, lr=adapter.reconstruction_lr, weight_decay=0.0)
    steps, step, tokens = adapter.reconstruction_steps, 0, 0
    held: list[Pairs] = []
    first_pass = True
    while step < steps:
        before = step
        for batch in pairs():
            if first_pass and bool(batch.held.any()) and sum(p.targets.shape[1] for p in held) < HELD_TOKENS:
                held.append(_part(batch, batch.held))
            batch = _part(batch, ~batch.held)
            if not batch.targets.shape[1]:
                continue
            for group in optimiser.param_groups:
                group["lr"] = adapter.reconstruction_lr * min(
                    (step + 1) / WARMUP, max(1 - step / steps, 0.02)
                )
            with torch.enable_grad():
                error = (
                    _translated(adapter, batch.entries).float() - batch.targets.float()
                ) / adapter.output_scale
                loss = error.pow(2).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            tokens, step = tokens + batch.targets.shape[1], step + 1
            if step == steps:
                break
        first_pass = False
        if step == before:
            raise UserError("all texts are held out.", "Give more training documents.")
    optimiser.zero_grad(set_to_none=True)
    return tokens, held


@dataclass(frozen=True)
class Pairs:
    """The two models' entries of the same tokens of one text, content keys. entries: (S, T, s); targets: (L, T, r); held: (T,), True in held-out texts."""

    entries: Tensor
    targets: Tensor
    held: Tensor
