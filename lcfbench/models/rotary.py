"""Rotary position embeddings of cached keys, applied and undone by the model's own rule.

There is no table of architectures. The model reads one text at several places; its own modules tell
the angles; a layer's rule is the one under which the keys of one place, un-rotated and rotated
again, are the keys of the other places. "Nothing turns" is a rule too (NoPE layers).

>>> rules = find_rules(model, ids)
>>> content = rules.turn(keys, positions, inverse=True)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lcfbench.errors import UserError
from lcfbench.models.placement import main_device

TOKENS = 12  # of the text that is read at several places
FURTHEST = 997  # position of the last place: far away, so that slow frequencies turn too
ENDLESS = 1 << 22  # frequencies that are the same in a text of so many tokens never change
# of keys that a rule foretells, as a share of the keys; under a wrong rule it is about 1
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}
STEP = "Use a method that leaves keys where they are, or another model."


@dataclass(frozen=True, eq=False)
class Angles:
    """The cosines and sines of a model's positions: a module and how it is called, or a table.

    args, kwargs: as the model gave them; `STATES` and `POSITIONS` stand for tensors. dims: that its
    positions have in front of (B, N). table: (positions, w), sines then cosines, as GPT-J keeps them.
    steady: tokens of the longest text with these frequencies; None where a text may have any length.
    """

    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    table: Tensor | None = None
    steady: int | None = None

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cos, sin (B, 1, N, w) in fp32 at positions (B, N)."""
        if self.table is not None:
            sin, cos = self.table.to(positions.device)[positions].float()[:, None].chunk(2, -1)
            return cos, sin
        given = {
            STATES: torch.zeros(1, device=positions.device, dtype=torch.float32),
            POSITIONS: positions.expand(*self.dims, *positions.shape),
        }
        args = [given[x] if x in (STATES, POSITIONS) else x for x in self.args]
        kwargs = {name: given[x] if x in (STATES, POSITIONS) else x for name, x in self.kwargs.items()}
        assert self.module is not None
        pair = _pair(self.module(*args, **kwargs))
        assert pair is not None, f"{type(self.module).__name__} gives no cosines and sines"
        cos, sin = (x.reshape(-1, *x.shape[-3:])[0].float()[:, None].to(positions.device) for x in pair)
        return cos, sin


STATES, POSITIONS = "<states>", "<positions>"


@dataclass(frozen=True)
class Rule:
    """How one layer turns its keys. angles: which of the model's; None where nothing turns.

    layout: of the angles in the module's output: `halves` has each twice, one half after the other,
    `neighbours` twice side by side, `once` once. pairs: dims that turn together stand half the width
    apart (`halves`) or side by side (`neighbours`). first, width: dims that turn. sign: −1 where they
    turn the other way.
    """

    angles: int | None = None
    layout: str = "halves"
    pairs: str = "halves"
    first: int = 0
    width: int = 0
    sign: int = 1

    def spread(self, x: Tensor) -> Tensor:
        """Returns cosines or sines (B, 1, N, w) as the turning dims take them, (B, 1, N, width)."""
        if self.layout != "once":
            x = x[..., : x.shape[-1] // 2] if self.layout == "halves" else x[..., ::2]
        return x.repeat_interleave(2, -1) if self.pairs == "neighbours" else torch.cat([x, x], -1)

    def turn(self, keys: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
        """Turns keys (B, H, N, D) of one layer, or turns them back."""
        stop = self.first + self.width
        x = keys[..., self.first : stop].float()
        if self.pairs == "neighbours":
            partner = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        else:
            partner = torch.cat([-x[..., self.width // 2 :], x[..., : self.width // 2]], -1)
        back = inverse != (self.sign < 0)
        turned = x * cos - partner * sin if back else x * cos + partner * sin
        turned = (turned / (cos * cos + sin * sin) if inverse else turned).to(keys.dtype)
        if self.width == keys.shape[-1]:
            return turned
        return torch.cat([keys[..., : self.first], turned, keys[..., stop:]], -1)


NONE = Rule()


@dataclass(frozen=True)
class RotaryRules:
    """The rules of a model's layers that keep keys, or the reason why there are none.

    errors: of each layer, the share of its keys at other places that its rule does not foretell.
    """

    angles: tuple[Angles, ...] = ()
    layers: tuple[Rule, ...] = ()
    errors: tuple[float, ...] = ()
    reason: str = ""

    @property
    def steady(self) -> int | None:
        """Tokens of the longest text whose frequencies are settled; None where any length is."""
        return min((a.steady for a in self.angles if a.steady), default=None)

    def turn(
        self, keys: Tensor, positions: Tensor, layers: Sequence[int] | None = None, inverse: bool = False
    ) -> Tensor:
        """Applies or undoes a model's rotary embedding on keys (l, B, H, N, D) at positions (B, N).

        layers: the model's layers that the keys belong to; all without it. Undoing leaves content keys,
        which do not depend on where in the prompt a token stood. Computed in fp32. Raises UserError for
        a model without rules, and for texts in which its frequencies depend on their length.
        """
        if self.reason:
            raise UserError(f"keys cannot be moved to other positions: {self.reason}.", STEP)
        out, known = [], {}
        for x, layer in zip(keys, range(len(keys)) if layers is None else layers, strict=True):
            rule = self.layers[layer]
            if rule.angles is None:
                out.append(x)
                continue
            if rule not in known:
                cos, sin = self._angles(self.angles[rule.angles], positions.to(keys.device))
                known[rule] = rule.spread(cos), rule.spread(sin)
            out.append(rule.turn(x, *known[rule], inverse))
        return torch.stack(out)

    def _angles(self, angles: Angles, positions: Tensor) -> tuple[Tensor, Tensor]:
        if angles.steady and positions.numel() and (last := int(positions.max())) >= angles.steady:
            raise UserError(
                f"keys at position {last} cannot be moved: in texts of more than {angles.steady} tokens this "
                "model's rotary frequencies depend on the length.",
                "Use shorter texts, or a method that leaves keys where they are.",
            )
        return angles.at(positions)


@torch.no_grad()
def find_rules(model: Any, ids: Sequence[int], longest: int | None = None) -> RotaryRules:
    """Finds each layer's rule by reading a text at several places.

    ids: a text of `TOKENS` tokens or more. longest: positions that the model has, where it says so.
    """
    decoder = model.get_decoder()
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return RotaryRules(reason="the model takes no positions")
    count = min(TOKENS, max((longest or TOKENS) // 2, 1))
    row = torch.tensor([[*ids][:count]], device=main_device(model))
    place = torch.arange(count, device=row.device)[None]
    angles = _recorded(model, row, place)
    room = min([n - count for n in (longest, *(a.steady for a in angles)) if n] + [FURTHEST])
    places = torch.cat([place, place + room // 7, place + room])
    rules: list[Rule] = []
    errors: list[float] = []
    kept = _read(decoder, row.expand(3, -1), places)
    for layer, pair in enumerate(kept):
        keys, values = (x.to(row.device) for x in pair)  # a spread model's layers stand on several devices
        if keys.shape[2] > count:
            return RotaryRules(angles, reason=f"layer {layer} keeps more entries than there are tokens")
        limit, seen = TOLERANCE[keys.dtype], places[:, -keys.shape[2] :]
        rule, error = _rule_of(keys, seen, angles, rules, limit)
        if _difference(values[:1].expand_as(values), values) > limit:
            why = f"layer {layer}'s values change with the position (positions are absolute)"
            if rule == NONE:
                why = f"layer {layer}'s values carry the position, not its keys (a compressed cache)"
            return RotaryRules(angles, reason=why)
        if rule is None:
            return RotaryRules(angles, reason=f"no rotary rule gives the keys of layer {layer}")
        rules.append(rule)
        errors.append(error)
    if not rules:
        return RotaryRules(angles, reason="no layer keeps keys")
    if not any(rule.width for rule in rules) and _order_matters(decoder, row[:, :4]):
        why = "distances are counted in the cache, not told by keys (as with ALiBi)"
        return RotaryRules(angles, reason=why)
    return RotaryRules(angles, tuple(rules), tuple(errors))


def _rule_of(
    keys: Tensor, places: Tensor, angles: Sequence[Angles], found: Sequence[Rule], limit: float
) -> tuple[Rule | None, float]:
    """Returns the rule that foretells keys (S, H, N, D) at places (S, N) from the first place's.

    found: rules of other layers, which are tried first. Also returns the share that it leaves open.
    """
    at = [a.at(places) for a in angles]

    def error(rule: Rule) -> float:
        content, turned = keys.float(), keys.float()
        if rule.angles is not None:
            cos, sin = (rule.spread(x) for x in at[rule.angles])
            content = rule.turn(content[:1], cos[:1], sin[:1], True).expand_as(keys)
            return _difference(rule.turn(content, cos, sin, False), keys)
        return _difference(content[:1].expand_as(turned), turned)

    for rule in dict.fromkeys([NONE, *found]):
        if (share := error(rule)) < limit / 4:
            return rule, share
    tried = [(error(rule), rule) for rule in _candidates([cos.shape[-1] for cos, _ in at], keys.shape[-1])]
    share, rule = min(tried, key=lambda each: each[0], default=(1.0, NONE))
    return (rule if share <= limit else None), share


def _candidates(widths: Sequence[int], dims: int) -> Iterator[Rule]:
    """Yields the rules that keys of `dims` dims can have with angles of these widths."""
    for (index, w), layout, pairs in product(
        enumerate(widths), ("halves", "neighbours", "once"), ("halves", "neighbours")
    ):
        width = 2 * w if layout == "once" else w
        if width > dims or width % 2:
            continue
        for first, sign in product(sorted({0, dims - width}), (1, -1)):
            yield Rule(index, layout, pairs, first, width, sign)


def _difference(got: Tensor, keys: Tensor) -> float:
    """Returns the difference from keys (S, H, N, D) as a share of each dim's size, their mean square root.

    By dim: a few dims of large keys would hide the others.
    """
    keys = keys.float()
    size = keys.square().mean((0, 2), keepdim=True)
    size = size + 1e-4 * size.mean() + torch.finfo(torch.float32).tiny
    share = float(((got.float() - keys).square() / size).mean().sqrt())
    return share if share == share else float("inf")


def _recorded(model: Any, row: Tensor, place: Tensor) -> tuple[Angles, ...]:
    """Returns the angles that the model makes while it reads a row, equal ones once."""
    calls: list[Angles] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = [*args, *kwargs.values()]
        positions = [x for x in given if _same(x, place)]
        if _pair(out) is None or len(positions) != 1:
            return

        def marked(x: Any) -> Any:
            return POSITIONS if x is positions[0] else STATES if isinstance(x, Tensor) else x

        named = {name: marked(x) for name, x in kwargs.items()}
        calls.append(Angles(module, tuple(map(marked, args)), named, positions[0].shape[:-2]))

    with ExitStack() as stack:
        for module in model.modules():
            if next(module.parameters(), None) is None:
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        _read(model.get_decoder(), row, place)
    for module in model.modules():
        table = getattr(module, "embed_positions", None)
        if isinstance(table, Tensor) and table.dim() == 2 and table.is_floating_point():
            calls.append(Angles(table=table))
    found: list[Angles] = []
    for call in calls:
        both = torch.cat(call.at(place), -1)
        if not any(_equal(both, torch.cat(other.at(place), -1)) for other in found):
            found.append(replace(call, steady=_steady(call, row.device)) if call.module else call)
    return tuple(found)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _same(x: Any, place: Tensor) -> bool:
    """Says whether an argument holds the positions (1, N), perhaps several times."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.dim() < 2 or x.shape[-2:] != place.shape:
        return False
    return torch.equal(x, place.expand_as(x))


def _pair(out: Any) -> tuple[Tensor, Tensor] | None:
    """Returns the cosines and sines that a module made; None where it made something else."""
    if isinstance(out, Tensor) and out.is_complex():
        return out.real, out.imag
    if not isinstance(out, tuple | list) or len(out) != 2:
        return None
    cos, sin = out
    if not all(isinstance(x, Tensor) and x.is_floating_point() and x.dim() >= 3 for x in out):
        return None
    return (cos, sin) if cos.shape == sin.shape else None


def _steady(angles: Angles, device: torch.device) -> int | None:
    """Returns the longest text whose frequencies are always these; None where a text may have any length.

    A module may remember the text before: a short and a long one are tried.
    """

    def made(length: int) -> Tensor:
        return torch.cat(angles.at(torch.tensor([[1, length - 1]], device=device)), -1)[:, :, 0]

    first = made(2)

    def settled(length: int) -> bool:
        return all(torch.equal(made(length), first) for before in (2, ENDLESS) if made(before) is not None)

    if torch.equal(made(ENDLESS), first):
        return None
    low, high = 2, ENDLESS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if settled(middle) else (low, middle)
    made(2)  # leaves the module as it was
    return low


def _order_matters(decoder: Any, row: Tensor) -> bool:
    """Says whether a token sees a difference when the entries before it change places."""
    count = row.shape[1]
    place, two = torch.arange(count + 1, device=row.device)[None], row.expand(2, -1)
    cache = _run(decoder, two, place[:, :-1].expand(2, -1)).past_key_values
    for layer in _keeping(cache):
        layer.keys, layer.values = (torch.stack([x[0], x[1].flip(1)]) for x in (layer.keys, layer.values))
    after = _run(decoder, two[:, :1], place[:, -1:].expand(2, -1), cache).last_hidden_state[:, None]
    return _difference(after[:1], after[1:]) > TOLERANCE[after.dtype]


def _read(decoder: Any, ids: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns keys and values of each layer that keeps them after ids (B, N) at positions (B, N)."""
    cache = getattr(_run(decoder, ids, positions), "past_key_values", None)
    return [(layer.keys, layer.values) for layer in _keeping(cache)]


def _keeping(cache: Any) -> list[Any]:
    return [
        layer
        for layer in getattr(cache, "layers", None) or ()
        if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.dim() == 4
    ]


def _run(decoder: Any, ids: Tensor, positions: Tensor, cache: Any = None) -> Any:
    mask = torch.ones(len(ids), int(positions[0, -1]) + 1 if cache else ids.shape[1], dtype=torch.long)
    return decoder(
        input_ids=ids,
        attention_mask=mask.to(ids.device),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )


def rope_types(config: Any) -> set[str]:
    """Returns the kinds of rotary embedding that a config names: default, yarn, dynamic, longrope …"""
    text = config.get_text_config(decoder=True)
    given = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    sets = [given, *given.values()] if isinstance(given, dict) else []
    return {str(some.get("rope_type") or some.get("type")) for some in sets if isinstance(some, dict)}
