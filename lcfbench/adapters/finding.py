"""Finds the adapter of a method where none is named.

Places, in order: those that ship, `./adapters`, the cache (where `run --train` saves), the mirror,
C2C's released fusers, the Hub. The first place that has a fitting adapter decides. An adapter fits
that was made for this method, these models (names and weights), these contexts, and this task or its
family; one trained on chat data, or imported, fits every task of its contexts.

>>> find_for(Wanted("lcf", ("lcf", "lcfx"), ("a", "b"), "splitfacts", False))       # doctest: +SKIP
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lcfbench.adapters import hub as on_hub
from lcfbench.adapters.base import adapter_class, method_of
from lcfbench.adapters.c2c_files import import_once
from lcfbench.adapters.config import WEIGHTS, AdapterConfig, read_config, reason, recorded_names
from lcfbench.adapters.select import AdapterMissing, cached, kinds_for, serves, shipped, unfinished, within
from lcfbench.errors import UserError
from lcfbench.sources import hub
from lcfbench.sources.c2c_fusers import FuserMissingError, released
from lcfbench.sources.cache import mirror, say
from lcfbench.sources.models import hub_id, look
from lcfbench.tables import printable
from lcfbench.tasks.yaml_files import describe, task_names

SHARED_TASK, DIFFERENT_TASK = "openbookqa", "splitfacts"  # for an adapter that was made for no task of ours
FEW = 3  # adapters that are named; of more only the number
HUB_CONFIGS = 10  # that are fetched at most, of the newest


@dataclass(frozen=True)
class Wanted:
    """What an adapter is wanted for.

    kinds: those that the method runs. pair: the models on both sides, receiver first. shared: whether
    both models read the same context.
    """

    mode: str
    kinds: tuple[str, ...]
    pair: tuple[str, str]
    task: str
    shared: bool
    offline: bool = False

    @property
    def context(self) -> str:
        return "shared" if self.shared else "different"

    @cached_property
    def fitting(self) -> list[str]:
        """The method's kinds that serve the context; all where none does."""
        return kinds_for(self.kinds, self.shared)

    @cached_property
    def revisions(self) -> dict[str, str]:
        """The revisions of the models that are on this disk."""
        found = zip(("receiver", "sharer"), (look(name)[0] for name in self.pair), strict=True)
        return {role: model.revision for role, model in found if model}


@dataclass(frozen=True)
class Found:
    """An adapter that fits. why: where it was found, and the reason that it was chosen."""

    folder: Path
    config: AdapterConfig
    why: str


def find_for(wanted: Wanted) -> Found:
    """Returns the adapter for a method on a task.

    A released fuser is imported, and an adapter of the Hub fetched, only where nothing on this disk
    fits. Raises AdapterMissing that lists the places tried.
    """
    here = on_this_disk(wanted)
    if isinstance(here, Found):
        return here
    tried = [*here]
    for search in (_released, _on_hub):
        found = search(wanted)
        if isinstance(found, Found):
            return found
        tried.append(found)
    names = ":".join(wanted.pair)
    raise AdapterMissing(
        f"no adapter is at hand for --mode {wanted.mode} on {wanted.task} with {names}. "
        f"Looked, in order: {'; '.join(filter(None, tried))}.",
        f"Pass --adapter FOLDER (`lcfbench ls adapters`), or make one: "
        f"lcfbench train --mode {wanted.mode} --pair {shlex.quote(names)} --task {wanted.task}",
        wanted,
    )


def on_this_disk(wanted: Wanted) -> Found | list[str]:
    """The adapter of the first place on this disk that has one that fits; else a phrase for each place."""
    tried = []
    for place, folders in places():
        fits, misfits = _among(folders, wanted, place)
        if fits:
            return _best(fits, wanted, place)
        none = "none for this pair and method" if folders else "nothing there"
        tried.append(f"{place}: {misfits or none}")
    return tried


def places() -> list[tuple[str, list[Path]]]:
    """The places on this disk and the adapters in each, in the order in which they are looked through."""
    root = mirror()
    found = [
        ("shipped", shipped()),
        ("./adapters", within(Path("adapters"))),
        (f"cache ({cached()})", within(cached())),
    ]
    return [*found, ("mirror", within(root / "adapters"))] if root else found


def tasks_at_hand(
    mode: str, kinds: tuple[str, ...], pair: tuple[str, str], given: Sequence[Path] = ()
) -> list[list[str]]:
    """The tasks that each adapter was made for which a method of this pair can use, the first to take first.

    given: adapters to look at instead of those at hand; one that cannot be read raises UserError. An
    adapter of chat data or an imported one counts for the tasks it was judged by, else for one that its
    kind serves.
    """
    found = []
    for place, folders in [("given", list(given))] if given else places():
        made = []
        for folder in folders:
            try:
                config = read_config(folder)
            except UserError:
                if given:
                    raise
                continue
            judged = config.training.get("dev_tasks") or []
            by_kind = [SHARED_TASK if "shared" in adapter_class(config.kind).contexts else DIFFERENT_TASK]
            sources = (config.tasks, judged if isinstance(judged, list) else [], by_kind)
            names = next(names for each in sources if (names := [t for t in each if t in task_names()]))
            asked = (
                Wanted(mode, kinds, pair, t, describe(t)["context"] == "shared", offline=True) for t in names
            )
            fits = [w.task for w in asked if given or misfit(folder, config, w, place != "shipped") == ""]
            if fits:
                dated = place not in ("given", "shipped")
                made.append((-(folder / WEIGHTS).stat().st_mtime if dated else 0.0, fits))
        found += [fits for _, fits in sorted(made, key=lambda each: each[0])]
    where = released(recorded_names(pair)) if mode == "c2c" and not given else ""
    return [*found, [SHARED_TASK]] if where else found


def misfit(folder: Path, config: AdapterConfig, wanted: Wanted, there: bool = True) -> str | None:
    """Says why an adapter for this method and pair does not fit; "" where it does.

    None for an adapter of another method or pair, and for a baseline trained on others' messages.
    there: whether its weights are on this disk, and those of the models must be the ones it had.
    """
    t = config.training
    if config.kind not in wanted.kinds or not serves(config, wanted.mode):
        return None
    if [_plain(n) for n in config.pair] != [_plain(n) for n in recorded_names(wanted.pair)]:
        return None
    if t.get("senders", "matched") != "matched":
        return None
    if failed := t.get("failed"):
        return f"of a training that stopped: its {failed} was not finite"
    if config.kind not in wanted.fitting or wanted.context not in t.get("contexts", [wanted.context]):
        return f"made for {'different' if wanted.shared else 'shared'} contexts"
    if _distance(config, wanted.task) is None:
        return f"trained on {', '.join(config.tasks)}"
    recorded = t.get("revisions") or {}
    for role, here in wanted.revisions.items() if there else ():
        # a commit of the Hub and a digest of files cannot be compared
        if isinstance(trained := recorded.get(role), str) and len(trained) == len(here) and trained != here:
            return f"trained on another {role} ({trained[:12]}, here it is {here[:12]})"
    return (unfinished(folder) or _damage(folder)) if there else ""


def _plain(name: str) -> str:
    """A model's Hub id in lower case, or its folder's name; of a taught one with what it was taught."""
    base = hub_id(name)
    return (f"{base}{name[name.index('+') :]}" if base and "+" in name else base or name).lower()


def _distance(config: AdapterConfig, task: str) -> int | None:
    """How far a task is from those trained on: 0 it, 1 its family, 2 chat or unknown data; None another."""
    if task in config.tasks:
        return 0
    if task.removesuffix("_heldout") in config.tasks:
        return 1
    return 2 if not config.tasks or any(name.startswith("chat:") for name in config.tasks) else None


def _damage(folder: Path) -> str:
    """Says why weights cannot be read, by their header and length; "" where they can."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"damaged ({WEIGHTS}: {reason(error)})"


def _among(folders: Iterable[Path], wanted: Wanted, place: str) -> tuple[dict[Path, AdapterConfig], str]:
    """The adapters of a place that fit, and a phrase about those that nearly do."""
    fits, other = dict[Path, AdapterConfig](), list[str]()
    for folder in folders:
        try:
            config = read_config(folder)
            why = misfit(folder, config, wanted, there=place != "shipped")
        except UserError as error:
            why = f"unreadable: {error.what}".rstrip(".")
        if why == "":
            fits[folder] = config
        elif why is not None:
            other.append(f"{folder.name} is {why}")
    more = f" and {len(other) - FEW} more" if len(other) > FEW else ""
    return fits, printable(", ".join(other[:FEW]) + more, one_line=True)


def _best(fits: dict[Path, AdapterConfig], wanted: Wanted, place: str) -> Found:
    """The adapter nearest to the task; of several the newest, of those that ship the best on dev."""

    def rank(folder: Path) -> tuple[Any, ...]:
        config, ships = fits[folder], place == "shipped"
        last = -(_dev(config) or 0.0) if ships else -(folder / WEIGHTS).stat().st_mtime
        own = method_of(config) != wanted.mode, _distance(config, wanted.task), len(config.tasks)
        return *own, last, folder.name

    best, *others = sorted(fits, key=rank)
    config, facts = fits[best], []
    if place == "shipped":
        return Found(best, config, described(best))
    if others:
        same = rank(others[0])[:3] == rank(best)[:3]
        facts.append(f", {'the newest' if same else 'the nearest to the task'} of {len(fits)} that fit there")
    return Found(best, config, f"{described(best)}{''.join(facts)}")


def described(folder: Path) -> str:
    """Names an adapter: one that ships, or a folder and the training of its adapter."""
    if folder in shipped():
        return f"the shipped adapter {folder.name}"
    return f"{printable(str(folder), one_line=True)} ({made_of(read_config(folder))})"


def made_of(config: AdapterConfig) -> str:
    """Says what an adapter was trained on, and how well it did on dev."""
    score, source = _dev(config), config.training.get("imported_from")
    data = f"trained on {', '.join(config.tasks)}" if config.tasks else f"imported from {source}"
    if not config.tasks and not source:
        data = "its training is not recorded"
    return printable(data, one_line=True) + (f", dev {100 * score:.1f}" if score is not None else "")


def _dev(config: AdapterConfig) -> float | None:
    """The best mean of matched dev scores, by which the saved state was chosen; None without a record."""
    means = []
    for point in config.training.get("dev") or []:
        scores = [v for k, v in point.items() if k.endswith("/matched") and isinstance(v, (int, float))]
        means += [sum(scores) / len(scores)] if scores else []
    return max(means, default=None)


# -- what is fetched --------------------------------------------------------------------------------


def _released(wanted: Wanted) -> Found | str:
    """C2C's released fuser of a pair, imported once into the cache; else a phrase why there is none."""
    where = released(recorded_names(wanted.pair))
    if wanted.mode != "c2c" or not where:
        return ""
    if not wanted.shared:
        return f"released fuser {where}: made for shared contexts"
    try:
        folder = import_once(where, offline=wanted.offline)
    except FuserMissingError as error:
        return f"released fuser {where} ({', '.join(error.tried)})"
    return Found(folder, read_config(folder), f"the released fuser {where}, imported into {folder}")


def _on_hub(wanted: Wanted) -> Found | str:
    """The newest adapter on the Hub that fits, fetched into the cache; else a phrase why there is none."""
    ids = [name for name in map(hub_id, wanted.pair) if name]
    if len(ids) < 2:
        return "Hub: it knows no local folders"
    try:
        listed = on_hub.tagged(ids, wanted.offline)
    except hub.HubError as error:
        return f"Hub: {error}"
    fits = list[tuple[on_hub.Listed, AdapterConfig]]()
    for entry in listed[:HUB_CONFIGS]:
        try:
            config = on_hub.config_of(entry)
        except (UserError, hub.HubError) as error:  # a tag says nothing about the files
            say(printable(f"Hub: {entry.repo_id} is left out: {error}", one_line=True))
            continue
        if misfit(Path(entry.repo_id), config, wanted, there=False) == "":
            fits.append((entry, config))
    for entry, config in fits:
        facts = f"{config.kind}, {made_of(config)}, of {entry.changed}"
        say(f"Hub: {entry.repo_id} is the newest of {len(fits)} adapters that fit ({facts}).")
        try:
            folder = on_hub.pull_once(entry, cached())
        except UserError as error:
            say(printable(f"Hub: {entry.repo_id} is left out: {error.what}", one_line=True))
            continue
        return Found(folder, config, f"{entry.repo_id} of the Hub, fetched to {folder} ({made_of(config)})")
    return f"Hub: {f'{len(listed)} tagged for this pair, but none fits' if listed else 'none for this pair'}"
