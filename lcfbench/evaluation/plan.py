"""Checks a recipe and settles what is run, before a model is loaded.

>>> variants = variants_of(recipe, look_up(recipe))                                 # doctest: +SKIP
>>> [variant.label for variant in variants["splitfacts"]]                           # doctest: +SKIP
['receiver', 't2t budget=16', 't2t budget=32']
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from lcfbench.adapters.base import method_of
from lcfbench.adapters.config import AdapterConfig, read_config, recorded_names
from lcfbench.adapters.files import check_saved
from lcfbench.adapters.finding import Wanted, find_for, tasks_at_hand
from lcfbench.adapters.proof import Proof, lacking, read_proofs
from lcfbench.adapters.select import JOINT, check_used, find_adapters, pick_adapters, serving
from lcfbench.config import PLACES, Join, WireForm, takes_commas
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.variants import ADAPTER, Variant, labelled, read_entry
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import method_class, parse_options, sides
from lcfbench.methods.load_pair import places_of
from lcfbench.models.dtypes import pick_device, pick_dtype
from lcfbench.models.layout import geometry_named
from lcfbench.registry import method_names
from lcfbench.sources.models import first_pair, look, split_sharers
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for


def look_up(recipe: Recipe) -> list[Task]:
    """Checks names, options, numbers and the device of a recipe; returns its tasks.

    No model is loaded. Raises UserError.
    """
    recipe.check_names()
    options_of(recipe.mode, recipe.options, len(split_sharers(recipe.pair)[1]))
    for place in places_of(**recipe.model_dump(include=PLACES)):
        if recipe.dtype != "auto":
            pick_dtype(recipe.dtype, pick_device(str(place["device"])))
    check_out(recipe.out)
    given, seed = options_for(recipe.task, recipe.task_options), recipe.every_seed[0]
    tasks = [
        load_task(
            n, seed=seed, offline=recipe.offline, options=given[n], shots=recipe.shots, prompt=recipe.prompt
        )
        for n in recipe.task
    ]
    for task in tasks:
        task.metric(recipe.scoring)
    return tasks


def check_out(out: Path) -> None:
    """Raises UserError for a folder of runs that is a file, or that cannot be made."""
    there = next((path for path in (out, *out.absolute().parents) if path.exists()), out)
    why = "Not a directory" if not there.is_dir() else ""
    if there != out and not os.access(there, os.W_OK):
        why = why or "Permission denied"
    if why:
        where = "" if there == out else f"{there}: "
        raise UserError(f"--out {out}: {where}{why}.", "Name a folder for the runs.")


# the adapters of a variant: one for all its sharers, or one for each
Adapters = tuple[Path, ...]


def options_of(
    entries: Sequence[str], general: Mapping[str, Sequence[str]], sharers: int = 1
) -> list[tuple[Variant, list[Adapters]]]:
    """Every method with every choice of its options, and the adapters that its entry names.

    general: options of all methods that have them; those of an entry win. sharers: their number. Raises
    UserError for an option that no method has, or that an entry's method lacks, and for values that one
    cannot take.
    """
    read = [(entry, *read_entry(entry)) for entry in entries]
    kinds = {mode: method_class(mode) for _, mode, _ in read}
    known = {f.name for kind in kinds.values() for f in option_fields(kind)}
    for key in general:
        if key not in known:
            raise unknown(f"option of {', '.join(kinds)}", key, known, "lcfbench ls methods")
    found = []
    for entry, mode, own in read:
        kind = kinds[mode]
        adapters = [place for text in own.pop(ADAPTER, []) for place in text.split(",")]
        if adapters and not kind.adapter_kinds:
            raise UserError(f"--mode {entry}: {mode} runs no adapter.", f"Leave {ADAPTER}= out.")
        names = [f.name for f in option_fields(kind)]
        for key in own:
            if key not in names:
                listing = "lcfbench ls methods"
                raise unknown(f"option of {mode} in --mode {entry}", key, names, listing)
        asked = {key: texts for key, texts in general.items() if key in names} | own
        values = {key: _values(kind, key, texts) for key, texts in asked.items()}
        for texts in product(*values.values()):
            chosen = dict(zip(values, texts, strict=True))
            parse_options(kind, mode, chosen)
            variant = Variant(mode, tuple(sorted(chosen.items())), entry=entry)
            found.append((variant, [find_adapters(Path(place.strip()), sharers) for place in adapters]))
    return found


def _depth(recipe: Recipe) -> int:
    """The number of the receiver's layers, before it is loaded."""
    name, trusted = first_pair(recipe.pair)[0], recipe.trust_remote_code
    return geometry_named(name, offline=recipe.offline, trust_remote_code=trusted).layers


def _values(kind: type[Method], key: str, texts: Sequence[str]) -> list[str]:
    """The values of an option: split at commas, unless a comma may belong to one."""
    if takes_commas(get_type_hints(kind, include_extras=True)[key]):
        return list(texts)
    return [part.strip() for text in texts for part in text.split(",")]


def wanted_by(recipe: Recipe, tasks: Sequence[Task]) -> list[Wanted]:
    """What adapters are to be found for: every method, task and sharer for which none is given, once.

    Raises UserError for a method that takes the message of one sharer where there are several.
    """
    found = []
    asked = options_of(recipe.mode, recipe.options, len(split_sharers(recipe.pair)[1]))
    for variant, own in asked if not recipe.adapter else ():
        kind = method_class(variant.mode)
        if own or not kind.adapter_kinds or kind.adapter_optional:
            continue
        for task in tasks:
            _joins(recipe, variant.mode, task)
            found += [_wanted(recipe, variant.mode, pair, task) for pair in pairs_of(recipe.pair, kind)]
    return list(dict.fromkeys(found))


def _wanted(recipe: Recipe, mode: str, pair: tuple[str, str], task: Task) -> Wanted:
    kinds = tuple(method_class(mode).adapter_kinds)
    return Wanted(mode, kinds, pair, task.name, task.shared, recipe.offline)


def pairs_of(pair: str, kind: type[Method]) -> list[tuple[str, str]]:
    """The models on both sides of a method for each sharer; one pair where it is the same for all."""
    receiver, sharers = split_sharers(pair)
    found = [sides(kind, receiver, sharer) for sharer in sharers]
    return found if len(set(found)) > 1 else found[:1]


def with_tasks(recipe: Recipe) -> Recipe:
    """The recipe with tasks: where it names none, those that an adapter at hand was made for.

    The default task, where an adapter for it is at hand or none is at all. Raises UserError for an
    adapter that is given and cannot be read.
    """
    if "task" in recipe.model_fields_set:
        return recipe
    recipe.check_names()
    sharers = len(split_sharers(recipe.pair)[1])
    given = [find_adapters(place, sharers) for place in recipe.adapter]
    for variant, own in options_of(recipe.mode, recipe.options, sharers):
        kind = method_class(variant.mode)
        if not kind.adapter_kinds or (kind.adapter_optional and not (own or given)):
            continue
        pair, firsts = sides(kind, *first_pair(recipe.pair)), [row[0] for row in own or given]
        if made_for := tasks_at_hand(variant.mode, tuple(kind.adapter_kinds), pair, firsts):
            if recipe.task[0] not in [name for names in made_for for name in names]:
                return recipe.model_copy(update={"task": made_for[0]})
            break
    return recipe


def variants_of(recipe: Recipe, tasks: Sequence[Task]) -> dict[str, list[Variant]]:
    """The variants of each task, by its name: every method, its options and an adapter that it runs.

    Raises UserError where an adapter is missing, cannot be read, or has no use.
    """
    if recipe.keep_messages and not any(method_class(name).sends for name in recipe.methods):
        what = f"--keep-messages: {', '.join(recipe.methods)} sends no message, so none can be kept."
        raise UserError(what, "Leave it out, or add a method that sends one (`lcfbench ls methods`).")
    sharers = len(split_sharers(recipe.pair)[1])
    given = [find_adapters(place, sharers) for place in recipe.adapter]
    asked = options_of(recipe.mode, recipe.options, sharers)
    every = [
        (task, replace(variant, wire=form, join=join), own)
        for task in tasks
        for variant, own in asked
        for form in forms_of(recipe, variant.mode)
        for join in _joins(recipe, variant.mode, task)
    ]
    chosen: list[list[Adapters]] = []
    at_hand = {wanted: find_for(wanted) for wanted in wanted_by(recipe, tasks)}
    for task, variant, own in every:
        mode, kind = variant.mode, method_class(variant.mode)
        rivals, pairs = own or given, pairs_of(recipe.pair, kind)
        if kind.adapter_optional and not own:  # no adapter of its kind is given: it runs without one
            rivals = _serving(given, mode, task.shared)
            if not rivals:
                chosen.append([])
                continue
        if kind.adapter_kinds and not rivals:
            chosen.append([tuple(at_hand[_wanted(recipe, mode, pair, task)].folder for pair in pairs)])
            continue
        found = picked(rivals, pairs, mode, shared=task.shared, task=task.name)
        check_used([*map(told_whole, own)], [*map(told_whole, found)], [mode])
        chosen.append(found)
    left = [row for row in given if not any(row in found for found in chosen)]
    for (task, variant, own), found in zip(every, chosen, strict=True):
        if left and found and not own:  # an adapter that no method prefers is for all that can use it
            more = [row for row in left if len(row) == len(found[0])]
            found += _serving(more, variant.mode, task.shared)
    rows = dict.fromkeys(row for found in chosen for row in found)
    check_used([*map(told_whole, given)], [*map(told_whole, rows)], recipe.methods)
    for folder in dict.fromkeys(folder for row in rows for folder in row):
        check_saved(folder)
    for variant, _ in asked:
        method_class(variant.mode).check_depth(dict(variant.options), partial(_depth, recipe))
    variants: dict[str, list[Variant]] = {}
    why = {found.folder: found.why for found in at_hand.values()}
    for (task, variant, _), found in zip(every, chosen, strict=True):
        these = variants.setdefault(task.name, [])
        reasons = [" and ".join(filter(None, (why.get(f) for f in dict.fromkeys(row)))) for row in found]
        both = zip(found, reasons, strict=True)
        these += [replace(variant, adapter=row[0], more=row[1:], why=text) for row, text in both] or [variant]
    return {name: labelled(these) for name, these in variants.items()}


def told_whole(row: Adapters) -> Path:
    """The folders of a variant's adapters as `--adapter` takes them."""
    return Path(JOINT.join(map(str, row)))


def _serving(rows: Sequence[Adapters], mode: str, shared: bool) -> list[Adapters]:
    """Those adapters all of which serve a method on shared or different contexts."""
    kinds = method_class(mode).adapter_kinds
    return [row for row in rows if len(serving(row, kinds, shared=shared, mode=mode)) == len(set(row))]


def picked(
    rivals: Sequence[Adapters], pairs: Sequence[tuple[str, str]], mode: str, *, shared: bool, task: str
) -> list[Adapters]:
    """The adapters of `rivals` that a method runs on a task: one for all sharers, or one for each.

    pairs: see `pairs_of`. Raises UserError where none serves, where a sharer has none, and for the adapter of
    another sharer.
    """
    if not (kinds := method_class(mode).adapter_kinds):
        return []
    asked: dict[str, Any] = {"shared": shared, "mode": mode, "task": task}
    alone = [row[0] for row in rivals if len(row) == 1]
    if len(pairs) == 1 and alone:
        return [(folder,) for folder in pick_adapters(alone, kinds, pairs[0], **asked)]
    if not (rows := _serving(rivals, mode, shared)):
        pick_adapters([f for row in rivals for f in row], kinds, pairs[0], **asked)
        what = f"no adapters among those given serve {mode} on {task} for all sharers."
        raise UserError(what, f"Give adapters of --mode {mode}, one for each sharer.")
    for row in rows:
        if len(row) == 1:
            names = ", ".join(sharer for _, sharer in pairs)
            what = f"--adapter {row[0]} is the adapter of one sharer, and --pair names {names}."
            raise UserError(what, "Give one for each sharer, in their order: --adapter A+B.")
        if len(pairs) > 1:
            check_places(row, pairs)
    best = [row for row in rows if all(method_of(read_config(folder)) == mode for folder in row)]
    return best or rows


def check_places(row: Adapters, pairs: Sequence[tuple[str, str]]) -> None:
    """Raises UserError for an adapter that was made for another sharer than the one in its place."""
    for k, (folder, pair) in enumerate(zip(row, pairs, strict=True)):
        config = read_config(folder)
        others = [other for other in pairs if made_for(config, other)]
        if others and pair not in others:
            what = f"--adapter {folder} was made for {':'.join(others[0])}, and sharer {k + 1} is {pair[1]}."
            raise UserError(what, "Give the adapters in the order of the sharers: --adapter A+B.")


def made_for(config: AdapterConfig, pair: tuple[str, str]) -> bool:
    """Whether an adapter was made for the sharer of a pair: by its weights where known, else by its name."""
    recorded = (config.training.get("revisions") or {}).get("sharer")
    found = look(pair[1])[0] if recorded else None
    return found.revision == recorded if found else config.sharer == recorded_names(pair)[1]


def forms_of(recipe: Recipe, mode: str) -> list[WireForm | None]:
    """The forms in which a method's messages cross: text has one, and a method that sends nothing none."""
    kind = method_class(mode)
    if not recipe.wire or not kind.sends:
        return [None]
    return ["native"] if kind.sends_text else [*recipe.wire]


def _joins(recipe: Recipe, mode: str, task: Task) -> list[Join | None]:
    """The ways in which the messages of several sharers are joined; None alone with one sharer.

    Raises UserError for methods that take the message of one.
    """
    (_, sharers), kind = split_sharers(recipe.pair), method_class(mode)
    if len(sharers) < 2 or (not kind.sends and "sharer" not in kind.roles):
        return [None]
    if not (ways := kind.ways(task.shared)):
        able = [name for name in method_names() if method_class(name).ways(task.shared)]
        what = f"{mode} takes the message of one sharer, and --pair names {len(sharers)}."
        raise UserError(what, f"Name one, or use --mode {', '.join(able)}.")
    return [each for each in recipe.join if each in ways] or [ways[0]]


def proofs_of(
    recipe: Recipe, tasks: Sequence[Task], variants: Mapping[str, Sequence[Variant]]
) -> dict[Path, list[Proof]]:
    """The proofs of every adapter that is run. A method that sends nothing needs none.

    Raises UserError for a proof that does not hold, and under --require-proof where there is none for a
    task.
    """
    found: dict[Path, list[Proof]] = {}
    for task in tasks:
        scoring = recipe.scoring or task.default_scoring
        for variant in variants[task.name]:
            if not method_class(variant.mode).sends:
                continue
            wording = task.prompt.sha256 if task.prompt else None
            asked: dict[str, Any] = {"task": task.name, "task_options": task.options, "scoring": scoring}
            asked |= {"shots": task.shots or None, "prompt_sha256": wording}
            for folder in variant.adapters:
                if folder not in found:
                    found[folder] = read_proofs(folder)
                if recipe.require_proof:
                    check_proven(folder, found[folder], asked | {"mode": variant.mode, "wire": variant.wire})
    return found


def check_proven(folder: Path, proofs: Sequence[Proof], asked: Mapping[str, Any]) -> None:
    """Raises UserError unless a proof of an adapter speaks of what is asked."""
    if why := lacking(folder.name, proofs, asked):
        raise UserError(
            f"--require-proof: {why}.",
            f"Run it without, with --control matched,deranged, then: lcfbench adapter prove {folder}",
        )
