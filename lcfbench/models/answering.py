"""Answers from a state, batched: ranks choices, writes text, computes the training loss.

>>> ranked = rank(lm.open(state), [[ids_of_a, ids_of_b]])
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.models.finite import FLAT, NotFiniteError, check_decided
from lcfbench.models.grouping import forward_tokens, groups
from lcfbench.models.padding import pad_right
from lcfbench.models.protocol import Opened, State, Step

# of fp32 logits at once while ranking, where a vocabulary of 262,144 takes 1 MB a token: what a core of a CPU
# keeps at hand is passed over four times as fast as what it fetches from memory
LOGITS_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
STRETCH = 512  # logits among which the largest is looked for one by one
TAIL = 16  # tokens that are decoded at least to look for a stop string

Writing = Generator[Step, Tensor, list[list[int]]]
Choices = Sequence[Sequence[Sequence[int]]]  # token ids of each choice of each document
Ranked = list[list[tuple[float, bool]]]  # of each: log-likelihood, and whether greedy decoding writes it


def rank(opened: Opened, choices: Choices) -> Ranked:
    """Returns each choice's log-likelihood, and whether greedy decoding would write it.

    First tokens come from the logits at hand; only longer choices are run, on the prompt's cache,
    those of near length together.
    """
    device = opened.logits.device
    rows = torch.tensor([b for b, row in enumerate(choices) for _ in row], device=device)
    gold = torch.tensor([ids[0] for row in choices for ids in row], device=device)
    flat = iter(judged(opened.logits, gold, rows, [1] * len(gold), opened.lm.name))
    out = [[next(flat) for _ in row] for row in choices]
    longer = sorted(
        ((b, c) for b, row in enumerate(choices) for c, ids in enumerate(row) if len(ids) > 1),
        key=lambda at: len(choices[at[0]][at[1]]),
    )
    for begin, end in groups([len(choices[b][c]) - 1 for b, c in longer], forward_tokens(device)):
        some = longer[begin:end]
        tails = rank_tails(opened, [b for b, _ in some], [choices[b][c] for b, c in some])
        for (b, c), (ll, greedy) in zip(some, tails, strict=True):
            out[b][c] = out[b][c][0] + ll, out[b][c][1] and greedy
    return checked(out, opened.lm.name)


def checked(ranked: Ranked, name: str) -> Ranked:
    """Returns what a model of this name ranked. Raises NotFiniteError for what is not finite."""
    for row in ranked:
        for number, (ll, _) in enumerate(row, 1):
            if not math.isfinite(ll):
                raise NotFiniteError(f"{name}'s log-likelihood of choice {number} is {ll}")
    return ranked


def rank_tails(opened: Opened, rows: list[int], choices: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Returns what the tokens after the first add, for choices of the documents `rows`."""
    lm, device = opened.lm, opened.logits.device
    ids, mask = pad_right([c[:-1] for c in choices], lm.pad_id, device)
    row = torch.tensor(rows, device=device)
    positions = opened.next_position[row][:, None] + torch.arange(ids.shape[1], device=device)
    # logits of real tokens only: padding has none to give, and a vocabulary is wide
    row_at, column = mask.nonzero(as_tuple=True)
    logits, _ = lm.forward(opened.kv.rows_at(row), ids, mask, positions, (row_at, column))
    gold = torch.tensor([i for c in choices for i in c[1:]], device=device)
    every = torch.arange(len(gold), device=device)
    return judged(logits, gold, every, [len(c) - 1 for c in choices], lm.name)


def judged(
    logits: Tensor, gold: Tensor, rows: Tensor, counts: list[int], name: str
) -> list[tuple[float, bool]]:
    """Returns log-likelihood and greediness of runs of tokens: `counts[i]` tokens each, in order.

    gold: (n,) tokens, each judged by row `rows[i]` of the logits (m, V), of any dtype. A part of the rows
    is passed over in fp32 at a time: no copy of all logits is made. name: the model's. Raises
    NotFiniteError for logits that can rank nothing.
    """
    vocabulary = logits.shape[-1]
    at_once = LOGITS_BYTES.get(logits.device.type, LOGITS_BYTES["cuda"])
    if logits.device.type == "cpu":
        at_once *= torch.get_num_threads()
    parts = (part.float() for part in logits.split(max(at_once // (4 * vocabulary), 1)))
    norm, best, top, low = (torch.cat(each) for each in zip(*map(_passed, parts), strict=True))
    if vocabulary > 1:
        check_decided(low, top, name)
    nll, hits = norm[rows] - logits[rows, gold].float(), best[rows] == gold
    if all(n == 1 for n in counts):
        return list(zip((-nll).tolist(), hits.tolist(), strict=True))
    both = zip(nll.split(counts), hits.split(counts), strict=True)
    return [(-float(ll.sum()), bool(hit.all())) for ll, hit in both]


def _passed(part: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row: log of the summed exponentials, place of the largest number, the largest, the smallest."""
    return part.logsumexp(-1), *largest(part), part.amin(-1)  # aminmax by row is slow


def largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the place and the number of each row's (B, V) largest logit; the first of equal ones.

    As `argmax` and `amax`. On a CPU `argmax` looks at one number after the other; here it does so in the
    stretch of the largest alone, in a tenth of the time.
    """
    vocabulary = logits.shape[-1]
    if logits.device.type != "cpu" or vocabulary < 2 * STRETCH:
        return logits.argmax(-1), logits.amax(-1)
    whole = vocabulary // STRETCH
    tops = logits[:, : whole * STRETCH].unflatten(1, (whole, STRETCH)).amax(-1)
    if vocabulary % STRETCH:
        tops = torch.cat([tops, logits[:, whole * STRETCH :].amax(-1, keepdim=True)], 1)
    begins = tops.argmax(1, keepdim=True) * STRETCH
    columns = (begins + torch.arange(STRETCH)).clamp_(max=vocabulary - 1)
    return begins[:, 0] + logits.gather(1, columns).argmax(1), tops.amax(1)


def decode(opened: Opened, max_new_tokens: int, until: Sequence[str] = ()) -> tuple[list[str], list[int]]:
    """Writes greedily. Returns each row's text, cut before the first `until`, and its token count."""
    written = write(opened, max_new_tokens, until)
    texts = [cut(opened.lm.tokenizer.decode(ids, skip_special_tokens=True), until) for ids in written]
    return texts, [len(ids) for ids in written]


def write(opened: Opened, max_new_tokens: int, until: Sequence[str] = ()) -> list[list[int]]:
    """Writes greedily, up to the first `until`. Returns the tokens of each row.

    Raises NotFiniteError where the logits of a row cannot choose a token.
    """
    return write_together([(opened, max_new_tokens, until)])[0]


def write_together(asked: Sequence[tuple[Opened, int, Sequence[str]]]) -> list[list[list[int]]]:
    """Returns what `write` does for each of several batches of one model, of which each step is one."""
    found: dict[int, list[list[int]]] = {}
    running: dict[int, tuple[Writing, Step]] = {}

    def goes_on(number: int, writing: Writing, logits: Tensor | None) -> None:
        try:
            running[number] = writing, writing.send(logits)  # type: ignore[arg-type]
        except StopIteration as end:
            running.pop(number, None)
            found[number] = end.value

    for number, each in enumerate(asked):
        goes_on(number, writing(*each), None)
    while running:
        now = [(number, *both) for number, both in running.items()]
        every = asked[0][0].lm.steps([step for *_, step in now])
        for (number, some, _), logits in zip(now, every, strict=True):
            goes_on(number, some, logits)
    return [found[number] for number in range(len(asked))]


def writing(opened: Opened, max_new_tokens: int, until: Sequence[str]) -> Writing:
    """Yields each step and takes its logits (B, V); returns the tokens of each row.

    Rows that have ended are left out once they are a quarter of the rows that run. Written tokens attend
    silent entries too, as in C2C's `generate`.
    """
    lm, stops = opened.lm, opened.lm.stop_ids()
    if len(parts := lm.decoded_together(opened)) > 1:
        found: dict[int, list[int]] = {}
        for places, some in parts:
            texts = yield from writing(some, max_new_tokens, until)
            found |= zip(places, texts, strict=True)
        return [found[row] for row in sorted(found)]
    last = max([TAIL, *(len(u.encode()) for u in until)])
    written: list[list[int]] = [[] for _ in range(opened.logits.shape[0])]
    rows = list(range(len(written)))  # those that still run
    alive = set(rows)
    kv, position, logits = opened.kv, opened.next_position, opened.logits
    cache, mask, hidden = lm.decoding(kv), kv.present, kv.hidden
    for step in range(max_new_tokens):
        ids, top = largest(logits)
        ends = torch.stack([logits.amin(-1), top], 1).tolist()
        for b, token, (least, most) in zip(rows, ids.tolist(), ends, strict=True):
            if b not in alive:
                continue
            if not math.isfinite(most):
                raise NotFiniteError(f"{lm.name}'s largest logit is {most} at token {step + 1} of its text")
            if most - least < FLAT and logits.shape[-1] > 1:
                raise NotFiniteError(f"all of {lm.name}'s logits are equal at token {step + 1} of its text")
            if token in stops:
                alive.discard(b)
                continue
            written[b].append(token)
            # decoding the tail alone is enough to see a stop string, and keeps the cost linear
            tail = lm.tokenizer.decode(written[b][-last:], skip_special_tokens=False) if until else ""
            if any(u in tail for u in until):
                alive.discard(b)
        if not alive or step == max_new_tokens - 1:
            break
        if 4 * len(alive) <= 3 * len(rows):
            keep = [i for i, b in enumerate(rows) if b in alive]
            index = torch.tensor(keep, device=ids.device)
            rows, ids, position, mask = [rows[i] for i in keep], ids[index], position[index], mask[index]
            hidden = hidden[:, index] if hidden is not None else None
            lm.keep_rows(cache, index)
        mask = F.pad(mask, (0, 1), value=1)
        logits = yield Step(cache, ids, mask, position, hidden)
        position = position + 1
    return written


def answer_loss(
    state: State, targets: list[list[int]], supervised: list[list[bool]], mean: str = "document"
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of the supervised target tokens, and the share predicted right.

    mean: `document`, over the supervised tokens of a document, then over documents: a long answer
    weighs no more than a short one; `token`, over all supervised tokens.
    """
    nll, rows, hits = supervised_losses(state, targets, supervised)
    right = hits.sum() / max(len(hits), 1)
    if mean == "token":
        return nll.sum() / max(len(hits), 1), right
    count = torch.tensor([max(sum(row), 1) for row in supervised], device=nll.device)
    return (nll / count[rows]).sum() / len(targets), right


def supervised_losses(
    state: State, targets: list[list[int]], supervised: list[list[bool]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns of each supervised token (n,): cross-entropy in nats, its row, whether it is predicted."""
    lm, device = state.lm, state.kv.keys.device
    used = state.used.bool()
    left = [row[keep].tolist() for row, keep in zip(state.ids, used, strict=True)]
    ids, mask = pad_right([r + t[:-1] for r, t in zip(left, targets, strict=True)], lm.pad_id, device)
    begin = state.positions[:, -1:] + 1 - used.sum(1, keepdim=True)
    positions = begin + torch.arange(ids.shape[1], device=device)
    if state.silent is not None:
        for b, (row, keep) in enumerate(zip(left, used, strict=True)):
            mask[b, : len(row)] = state.mask[b][keep]
    # only supervised tokens are predicted: row, column where each is predicted, the right token
    at = [
        (b, len(left[b]) - 1 + t, token)
        for b, row in enumerate(targets)
        for t, token in enumerate(row)
        if supervised[b][t]
    ]
    rows, columns, gold = torch.tensor(at, dtype=torch.long, device=device).view(-1, 3).unbind(1)
    logits, _ = lm.forward(state.kv, ids, mask, positions, (rows, columns))
    return F.cross_entropy(logits, gold, reduction="none"), rows, logits.argmax(-1) == gold


def cut(text: str, until: Sequence[str]) -> str:
    """Returns `text` up to the first of the stop strings."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text
