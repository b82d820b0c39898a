"""Opens a pair of models and the adapter between them: the one way in, for every verb.

>>> pair = load_pair("smollm2-135m:gemma3-270m")
>>> adapter = load_adapter(folder, pair, "lcf")
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig
from lcfbench.adapters.files import load as load_files
from lcfbench.config import PLACES
from lcfbench.errors import UserError
from lcfbench.methods.create import method_class
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.dtypes import pick_device
from lcfbench.models.loading import How, WeightsNeededError
from lcfbench.models.random_weights import random_lm
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import ALIASES, Found, find_model, split_pair, split_sharers
from lcfbench.tasks.chat_template import Thinking

ROLES = ("receiver", "sharer")
CONDITIONS = {*PLACES, "dtype", "attention", "offline", "trust_remote_code"}  # settings for `load_pair`


@dataclass(frozen=True)
class Pair:
    """Two loaded models. names: as they were asked for, receiver first. more: further sharers.

    A pair that was loaded for one role alone holds that model on both sides.
    """

    receiver: CausalLM
    sharer: CausalLM
    names: tuple[str, str]
    more: tuple[CausalLM, ...] = ()

    @property
    def sharers(self) -> tuple[CausalLM, ...]:
        """All sharers, in the order in which they were named."""
        return (self.sharer, *self.more)

    def rivals_for(self, roles: Sequence[str]) -> list[tuple[CausalLM, CausalLM]]:
        """The models on both sides of a method with these `roles`, for each sharer in turn."""
        return [self.alone(k).models_for(roles) for k in range(len(self.sharers))]

    def alone(self, sharer: int) -> Pair:
        """The pair of the receiver and one of the sharers, by its number."""
        return replace(self, sharer=self.sharers[sharer], more=())

    def models_for(self, roles: Sequence[str]) -> tuple[CausalLM, CausalLM]:
        """The models on the receiver's and on the sharer's side of a method with these `roles`.

        A method that runs one model has it on both sides; the other side is never called.
        """
        if tuple(roles) == ("receiver",):
            return self.receiver, self.receiver
        if tuple(roles) == ("sharer",):
            return self.sharer, self.sharer
        return self.receiver, self.sharer


def load_pair(
    pair: str,
    *,
    roles: Iterable[str] = ROLES,
    dtype: str = "auto",
    device: str = "auto",
    receiver_device: str | None = None,
    sharer_device: str | None = None,
    device_map: str | None = None,
    attention: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    thinking: Thinking = "off",
    weights: Collection[str] = ROLES,
    random_weights: bool = False,
    several: bool = False,
) -> Pair:
    """Loads RECEIVER:SHARER (aliases, Hub ids or folders); a model named twice is loaded once.

    roles: the sides that are needed; the model of the other side is not loaded. dtype, device:
    "auto" chooses what is fastest here. receiver_device, sharer_device: of one side alone. device_map:
    spreads each model that has no device of its own, see `lcfbench.models.placement`. trust_remote_code:
    run code of the models' folders. thinking: off, on, or a budget of tokens, for models that write a
    thought first. weights: the roles whose weights are loaded; other models are `Outline`s, for which no
    weights are fetched either, unless one is the receiver itself.
    random_weights: models of these shapes with random weights, which only tell how long they take.
    several: whether RECEIVER:SHARER,SHARER may name several sharers.
    Raises UserError where a name, a model, a dtype or a device is not there.
    """
    quiet_libraries()
    wanted = set(roles)
    receiver_name, sharers = split_sharers(pair)
    if not several:
        split_pair(pair)  # it says what is wrong with several
    names, more = (receiver_name, sharers[0]), sharers[1:] if "sharer" in wanted else ()

    places = places_of(device, receiver_device, sharer_device, device_map)

    def whole(side: int, name: str) -> bool:
        twin = "receiver" in weights and (name, places[side]) == (receiver_name, places[0])
        return ROLES[side] in weights or twin

    def load(found: Found, side: int, name: str) -> CausalLM:
        how: dict[str, Any] = {"dtype": dtype, "attention": attention, "thinking": thinking, **places[side]}
        trusted = trust_remote_code
        try:
            return CausalLM.load(found, trust_remote_code=trusted, weights=whole(side, name), **how)
        except WeightsNeededError:
            return CausalLM.load(find_model(name, offline=offline), trust_remote_code=trusted, **how)

    needed = [side for side, role in enumerate(ROLES) if role in wanted]
    asked = [(side, names[side]) for side in needed] + [(1, name) for name in more]
    if random_weights:
        how = How(dtype, attention=attention, trust_remote_code=trust_remote_code, thinking=thinking)
        return _pair(_random([(name, places[side]) for side, name in asked], how, offline), needed, names)
    # all, before the first is loaded
    found = [
        (side, name, find_model(name, offline=offline, weights=whole(side, name))) for side, name in asked
    ]
    loaded: list[tuple[Any, CausalLM]] = []
    models: list[CausalLM] = []
    for side, name, each in found:
        key = places[side], replace(each, name="")  # one revision, perhaps named in two ways
        lm = next((lm for known, lm in loaded if known == key), None)
        if lm is None:
            lm = load(each, side, name)
            loaded.append((key, lm))
        models.append(lm)
    return _pair(models, needed, names)


def _pair(models: Sequence[CausalLM], needed: Sequence[int], names: tuple[str, str]) -> Pair:
    """The pair of models of the sides that are needed, further sharers behind them."""
    if len(needed) == 1:
        return Pair(models[0], models[0], names, tuple(models[1:]))
    return Pair(models[0], models[1], names, tuple(models[2:]))


def _random(asked: Sequence[tuple[str, Mapping[str, Any]]], how: How, offline: bool) -> list[CausalLM]:
    """Models of random weights. asked: with their places. Raises UserError for a device map."""
    if any(place["device_map"] for _, place in asked):
        what = "models of random weights stand on one device each"
        raise UserError(f"{what}.", "Use --device, --receiver-device or --sharer-device.")
    made: dict[Any, CausalLM] = {}
    for name, place in asked:
        key = name, place["device"]
        made[key] = made.get(key) or random_lm(name, replace(how, **place), offline)
    return [made[name, place["device"]] for name, place in asked]


def places_of(
    device: str, receiver_device: str | None, sharer_device: str | None, device_map: str | None
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Returns the device of each side, or how it is spread, receiver first.

    Raises UserError for a device that is not there, and for models that are to be spread over one.
    """
    if device_map and device != "auto":
        what = f"--device-map {device_map} spreads models over devices, and --device {device} is one."
        raise UserError(
            what, "Leave one of them out; --receiver-device and --sharer-device are for one side."
        )

    def place(own: str | None) -> dict[str, str | None]:
        pick_device(own or device)
        return {"device": own or device, "device_map": None if own else device_map}

    return place(receiver_device), place(sharer_device)


def roles_of(modes: Iterable[str]) -> tuple[str, ...]:
    """The roles that some of these methods need, receiver first."""
    needed = {role for mode in modes for role in method_class(mode).roles}
    return tuple(role for role in ROLES if role in needed)


def load_adapter(folder: Path, pair: Pair, mode: str) -> Adapter:
    """Reads an adapter for a method of this pair, on the receiver's device and in its dtype.

    Raises UserError where the adapter was made for models of other shapes.
    """
    receiver, sharer = pair.models_for(method_class(mode).roles)
    adapter = load_files(folder, receiver.device, receiver.dtype)
    adapter.config.check_fits(receiver.geometry, sharer.geometry, str(folder))
    return adapter


def other_revisions(config: AdapterConfig, receiver: CausalLM, sharer: CausalLM) -> str:
    """Names each model that is not the one the adapter was trained on; empty where both are.

    Revisions decide where they are recorded (every adapter trained here); else names do, so that a
    fuser for another model of the same cache shape is noticed.
    """
    trained = config.training.get("revisions") or {}
    made_for = {"receiver": config.receiver, "sharer": config.sharer}
    other = []
    for role, lm in (("receiver", receiver), ("sharer", sharer)):
        if trained.get(role) not in (None, lm.revision):
            other.append(
                f"{role} {lm.name} was {trained[role]}, here it is {lm.revision} ({lm.source or 'local'})"
            )
        elif role not in trained and lm.source != "path" and _hub_id(made_for[role]) != _hub_id(lm.name):
            other.append(f"{role} was {made_for[role]}, here it is {lm.name}")  # a folder may be any model
    return ", ".join(other)


def _hub_id(name: str) -> str:
    """A model's Hub id in lower case: two names of one model compare equal."""
    base, plus, lora = name.lower().partition("+")
    return f"{ALIASES.get(base, base).lower()}{plus}{lora}"
