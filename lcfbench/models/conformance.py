"""Checks that a loaded model computes here what transformers computes with it, in seconds.

    from lcfbench.models.conformance import conformance
    record = conformance(lm)
    [check.name for check in record.checks if not check.ok], record.missing

Everything above reads in batches, continues caches, edits them and turns keys back to their content.
A model whose position embedding, mask or cache does not allow that would give wrong numbers
silently. The reference of each check is the plainest use of the model: one row, no padding, no
cache. The first way of reading that agrees with it is taken; the rest of the checks say what the
model's cache allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from lcfbench.models import activations
from lcfbench.models.activations import Edits
from lcfbench.models.answering import rank
from lcfbench.models.capabilities import CAPABILITIES, Capabilities
from lcfbench.models.choice_tree import branch
from lcfbench.models.kv_cache import KV
from lcfbench.models.latent import lacking
from lcfbench.models.layout import READINGS, Reading, layer_count, layers_named
from lcfbench.models.memory import DeviceError, device_named, ran_out
from lcfbench.models.padding import pad_left, pad_right
from lcfbench.models.protocol import State

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

TEXT = (
    "The river runs past the old mill, and in spring the water comes up to the garden wall. A boat lies "
    "on the bank; its owner, a painter from the next town, repairs it every year before the first of May. "
)
LENGTHS = (3, 8, 14)  # tokens of the rows that are read
LONGEST = 256  # one more row goes beyond the shortest sliding window, where that is no longer than this
# root mean square of the difference, as a share of the spread of the values: at the worst token in
# float32, where rounding is far smaller; over all tokens else
TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
LEAST = 0.05  # in half precision; the two kernels of attention differ by this share at the most by rounding
NOISE = 3.0  # a model whose two equal rows differ by rounding may differ so many times as much elsewhere
FINITE = "logits are finite"
CAUSAL = "no token is changed by those after it"
EAGER = "the chosen attention = eager attention"
BATCH = "a batch = each row alone"
REST = "a beginning, then the rest = the whole, at every token"
STEP = "one token more, on the cache = the whole"
MASKS = "choices behind one another = each alone"
SAME = "a cache with zeros added = untouched"
FELT = "a change of any layer's entries changes the answer"
HIDDEN = "masked entries in front = untouched"
FRONT = "entries in front change the answer"
AGAIN = "keys un-rotated and rotated again = the keys"
EMBEDDED = "a text read as embeddings = as tokens"
READ_BACK = "hidden states that are put back change nothing"
STATES = "other hidden states change the answer"
PLACE = "content keys of a text = those of it further on"
Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Check:
    """One check. difference: of the two sides, as `TOLERANCE` counts it; None where nothing is compared."""

    name: str
    ok: bool
    difference: float | None
    detail: str = ""

    def record(self) -> dict[str, Any]:
        """The check as JSON values."""
        return asdict(self)


class Conformance(BaseModel):
    """What the checks of a model found. All of it is JSON.

    reading: the way of reading that was taken, see `lcfbench.models.unpadded`. layers: what the layers
    of the cache keep, counted from its tensors. token_bytes: of one token in the cache. state_bytes: of
    the recurrent states of one text, however long. missing: reasons by capability. masks: why its layers
    take no masks of their own; choices are then ranked one by one. steady: tokens of the longest text
    whose rotary frequencies do not depend on its length; None where any length is. joins: whether rows
    run side by side, see `models.ragged`; None where nobody has asked yet.
    """

    model_config = ConfigDict(frozen=True)

    reading: Reading
    checks: tuple[Check, ...]
    layers: tuple[str, ...]
    token_bytes: int
    state_bytes: int
    missing: dict[str, str]
    masks: str = ""
    steady: int | None = None
    joins: bool | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self.missing)

    @property
    def text_checks(self) -> list[Check]:
        """The checks of `text`: what every method stands on."""
        return [check for check in self.checks if check.name in (FINITE, CAUSAL, EAGER, BATCH, REST, STEP)]


def conformance(lm: CausalLM, rows: Sequence[Sequence[int]] | None = None) -> Conformance:
    """Runs every check on a model, which from then on reads in the first way that agrees with it.

    rows: token ids to read, of several lengths; without it, a text's. A check that raises has failed,
    and its `detail` is the error.
    """
    read = [list(row) for row in rows] if rows is not None else sample_rows(lm)
    with torch.inference_mode(), lm.shared.apart():
        checking, error = attempted(lambda: Checking(lm, read))
        if checking is not None:
            return checking.record()
    return Conformance(
        reading=lm.reading,
        checks=(Check(FINITE, False, None, error),),
        layers=tuple(described(lm)),
        token_bytes=0,
        state_bytes=0,
        missing=dict.fromkeys(CAPABILITIES, error),
    )


def sample_rows(lm: CausalLM, longest: int = LONGEST) -> list[list[int]]:
    """Token ids of a fixed text, cut to several lengths of at most `longest`."""
    windows = [w for w in lm.windows if w]
    more = [min(windows) + 9] if windows and min(windows) + 9 <= longest else []
    lengths = [n for n in (*LENGTHS, *more) if n <= (lm.max_positions or n)]
    ids: list[int] = lm.tokenizer(TEXT * (1 + max(lengths) // 20)).input_ids
    return [ids[:n] for n in lengths]


class Checking:
    """The checks of one model. alone: logits (N, V) of each row that is read alone, the reference."""

    def __init__(self, lm: CausalLM, rows: list[list[int]]) -> None:
        self.lm, self.rows = lm, rows
        self.alone = [plain(lm, row) for row in rows]
        self.last = torch.stack([logits[-1] for logits in self.alone])
        self.longest = max(rows, key=len)
        self.tolerance = TOLERANCE.get(lm.dtype, TOLERANCE[torch.bfloat16])
        self.noise = 0.0
        if lm.dtype != torch.float32:  # two rows of a batch may take other ways through the experts
            twice = lm.model(input_ids=torch.tensor([self.longest] * 2, device=lm.device), use_cache=False)
            alone = self.alone[rows.index(self.longest)]
            noise = difference(twice.logits[1].float(), alone, whole=True)
            self.noise = noise if math.isfinite(noise) else 0.0
            self.tolerance = max(self.tolerance, NOISE * self.noise)

    def record(self) -> Conformance:
        lm, missing = self.lm, dict[str, str]()
        checks = [self.finite(), self.compared(CAUSAL, self.causal), self.compared(EAGER, self.eager)]
        if lm.dtype != torch.float32 and (rounding := checks[-1].difference):
            # what rounding does to this model is known now; a wrong mask or place does far more
            self.tolerance = min(self.tolerance, max(LEAST, NOISE * max(rounding, self.noise)))
        read, untrusted = self.reading()
        checks += read
        if broken := [check for check in checks if not check.ok]:
            missing["text"] = told(broken[0])
        masks = ""
        if lm.takes_layer_masks and not broken:
            checks.append(self.compared(MASKS, self.masked))
            masks = "" if checks[-1].ok else told(checks[-1])
        if lm.reading == "whole":
            why = untrusted or lm.layout.reason
            missing |= dict.fromkeys(CAPABILITIES[1:], why)
        else:
            groups = {
                "edit": [self.compared(SAME, self.same), self.felt()],
                "prefix": [self.compared(HIDDEN, self.hidden), self.front()],
                "rotate": self.turned(),
                "latent": [self.embedded()],
                "activations": self.between_layers(),
            }
            for name, found in groups.items():
                checks += found
                if broken := [check for check in found if not check.ok]:
                    missing[name] = told(broken[0])
            if lm.layout.recurrent:
                missing["handover"] = f"{layers_named(lm.layout.recurrent)} keep a recurrent state"
            elif "prefix" in missing:
                missing["handover"] = missing["prefix"]
        size, g = lm.dtype.itemsize, lm.layout.geometry
        return Conformance(
            reading=lm.reading,
            checks=tuple(checks),
            layers=tuple(described(lm)),
            token_bytes=0 if g is None else g.token_numbers * size,
            state_bytes=self.state_bytes(),
            missing=missing,
            masks=masks,
            steady=None if "rotate" in missing else lm.rotary.steady,
        )

    # -- text -------------------------------------------------------------------------------------

    def reading(self) -> tuple[list[Check], str]:
        """Takes the first way of reading that agrees with the plain model.

        Returns its checks, and the reason why the ways before it were not taken.
        """
        why = ""
        for reading in READINGS[READINGS.index(self.lm.first_reading) :]:
            if reading == "steps" and not self.lm.layout.recurrent:
                continue
            self.lm.read_as(reading)
            checks = [
                self.compared(BATCH, self.batched),
                self.compared(REST, self.continued),
                self.compared(STEP, self.stepped),
            ]
            broken = [check for check in checks if not check.ok]
            if not broken:
                break
            why = why or f"its cache cannot be trusted: {told(broken[0])}"
        return checks, why

    def finite(self) -> Check:
        bad = sum(int((~torch.isfinite(logits)).sum()) for logits in self.alone)
        many = sum(logits.numel() for logits in self.alone)
        return Check(FINITE, not bad, None, f"{bad:,} of {many:,} logits are not finite" if bad else "")

    def causal(self) -> Sides:
        """Logits at the ends of rows that are the beginnings of the longest, there and alone."""
        among = self.alone[self.rows.index(self.longest)]
        at = [i for i, row in enumerate(self.rows) if row == self.longest[: len(row)]]
        return torch.stack([among[len(self.rows[i]) - 1] for i in at]), self.last[at]

    def eager(self) -> Sides:
        """Logits of rows read alone, and those under transformers' own plain attention."""
        chosen = self.lm.model.config._attn_implementation
        if chosen == "eager":
            return self.last, self.last
        self.lm.model.set_attn_implementation("eager")
        try:
            return torch.cat(self.alone), torch.cat([plain(self.lm, row) for row in self.rows])
        finally:
            self.lm.model.set_attn_implementation(chosen)

    def batched(self) -> Sides:
        """Logits after rows read as one batch, the last token on the cache."""
        kv = self.lm.run(*pad_left([row[:-1] for row in self.rows], self.lm.pad_id), None, 0)
        return self.after(kv, self.rows), self.last

    def continued(self) -> Sides:
        """Logits at each token of the second halves of rows, whose first halves were read in two parts."""
        cut = [len(row) // 2 for row in self.rows]
        both = list(zip(self.rows, cut, strict=True))
        begin = torch.tensor([n // 2 for n in cut])
        kv = self.lm.prefill([row[: n // 2] for row, n in both])
        kv = self.lm.prefill([row[n // 2 : n] for row, n in both], kv, begin)
        ids, mask = pad_right([row[n:] for row, n in both], self.lm.pad_id, self.lm.device)
        places = (mask.cumsum(1) - 1).clamp(min=0) + torch.tensor(cut, device=ids.device)[:, None]
        rows, columns = mask.nonzero(as_tuple=True)
        logits, _ = self.lm.forward(kv, ids, mask, places, (rows, columns))
        return logits, torch.cat([x[n:] for x, n in zip(self.alone, cut, strict=True)])

    def stepped(self) -> Sides:
        """Logits after the last tokens, which run as when text is written."""
        lm, rows = self.lm, self.rows
        kv = lm.prefill([row[:-2] for row in rows])
        start = torch.tensor([len(row) - 2 for row in rows])
        opened = lm.open(State.before(lm, kv, [row[-2:-1] for row in rows], start, []))
        ids = torch.tensor([row[-1] for row in rows], device=lm.device)
        got = torch.zeros_like(opened.logits)
        for some, part in lm.decoded_together(opened):
            mask = F.pad(part.kv.present, (0, 1), value=1)
            cache = lm.decoding(part.kv)
            got[some] = lm.step(cache, ids[some], mask, part.next_position, part.kv.hidden)
        return got, self.last

    def masked(self) -> Sides:
        """Log-likelihoods of choices that run behind one another, and of choices that run alone."""
        lm, rows = self.lm, self.rows
        choices = [[row[:1], row[1:3], row[::-1][:3]] for row in rows]
        last = torch.tensor([len(row) - 1 for row in rows])
        kv = lm.prefill([row[:-1] for row in rows])
        state = State.before(lm, kv, [row[-1:] for row in rows], last, [])
        together, _ = branch(state, choices)
        alone = rank(lm.open(state), choices)
        both = [[[score for score, _ in row] for row in ranked] for ranked in (together, alone)]
        return torch.tensor(both[0]), torch.tensor(both[1])

    # -- caches -----------------------------------------------------------------------------------

    @cached_property
    def own(self) -> KV:
        """The cache of the longest row but its last token."""
        return self.lm.prefill([self.longest[:-1]])

    def same(self) -> Sides:
        """The answer on a cache to which zeros were added, and the plain one."""
        kv = self.own
        kv = replace(kv, keys=kv.keys + 0.0, values=kv.values + 0.0)
        return self.after(kv, [self.longest]), self.plain_last()

    def felt(self) -> Check:
        """Turns the entries of one layer after another round; each must change the answer."""
        lm, row = self.lm, self.longest

        def answers() -> Tensor:
            L = len(self.own.keys)
            kv = self.own.rows_at(torch.zeros(L + 1, dtype=torch.long, device=lm.device))
            keys, values, at = kv.keys.clone(), kv.values.clone(), torch.arange(L)
            keys[at, at + 1], values[at, at + 1] = -keys[at, at + 1], -values[at, at + 1]
            return self.after(replace(kv, keys=keys, values=values), [row] * (L + 1))

        logits, error = attempted(answers)
        if logits is None:
            return Check(FELT, False, None, error)
        if not torch.isfinite(logits).all():
            return Check(FELT, False, None, "not finite")
        moved = (logits[1:] - logits[:1]).abs().amax(1) / (float(logits[0].std()) or 1.0)
        deaf = (moved < min(self.tolerance, 1e-4)).nonzero().flatten().tolist()
        why = f"{layers_named(lm.decoder_layers(deaf))} do not read their entries" if deaf else ""
        return Check(FELT, not deaf, None, why or f"by {float(moved.min()):.2g} at least")

    def hidden(self) -> Sides:
        """The answer with masked entries in front, and without."""
        row = self.longest
        own, other = self.own, self.lm.prefill([row[::-1][:3]])
        masked = replace(other, mask=torch.zeros_like(other.mask))
        return self.after(masked.then(own), [row]), self.plain_last()

    def front(self) -> Check:
        """Reads a text on top of another one's entries, without recurrent states."""
        lm, row = self.lm, self.longest

        def answer() -> Tensor:
            front = lm.prefill([row[::-1][:3]]).entries_alone()
            kv = lm.prefill([row[:-1]], front, torch.tensor([3]))
            return self.after(kv, [row], torch.tensor([len(row) + 2]))

        logits, error = attempted(answer)
        if logits is None:
            return Check(FRONT, False, None, error)
        moved = difference(logits, self.plain_last())
        if not math.isfinite(moved):
            return Check(FRONT, False, None, "not finite")
        ok = moved > min(self.tolerance, 1e-4)
        return Check(FRONT, ok, None, f"by {moved:.2g}" if ok else "they are not read")

    def embedded(self) -> Check:
        """Reads a text as embeddings, where the model has what latent steps need."""
        why, error = attempted(lambda: lacking(self.lm))
        return Check(EMBEDDED, why == "", None, error or why)

    def between_layers(self) -> list[Check]:
        """Puts the last token's state behind each layer back in place, then turns it round."""
        lm, row = self.lm, self.longest
        why, error = attempted(lambda: activations.lacking(lm))
        if why != "":
            return [Check(STATES, False, None, error or why)]
        layers = range(lm.geometry.layers)
        answers, error = attempted(lambda: [self.with_state(row, i, s) for i in layers for s in (1.0, -1.0)])
        if answers is None:
            return [Check(STATES, False, None, error)]
        plain = self.plain_last()
        same = max(difference(x, plain) for x in answers[::2])
        moved = min(difference(x, plain) for x in answers[1::2])
        return [
            Check(READ_BACK, same <= self.tolerance, same if math.isfinite(same) else None),
            Check(STATES, moved > min(self.tolerance, 1e-4), None, f"by {moved:.2g} at least"),
        ]

    def with_state(self, row: Sequence[int], layer: int, sign: float) -> Tensor:
        """Returns logits after a row whose last state behind a layer is `sign` times itself."""
        lm = self.lm
        [state] = lm.hidden_states([row], [layer], [1])
        at = torch.tensor([[len(row) - 1]], device=lm.device)
        edits = Edits(tuple(lm.decoder_layers([layer])), at, sign * state[:, None], "replace")
        return self.after(replace(self.own, edits=edits), [row])

    def turned(self) -> list[Check]:
        """Un-rotates the keys of a text that is read at two places."""
        checks, error = attempted(lambda: list(self.at_two_places()))
        return [Check(PLACE, False, None, error)] if checks is None else checks

    def at_two_places(self) -> Iterator[Check]:
        lm, row = self.lm, self.longest
        if lm.rotary.reason:
            yield Check(PLACE, False, None, lm.rotary.reason)
            return
        limits = [n for n in (lm.max_positions, lm.rotary.steady) if n]
        start = min([max(n - len(row), 0) for n in limits] + [300])
        here, there = self.own, lm.prefill([row[:-1]], None, torch.tensor([start]))
        content, further = (lm.rotate(kv.keys.float(), kv.positions, inverse=True) for kv in (here, there))
        limit = max(self.tolerance, 1e-3)
        for name, got, keys in (
            (PLACE, further, content),
            (AGAIN, lm.rotate(content, here.positions), here.keys.float()),
        ):
            by_layer = [difference(a, b, whole=True) for a, b in zip(got, keys, strict=True)]
            worst = max(range(len(by_layer)), key=by_layer.__getitem__)
            far = by_layer[worst]
            ok = far <= limit
            where = "" if ok else layers_named(lm.decoder_layers([worst]))
            yield Check(name, ok, far if math.isfinite(far) else None, where)

    def state_bytes(self) -> int:
        if not self.lm.layout.recurrent or self.lm.reading == "whole":
            return 0
        states = self.lm.prefill([self.longest]).states or {}
        return sum(x.nbytes for x in states.values())

    # -- parts ------------------------------------------------------------------------------------

    def plain_last(self) -> Tensor:
        return self.alone[self.rows.index(self.longest)][-1:]

    def after(self, kv: KV, rows: Sequence[Sequence[int]], start: Tensor | None = None) -> Tensor:
        """Returns logits (B, V) after the last tokens of rows, which run on a cache of the others."""
        at = torch.tensor([len(row) - 1 for row in rows]) if start is None else start
        return self.lm.open(State.before(self.lm, kv, [row[-1:] for row in rows], at, [])).logits

    def compared(self, name: str, check: Callable[[], Sides]) -> Check:
        """Compares what a check computes with its reference, token by token; the worst one counts."""
        sides, error = attempted(check)
        if sides is None:
            return Check(name, False, None, error)
        got, reference = sides
        far = difference(got, reference, whole=self.lm.dtype != torch.float32)
        if not math.isfinite(far):
            return Check(name, False, None, "not finite")
        return Check(name, far <= self.tolerance, far)


def plain(lm: CausalLM, row: Sequence[int]) -> Tensor:
    """Returns fp32 logits (N, V) of a row that is read alone, without padding and cache."""
    out = lm.model(input_ids=torch.tensor([list(row)], device=lm.device), use_cache=False)
    return out.logits[0].float()


def difference(got: Tensor, reference: Tensor, whole: bool = False) -> float:
    """Returns the worst row's root mean square of the difference, as a share of the spread; or of all."""
    spread = float(reference.std()) or 1.0
    square = (got - reference).square()
    return float((square.mean() if whole else square.mean(-1).max()).sqrt()) / spread


def attempted(check: Callable[[], Any]) -> tuple[Any, str]:
    """Returns what a check computes; or None, and the error in one line."""
    try:
        with device_named():
            return check(), ""
    except Exception as error:  # third-party models raise anything; which one is told
        if isinstance(error, DeviceError) or ran_out(error):
            raise  # of this machine at this time, not of the model
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def told(check: Check) -> str:
    """A failed check as a reason."""
    if check.name in (PLACE, FELT, EMBEDDED, STATES) and check.difference is None:
        return check.detail
    far = "" if check.difference is None else f"off by {check.difference:.2g}"
    return f'"{check.name}" does not hold ({", ".join(filter(None, (far, check.detail)))})'


def described(lm: CausalLM) -> Iterator[str]:
    """Yields what the layers of the cache keep, runs of equal layers together."""
    g = lm.layout.geometry
    if g is not None:
        shapes = g.shapes or [(g.kv_heads, g.head_dim, g.head_dim)] * g.layers
        pairs = zip(lm.decoder_layers(range(g.layers)), shapes, strict=True)
        for (heads, key, value), run in groupby(pairs, key=lambda pair: pair[1]):
            dims = (
                f"{heads} × {key}" if key == value else f"{heads} × {key} (keys), {heads} × {value} (values)"
            )
            yield f"{layers_named([layer for layer, _ in run])}: {dims}"
    if lm.layout.recurrent:
        yield f"{layers_named(lm.layout.recurrent)}: a recurrent state"
    own = {*(lm.decoder_layers(range(g.layers)) if g else ()), *lm.layout.recurrent}
    if g is not None and (rest := [layer for layer in range(layer_count(lm.model)) if layer not in own]):
        yield f"{layers_named(rest)}: no entries of their own"
