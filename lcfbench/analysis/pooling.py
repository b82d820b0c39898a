"""Several tasks, or several trainings of one adapter, drawn as one.

    from lcfbench.analysis.pooling import averaged
    pooled = averaged(read_run_groups(paths).groups)
    summarise(pooled.groups), pooled.left_out

An average over tasks is the mean over all their documents, so it is weighted by their numbers. Every
method has the same documents: a run that has more is cut to them, one that has fewer is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lcfbench.analysis.families import members
from lcfbench.analysis.naming import labels
from lcfbench.analysis.recorded import TIMED, Documents, Packed, Recorded
from lcfbench.analysis.run_groups import RunGroup, badness, grouped
from lcfbench.errors import UserError
from lcfbench.provenance import digest
from lcfbench.results.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

TOGETHER = " + "  # between the tasks of an average
# of the identity: what another task changes
OF_THE_TASK = (
    *("task_options", "limit"),
    *(f"{name}_sha256" for name in ("task", "data", "split_manifest", "calibration", "prompts")),
)


@dataclass
class Pooled:
    """Groups drawn as one each, and a sentence for each that could not be."""

    groups: list[RunGroup]
    left_out: list[str]


def averaged(groups: Sequence[RunGroup]) -> Pooled:
    """Returns one group for all tasks of each method, control, pair and scoring.

    Times, bytes and operations are the means of the tasks' medians, weighted as the scores. Raises
    UserError: fewer than two tasks, no scoring common to all, scores of several metrics, and no method
    with all tasks.
    """
    found = Pooled([], [])
    tasks = list(dict.fromkeys(group.task for group in groups if group.n))
    if len(tasks) < 2:
        what = f"an average needs several tasks; here is only {tasks[0]}." if tasks else "no runs to average."
        raise UserError(what, "Name runs of several, or leave out --average.")
    runs: list[Recorded] = []
    for pair, scoring in dict.fromkeys((group.pair, group.scoring) for group in groups):
        mine = [g for g in groups if (g.pair, g.scoring) == (pair, scoring) and g.n]
        if {group.task for group in mine} == {*tasks}:
            _same_metric(mine)
            runs += _of_one_scoring(mine, tasks, found.left_out)
        elif mine:
            there = ", ".join(dict.fromkeys(group.task for group in mine))
            found.left_out.append(f"{pair} ({scoring}): only {there} of {len(tasks)} tasks")
    if not runs:
        reasons = "; ".join(found.left_out[:4])
        raise UserError(
            f"no method was run on all of {', '.join(tasks)} ({reasons}).", "Name tasks with --task."
        )
    found.groups = grouped(runs)
    return found


def _same_metric(groups: Sequence[RunGroup]) -> None:
    metrics = {group.task: group.metric for group in groups}
    if len(set(metrics.values())) > 1:
        told = ", ".join(f"{task} {metric}" for task, metric in metrics.items())
        what = f"tasks with different metrics have no average ({told})."
        raise UserError(what, "Name tasks of one metric with --task.")


def _of_one_scoring(groups: Sequence[RunGroup], tasks: Sequence[str], left_out: list[str]) -> list[Recorded]:
    """One run for each method, control and seed that has the documents of every task."""
    names = {id(group): member.short for group, member in zip(groups, members(groups), strict=True)}
    wanted = {task: _documents([g for g in groups if g.task == task]) for task in tasks}
    together: dict[str, list[RunGroup]] = {}
    for group in groups:
        together.setdefault(_method(group), []).append(group)
    found = []
    for mine in together.values():
        name = f"{names[id(mine[0])]} ({mine[0].control})"
        chosen, why = _one_each(mine, wanted)
        if why:
            left_out.append(f"{name} is left out: {why}")
            continue
        for place in range(len(chosen[0].runs)):
            found.append(_merged([group.runs[place] for group in chosen], [*wanted.values()]))
    return found


def _one_each(groups: Sequence[RunGroup], wanted: Mapping[str, np.ndarray]) -> tuple[list[RunGroup], str]:
    """One group for each task with all its documents; else why not."""
    import numpy as np

    found = []
    for task, codes in wanted.items():
        of_it = [group for group in groups if group.task == task]
        whole = [group for group in of_it if np.isin(codes, group.codes).all()]
        if not of_it:
            return [], f"not run on {task}"
        if not whole:
            most = max(int(np.isin(codes, group.codes).sum()) for group in of_it)
            return [], f"{most:,} of the {len(codes):,} documents of {task}"
        whole = [group for group in whole if group.n == len(codes)] or whole
        if len(whole) > 1:
            runs = ", ".join("+".join(group.run_ids) for group in whole[:3])
            return [], f"{len(whole)} runs of {task} fit ({runs}); name one of them"
        found += whole
    if len({group.seeds for group in found}) > 1:
        return [], "its tasks were run with different seeds"
    return found, ""


def _documents(groups: Sequence[RunGroup]) -> np.ndarray:
    """The documents that most runs of a task have; of equals those that keep the most answers."""
    import numpy as np

    counts = Counter(group.codes.tobytes() for group in groups)
    sets = {group.codes.tobytes(): group.codes for group in groups}

    def worth(key: bytes) -> tuple[int, int, int]:
        within = sum(bool(np.isin(sets[key], group.codes).all()) for group in groups)
        return counts[key], within * len(sets[key]), len(sets[key])

    return sets[max(sets, key=worth)]


def _method(group: RunGroup) -> str:
    """What runs of one method and control on several tasks have in common."""
    identity = {k: v for k, v in group.identity.items() if k not in (*OF_THE_TASK, "task", "seed", "plugins")}
    plugins = group.identity.get("plugins") or {}
    code = {name: found for name, found in plugins.items() if not name.startswith("tasks/")}
    return digest([identity, code, group.mode, group.control])


def _merged(runs: Sequence[Recorded], wanted: Sequence[np.ndarray]) -> Recorded:
    """One run of several tasks' runs. wanted: codes of each task's documents."""
    import numpy as np
    import pyarrow as pa

    keep = [np.isin(run.codes, codes) for run, codes in zip(runs, wanted, strict=True)]
    weights = np.array([mask.sum() for mask in keep], dtype=float)
    weights /= weights.sum()
    salts = [np.uint64(int(digest(run.names["task"])[:16], 16)) for run in runs]

    def whole(name: str) -> np.ndarray:
        return np.concatenate([getattr(run, name)[mask] for run, mask in zip(runs, keep, strict=True)])

    def mean(values: Sequence[float]) -> float:
        if len(set(values)) == 1:  # such as an adapter's size: exactly it
            return values[0]
        return float(np.dot(weights, np.array(values, dtype=float)))  # NaN where one is not known

    codes = [run.codes[mask] ^ salt for run, mask, salt in zip(runs, keep, salts, strict=True)]
    hashes = [run.hashes.filter(pa.array(mask)) for run, mask in zip(runs, keep, strict=True)]
    timed = {}
    for name in TIMED:
        parts = [run.timed[name] for run in runs]
        medians = [float(np.median(values)) if len(values) else np.nan for _, values in parts]
        places = [part[0] ^ salt for part, salt in zip(parts, salts, strict=True)]
        at = np.concatenate(places) if not np.isnan(mean(medians)) else np.zeros(0, np.uint64)
        timed[name] = at, np.full(len(at), mean(medians))
    return replace(
        runs[0],
        run_id="+".join(run.run_id for run in runs),
        names={**runs[0].names, "task": TOGETHER.join(run.names["task"] for run in runs), "subject": ""},
        manifest=_manifest(runs, mean),
        documents=Documents.of(pa.chunked_array(hashes, pa.string()), np.concatenate(codes)),
        packed=Packed(whole("scores")),
        failed_at=np.flatnonzero(whole("failed")),
        sends=any(run.sends for run in runs),
        timed=timed,
        typical={name: mean([run.typical[name] for run in runs]) for name in runs[0].typical},
        mean_amortized_ms=mean([run.mean_amortized_ms for run in runs]),
        prompts={},
        subjects={},
    )


def _manifest(runs: Sequence[Recorded], mean: Callable[[Sequence[float]], float]) -> Manifest:
    """The first one's, with the identities of all tasks and the mean chance."""
    identities = {run.names["task"]: run.manifest.identity for run in runs}
    identity = {k: v for k, v in runs[0].manifest.identity.items() if k != "limit"}  # cut to one size
    for name in [name for name in identity if name in OF_THE_TASK]:
        identity[name] = {task: found.get(name) for task, found in identities.items()}
    identity["task"] = TOGETHER.join(identities)
    if plugins := {k: v for found in identities.values() for k, v in (found.get("plugins") or {}).items()}:
        identity["plugins"] = plugins
    chances = [run.manifest.chance for run in runs]
    chance = None if any(one is None for one in chances) else mean([one or 0.0 for one in chances])
    state = min((run.manifest.state for run in runs), key=badness)
    return runs[0].manifest.model_copy(update={"identity": identity, "chance": chance, "state": state})


def pool_adapters(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Returns the groups; those of adapters that differ in their training seed only are one each.

    Its score of a document is the mean over the adapters, and `seed_scores` has one for each run.
    """
    together: dict[str, list[RunGroup]] = {}
    for group in groups:
        together.setdefault(_training(group), []).append(group)
    found = []
    for mine in together.values():
        adapters = sorted({str(group.identity.get("adapter_sha256")) for group in mine})
        if len(adapters) < 2 or len(adapters) < len(mine):
            found += mine
            continue
        identity = {**mine[0].identity, "adapter_sha256": digest(adapters), "adapter_config": None}
        found.append(
            RunGroup([run for group in mine for run in group.runs], identity, adapters=len(adapters))
        )
    for group, label in zip(found, labels(found), strict=True):
        group.label = label + (f", {group.adapters} adapters" if group.adapters > 1 else "")
    return found


def _training(group: RunGroup) -> str:
    """What adapters have in common that differ in the seed of their training."""
    facts = group.manifest.adapter_facts
    if facts is None or group.adapters > 1:
        return "+".join(group.run_ids)
    training = {k: v for k, v in facts.training.items() if k not in ("seed", "data_seed")}
    apart = ("adapter_sha256", "adapter_config")
    identity = {k: v for k, v in group.identity.items() if k not in apart}
    return digest([identity, facts.kind, facts.options, facts.layers, training, group.task])
