"""Fits a dense translation to the receiver's own cache of the same text, before training.

This is phase I of dense alignment (arXiv 2606.13594). Ridge regression has a closed form: only Gram
matrices and cross products are kept, so one pass is enough. Low rank is reduced-rank regression:
the directions in which the fitted values vary most.

>>> reconstruct(adapter, lambda: read_pairs(receiver, sharer, documents, adapter.config, 2), print)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from lcfbench.adapters.dense import CLAMP, DenseAdapter
from lcfbench.adapters.ridge import Held, Ridge
from lcfbench.errors import UserError

STATISTICS_TOKENS = 2_000  # means and deviations are measured on so many tokens, then fixed
HELD_TOKENS = 2_000
WARMUP = 20

Stream = Callable[[], Iterator["Pairs"]]


def reconstruct(adapter: DenseAdapter, pairs: Stream, say: Callable[[str], None]) -> None:
    """Sets statistics and translation of a fresh adapter by its `reconstruction` option.

    pairs: starts a new pass over the texts. say: receives the held-out R² of keys and of values.
    Raises UserError where the texts share no token.
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
    if not all(bool(p.isfinite().all()) for p in adapter.state_dict().values()):
        raise UserError(
            f"reconstruction by {adapter.reconstruction} gives weights that are not finite.",
            "Lower the adapter's option reconstruction_lr, or give it more documents.",
        )
    score = r2(adapter, held)
    found = "no held-out text"
    if score is not None:
        keys, values = (" ".join(f"{x:.2f}" for x in row[::3]) for row in score)
        found = f"held-out R² K {score[0].mean():.3f}, V {score[1].mean():.3f}; "
        found += f"every third layer K {keys}, V {values}"
    say(f"reconstruction by {adapter.reconstruction} on {done:,} tokens: {found}.")


def r2(adapter: DenseAdapter, held: list[Pairs]) -> tuple[Tensor, Tensor] | None:
    """Returns the explained variance of held-out keys and of values, (L,); None without tokens."""
    if not held:
        return None
    layers, _, width = held[0].targets.shape
    total = Held(layers * width, held[0].targets.device)
    with torch.no_grad():
        for p in held:
            made, true = _translated(adapter, p.entries.float()), p.targets.float()
            total.add(made.transpose(0, 1).flatten(1), true.transpose(0, 1).flatten(1))
    found = total.r2(2 * layers).view(layers, 2)
    return found[:, 0], found[:, 1]


def _translated(adapter: DenseAdapter, entries: Tensor) -> Tensor:
    """Translates entries (S, T, s) to K|V flattened (L, T, r)."""
    keys, values = adapter(adapter.message(adapter.window(entries))[:, None])  # (L, 1, H, T, D)
    return torch.cat([x[:, 0].transpose(1, 2).flatten(2) for x in (keys, values)], -1)


def _part(pairs: Pairs, keep: Tensor) -> Pairs:
    return type(pairs)(pairs.entries[:, keep], pairs.targets[:, keep], pairs.held[keep])


def _first(stream: Iterator[Pairs]) -> list[Pairs]:
    """Returns the batches for the statistics. Raises UserError where there are no tokens."""
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
    """Sets the adapter's statistics. Returns mean and deviation of sharer layers, (S, 1, s)."""
    x, y = (torch.cat([getattr(p, name).float() for p in first], 1) for name in ("entries", "targets"))
    mean = x.mean(1, keepdim=True)
    # a floor on the deviation, so that nearly constant channels are not blown up
    scale = x.std(1, keepdim=True) + 1e-2 * x.abs().mean((1, 2), keepdim=True) + 1e-6
    adapter.input_mean.copy_(adapter.window(mean))
    adapter.input_scale.copy_(adapter.window(scale))
    adapter.output_mean.copy_(y.mean(1, keepdim=True))
    # one scale for all keys and one for all values: attention compares channels in their own units
    spread = (y - y.mean(1, keepdim=True)).unflatten(2, (2, -1)).pow(2).mean((1, 3)).sqrt()  # (L, 2)
    wide = (spread + 1e-6)[:, None, :, None].expand(-1, 1, -1, adapter.width_out // 2)
    adapter.output_scale.copy_(wide.flatten(2))
    return mean, scale


@torch.no_grad()
def _ridge(
    adapter: DenseAdapter, stream: Iterable[Pairs], mean: Tensor, scale: Tensor
) -> tuple[int, list[Pairs]]:
    """Fits one ridge for every window of sharer layers and sets the weights.

    Returns the number of tokens and the held-out pairs.
    """
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
            mean_out = ridge.mean().split(adapter.width_out)[rows.index(i)]
            intercept = mean_out - (ridge.x_sum / ridge.tokens).float() @ W
            adapter.output_mean[i, 0] += adapter.output_scale[i, 0] * intercept
    return tokens, held


def low_rank(W: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns factors (in, r), (r, out) that approximate W best for inputs of moment G (in, in).

    They hold the leading principal directions of the fitted values X·W (reduced-rank regression);
    the code has unit variance.
    """
    values, vectors = torch.linalg.eigh(W.T @ G @ W)  # ascending
    top = vectors[:, -rank:].flip(1)  # (out, ≤ r)
    size = values[-rank:].flip(0).clamp(min=1e-12).sqrt()
    down, up = W @ top / size, top.T * size[:, None]
    short = rank - top.shape[1]  # a rank above the outputs' number adds nothing
    return nn.functional.pad(down, (0, short)), nn.functional.pad(up, (0, 0, 0, short))


def _gradient(adapter: DenseAdapter, pairs: Stream) -> tuple[int, list[Pairs]]:
    """Fits by AdamW on the squared error in standardised units.

    Returns the number of tokens and the held-out pairs.
    """
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
                error = _translated(adapter, batch.entries).float() - batch.targets.float()
                loss = (error / adapter.output_scale).pow(2).mean()
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
    """Entries of the same tokens in both models, with content keys.

    entries: the sharer's (S, T, s). targets: the receiver's (L, T, r). held: (T,), held-out tokens.
    """

    entries: Tensor
    targets: Tensor
    held: Tensor
