"""The page of a probe: a few tables and sentences for a terminal of 80 columns and for Markdown.

>>> page_of(recipe, folder, parts, seconds).sentence                          # doctest: +SKIP
'No: …'
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcfbench.analysis.tables import NONE, number, percent
from lcfbench.probing.gain import line_of
from lcfbench.probing.plan import ENOUGH_STEPS, FEWEST_STEPS
from lcfbench.probing.recipe import ProbeRecipe
from lcfbench.progress import duration
from lcfbench.tables import Column, Table
from lcfbench.tasks.own_files import SHARE

FEW_EXAMPLES = 500  # with fewer an adapter learns them by heart


@dataclass(frozen=True)
class Part:
    """A part of the page: its title, sentences, and a table where it has one."""

    title: str
    lines: list[str] = field(default_factory=list)
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """The page. sentence: the answer in plain words. command: what to do next."""

    title: str
    parts: list[Part]
    sentence: str
    command: str

    def markdown(self) -> str:
        """The page as Markdown."""
        blocks = [f"# {self.title}"]
        for part in self.parts:
            blocks.append(f"## {part.title}")
            if part.table is not None:
                blocks.append(part.table.markdown().strip())
            if part.lines:
                blocks.append("\n".join(f"- {line}" for line in part.lines))
        blocks += ["## Answer", self.sentence, f"```bash\n{self.command}\n```"]
        return "\n\n".join(blocks) + "\n"


def page_of(recipe: ProbeRecipe, folder: Path, parts: Mapping[str, Any], seconds: float) -> Page:
    """Makes the page of what has been found so far."""
    makers = (
        ("models", models),
        ("task", task),
        ("plan", plan),
        ("alone", alone),
        ("gain", gain),
        ("training", training),
    )
    shown = [make(parts, recipe) for name, make in makers if name in parts]
    if "verdict" in parts and parts["verdict"].get("lines"):
        shown.append(verdict(parts, recipe))
    sentence, command = answer(recipe, folder, parts)
    title = f"{recipe.task_name}: is a cache channel worth it for {recipe.pair}?"
    took = f"{duration(seconds)} of {recipe.minutes:g} minutes"
    shown.append(Part(f"in all {took}", [f"recorded in {folder}"]))
    return Page(title, shown, sentence, command)


# -- parts ----------------------------------------------------------------------------------------


def models(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """Models: what they are, and every check that failed."""
    part, lines = parts["models"], []
    for role in ("receiver", "sharer"):
        m = part[role]
        failed = [c for c in m["checks"] if not c["ok"]]
        worst = max((c["difference"] or 0.0 for c in m["checks"]), default=0.0)
        good = f"{len(m['checks'])} checks ok, rounding within {100 * worst:.2g} %"
        told = good if not failed else f"{len(failed)} of {len(m['checks'])} checks fail"
        shape = f"{m['parameters'] / 1e6:,.0f} M, {m['layers']} layers × {m['kv_heads']} × {m['head_dim']}"
        chat = "chat template" if m["chat"] else "no chat template"
        lines.append(f"{role} {m['name']}: {shape}, {m['dtype']} on {m['device']}, {chat}; {told}")
        lines += [f"  fails: {c['name']}{': ' if c['detail'] else ''}{c['detail']}" for c in failed]
    return Part(f"a. models ({took(part)})", lines)


def task(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """Task: numbers of documents, lengths of prompts, weights of messages."""
    part = parts["task"]
    rows = [
        [name, str(p["tokens"]), str(p["longest"]), f"{p['characters']:,}"]
        for name, p in part["prompts"].items()
    ]
    columns = [Column("prompt of"), *(Column(n, right=True) for n in ("tokens", "longest", "characters"))]
    count = f"{part['documents']:,}{' or more' if part['more'] else ''} documents"
    chance = "" if part["chance"] is None else f"; guessing gives {percent(part['chance'])} %"
    lines = [f"{count}, {part['context']} contexts; scored by {part['metric']} ({part['scoring']}){chance}"]
    if share := recipe.task_options.get(SHARE):
        lines.append(f"{share} % of the rows, by their hash, are kept to learn from and are not asked")
    if "plan" in parts:
        speed = parts["plan"]
        sizes = [f"text {speed['note_bytes']:,.0f}"]
        if learnt := speed["learnt"]:
            sizes.append(f"{part['mode']} ({learnt['kind']}) {learnt['message_bytes']:,.0f}")
        sizes.append(f"the sharer's whole cache {part['cache_bytes']:,}")
        lines.append(f"bytes of a message: {', '.join(sizes)}")
    if part["one_model"]:
        lines.append(
            "one model on both sides"
            + (": from the same text it can tell itself nothing new" if part["context"] == "shared" else "")
        )
    return Part(f"b. task ({took(part)})", lines, Table("", columns, rows))


def plan(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """Plan: how many documents and steps the minutes allow, by measured speeds."""
    part, p = parts["plan"], parts["plan"]["plan"]
    lines = []
    if part.get("untrainable"):
        lines.append(f"nothing is trained: {part['untrainable']}")
    elif not p["steps"]:
        lines.append(
            f"too little time to train: a step takes {part['learnt']['step']:.1f} s, {FEWEST_STEPS} are the "
            f"fewest that taught anything here; about {part['enough_minutes']} minutes would do"
        )
    else:
        lines.append(
            f"{p['steps']} training steps at {part['learnt']['step']:.1f} s "
            f"({duration(p['training_seconds'])}); {ENOUGH_STEPS} have taught a word to an adapter here"
        )
    if part.get("slower", 1.0) > 1.2:
        lines.append(
            f"the machine was then {part['slower']:.1f} times slower than measured: {p['steps']} steps"
        )
    lines.insert(0, f"{p['documents']} documents without training: {duration(p['baseline_seconds'])}")
    return Part(f"c. plan by measured speeds ({took(part)})", lines)


def alone(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """Scores that need no training."""
    part = parts["alone"]
    gained = parts.get("gain")
    if gained is None:
        return Part(f"d. without training ({took(part)})", [f"{part['documents']} documents"])
    names = {
        "receiver": "receiver alone",
        "sharer": "sharer alone",
        "either": "either of both",
        "full_context": "receiver, both contexts as text",
    }
    rows = [
        [label, percent(s["value"]), f"{percent(s['low'])}–{percent(s['high'])}"]
        for name, label in names.items()
        if (s := gained["scores"].get(name))
    ]
    columns = [Column(f"{gained['n']} documents"), Column("score %", right=True), Column("95 %", right=True)]
    lines = []
    if part.get("unfinished"):
        lines.append("not finished: the longest documents so far, which may be harder than the rest")
    if parts["task"]["chance"]:
        lines.append(f"with a sharer that guesses, either would be {percent(gained['guessing'])}")
    return Part(f"d. without training ({took(part)})", lines, Table("", columns, rows))


def gain(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """What could be gained, and what this many documents can show."""
    part, lines = parts["gain"], []
    names = {"full_context": "both contexts as text over the receiver", "either": "either over guessing"}
    for name, label in names.items():
        if g := part["gains"].get(name):
            lines.append(f"{label}: {points(g)}")
    if (o := part.get("oracle")) and "why" not in o:
        lines.append(f"a cache of the same length that has seen both contexts: {points(o)}, n={o['n']}")
    elif o:
        lines.append(f"the cache oracle was not measured: {o['why']}")
    least = part["detectable"]
    seen = (
        f"smallest content likely to be shown {100 * least:.0f} points"
        if least
        else "no content can be shown"
    )
    lines.append(
        f"with n={part['n']} a difference is known to about ±{100 * part['half_width']:.0f} points; {seen}"
    )
    if "verdict" in parts:
        lines += [f"stop: {reason}" for reason in parts["verdict"]["reasons"]]
    return Part(f"e. what could be gained ({took(part)})", lines)


def training(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """The short training: steps, examples, dev curve."""
    part, lines = parts["training"], []
    lines.append(
        f"{parts['task']['mode']}: {part['steps']} of {part['planned']} steps on the train split of "
        f"{part['source']}, {part['examples']:,} different examples"
    )
    if part["examples"] < FEW_EXAMPLES:
        lines.append(f"few examples: below about {FEW_EXAMPLES} an adapter may learn them by heart")
    if part["also_asked"]:
        lines.append(f"caution: {part['also_asked']} documents that are asked are among the examples")
    if part["out_of_time"]:
        lines.append("stopped by the time: the best state so far is used")
    if part["failed"]:
        lines.append(part["failed"])
    table = None
    if part["saved"]:
        rows = [
            [str(p["step"]), f"{p['loss']:.2f}", percent(p["matched"]), percent(p.get("deranged"))]
            for p in part["curve"]
        ]
        columns = [Column(n, right=True) for n in ("step", "loss", "dev matched %", "dev deranged %")]
        table = Table("", columns, rows)
    else:
        lines.append("no state was saved: there was no dev evaluation before the end")
    return Part(f"f. training ({took(part)})", lines, table)


def verdict(parts: Mapping[str, Any], recipe: ProbeRecipe) -> Part:
    """Methods that send something: score, content, cost."""
    lines = parts["verdict"]["lines"]
    rows = []
    for line in lines:
        if line["control"] != "matched" or not line["verdict"]:
            continue
        size = NONE if line["adapter_mb"] is None else f"{line['adapter_mb']:.1f}"
        rows.append(
            [
                line["mode"],
                percent(line["score"]),
                _range(line, "content"),
                number(line["ttft_ms"]),
                size,
                number(line["message_bytes"]),
                line["verdict"],
            ]
        )
    if (receiver := line_of(lines, "receiver")) is not None:
        rows.insert(
            0, ["receiver", percent(receiver["score"]), NONE, number(receiver["ttft_ms"]), NONE, NONE, ""]
        )
    heads = ("score\n%", "content [95 %]\npoints", "first\ntoken ms", "adapter\nMB", "message\nbytes")
    columns = [Column("method"), *(Column(h, right=True) for h in heads), Column("verdict", wrap=True)]
    told = ["content: own message minus another document's message"]
    if against := parts["verdict"].get("against_text"):
        told.append(f"{parts['task']['mode']} minus text: {points(against)}")
    seconds = parts["trained"]["seconds"] if "trained" in parts else parts["verdict"]["seconds"]
    return Part(f"g. messages and controls ({duration(seconds)})", told, Table("", columns, rows))


# -- the answer -----------------------------------------------------------------------------------


def answer(recipe: ProbeRecipe, folder: Path, parts: Mapping[str, Any]) -> tuple[str, str]:
    """The plain sentence, and the next command."""
    if "verdict" not in parts:
        return "Not known yet: the time was over before the end; the same command goes on.", again(recipe)
    end = parts["verdict"]
    if end["reason"] == "models":
        return (
            "Not known: a model does not compute here what it should, so its numbers would mean nothing.",
            again(recipe, dtype="float32", attention="eager"),
        )
    trained = line_of(end["lines"], parts["task"]["mode"]) if "trained" in parts else None
    if trained is not None:
        return judged(recipe, folder, parts, trained)
    return untrained(recipe, parts)


def untrained(recipe: ProbeRecipe, parts: Mapping[str, Any]) -> tuple[str, str]:
    """The answer where no adapter was trained."""
    end, asked, speed = parts["verdict"], parts["task"], parts["plan"]
    text = line_of(end["lines"], "t2t")
    crosses = text is not None and text["verdict"] == "communicates"
    said = f"Written text {'communicates' if crosses else 'is not shown to communicate'} here."
    if end["reasons"]:
        why = " and ".join(end["reasons"])
        sentence = f"No: {why}, so there is nothing for a cache channel to bring. {said}"
        if asked["scoring"] == "letters" and "cloze" in asked["scorings"]:
            return sentence, again(recipe, scoring="cloze")
        return sentence, again(recipe, train_anyway=True)
    if why := speed.get("untrainable"):
        source = "openbookqa" if asked["context"] == "shared" else "splitfacts"
        sentence = f"Not known: nothing could be learnt from this task: {why} {said}"
        return sentence, again(recipe, train_task=source)
    if failed := parts.get("training", {}).get("failed"):
        return f"Not known: nothing could be trained: {failed} {said}", again(
            recipe, minutes=2 * recipe.minutes
        )
    minutes = speed["enough_minutes"]
    if "training" in parts:
        why = "the training was too slow for its time"
        return f"Not known: {why}. {said}", again(recipe, minutes=2 * recipe.minutes)
    few = f"{recipe.minutes:g} minutes are too few to train; about {minutes} would do"
    return f"Not known: {few}. {said}", again(recipe, minutes=minutes)


def judged(
    recipe: ProbeRecipe, folder: Path, parts: Mapping[str, Any], line: Mapping[str, Any]
) -> tuple[str, str]:
    """The answer where an adapter was trained and measured."""
    end, mode, n = parts["verdict"], line["mode"], line["n"]
    content = f"content {_range(line, 'content')} points, n={n}"
    longer = again(recipe, minutes=2 * recipe.minutes)
    steps = parts["training"]["steps"]
    if line["verdict"] == "communicates":
        text, against = line_of(end["lines"], "t2t"), end["against_text"]
        cost = f"{number(line['message_bytes'])} bytes and {number(line['ttft_ms'])} ms to the first token"
        if text is not None:
            cost += f" (text: {number(text['message_bytes'])} bytes, {number(text['ttft_ms'])} ms)"
        how = (
            "better than text"
            if against["low"] > 0
            else "worse than text"
            if against["high"] < 0
            else "not surely other than text"
        )
        tasks = shlex.quote(recipe.task)
        more = (
            f"lcfbench run --pair {shlex.quote(recipe.pair)} --task {tasks} --mode receiver,t2t,{mode} "
            f"--control matched,deranged --adapter {shlex.quote(str(folder / 'adapter'))} --limit 400"
        )
        if line["gain_low"] is not None and line["gain_low"] > 0:
            if against["high"] < 0:
                word = "Rather not, text does better"
            else:
                good = against["low"] > 0 or cheaper(line, text)
                word = "Yes" if good else "Yes, but text does as well"
            crosses = f"what the sharer knows crosses through {mode} ({content})"
            return f"{word}: {crosses}, {how}, at {cost}.", more
        crosses = f"what the sharer knows crosses through {mode} ({content})"
        unsure = f"the score is not surely above the receiver alone after {steps} steps"
        return f"Not known: {crosses}, but {unsure}.", longer
    if line["verdict"] in ("adapts only", "does not communicate", "misleads"):
        done = line["verdict"].replace("adapts", "adapts the receiver")
        return f"No, not after {steps} training steps: {mode} {done} ({content}).", longer
    least = parts["gain"]["detectable"]
    small = f" and contents below {100 * least:.0f} points stay unseen" if least else ""
    return f"Not known: {mode} after {steps} steps shows no sure content ({content}){small}.", longer


def cheaper(line: Mapping[str, Any], text: Mapping[str, Any] | None) -> bool:
    """Whether the method is faster to its first token than text."""
    return (
        text is not None
        and None not in (line["ttft_ms"], text["ttft_ms"])
        and line["ttft_ms"] < text["ttft_ms"]
    )


def again(recipe: ProbeRecipe, **changed: Any) -> str:
    """The command of this probe with some settings changed."""
    given = (
        recipe.model_dump(mode="json", exclude_unset=True)
        | {"task": recipe.task, "pair": recipe.pair}
        | changed
    )
    if changed:
        given.pop("out", None)
    given.pop("fresh", None)
    words = ["lcfbench", "probe"]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            short = "-o" if name == "options" else "--task-option"
            words += [w for k, v in value.items() for w in (short, f"{k}={v}")]
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


# -- words ----------------------------------------------------------------------------------------


def took(part: Mapping[str, Any]) -> str:
    """Time that a part took."""
    return duration(part["seconds"])


def points(found: Mapping[str, Any]) -> str:
    """A difference in points with its interval."""
    return f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}] points"


def _range(line: Mapping[str, Any], name: str) -> str:
    if line[name] is None:
        return NONE
    return f"{100 * line[name]:+.1f} [{100 * line[f'{name}_low']:+.1f}, {100 * line[f'{name}_high']:+.1f}]"
