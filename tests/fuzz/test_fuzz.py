"""Damaged files and odd flags, for every verb: one line and a documented exit code, never more harm.

Each case is one command in a copy of a small world, with one file damaged or two flags set to odd
values. It must end by itself with a documented code, print no traceback and no control character,
touch nothing but the places it may write, and leave the good runs beside it as they are.

`LCFBENCH_FUZZ=20` tries twenty times as many cases; `LCFBENCH_FUZZ_SEED=3` other ones;
`LCFBENCH_FUZZ_REPORT=FILE` writes all faults there as lines of JSON instead of failing at the first.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lcfbench.cli.app import app
from lcfbench.errors import Exit
from tests.fuzz.damage import ESC, hurt
from tests.fuzz.verbs import LINES, Line
from tests.fuzz.world import Outcome, World, frames

MORE = float(os.environ.get("LCFBENCH_FUZZ", "1"))
SEED = int(os.environ.get("LCFBENCH_FUZZ_SEED", "0"))
REPORT = os.environ.get("LCFBENCH_FUZZ_REPORT", "")
QUICK, SLOW = 3, 2  # cases of a line and file, without and with models
LONGEST = 1500  # characters of an error
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OUR_PATHS = {"--to", "--out", "--junit"}
LONG = {"--steps", "--limit", "--tokens", "--repeats", "--warm-up", "--answer-tokens", "--prompt-tokens"}
LONG |= {"--budget", "--train-documents", "--dev-documents", "--latency-documents", "--minutes"}
ODD = [
    "",
    " ",
    "-1",
    "0",
    "1",
    "abc",
    "1e3",
    "nan",
    "inf",
    "010",
    "1_0",
    "１２",
    "1.5",
    ESC,
    "\u202ex",
    "<b>",
    "a,b,,a",
]
ODD += [
    "a:b",
    ":",
    "k=v",
    "=",
    "k=",
    "../x",
    "run.yaml",
    "models",
    "nosuch/x",
    "*",
    "-",
    "--",
    "é鍵",
    "x" * 5000,
    "none",
]
HUGE = [
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "1e400",
    "9" * 5000,
]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The verbs of the command line with their parameters, as a user can call them."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            declare = getattr(one.callback, "declare", None)
            yield " ".join((*path, name)), declare(name) if declare else one


VERBS = dict(commands(typer.main.get_command(app)))


def verb_of(line: Line) -> str:
    words = line.command.split()
    return next(v for v in (" ".join(words[:2]), words[0]) if v in VERBS)


CASES = [(i, kind) for i, line in enumerate(LINES) for kind in (*line.reads.split(), "flags")]


def test_every_verb_has_a_line() -> None:
    assert {verb_of(line) for line in LINES} == set(VERBS)


@pytest.mark.parametrize(("at", "kind"), CASES, ids=[f"{LINES[i].command[:40]}|{k}" for i, k in CASES])
def test_hostile(world: World, at: int, kind: str) -> None:
    line = LINES[at]
    first = True
    count = max(1, round(MORE * (SLOW if line.slow else QUICK)))

    @seed(zlib.crc32(f"{line.command}|{kind}|{SEED}".encode()))
    @settings(
        max_examples=count + 1,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        nonlocal first
        world.reset()
        argv = line.command.format(**world.names).split()
        if kind == "flags":
            argv += odd_flags(data, verb_of(line))
            how = " ".join(argv)
        else:
            how = hurt(data, world.now / "work" / kind.format(**world.names))
        if first:  # hypothesis begins with the simplest case, the same for every line
            first = False
            return
        before = world.files(world.now)
        done = world.run(argv)
        faults = judge(world, line, kind, done, before)
        if REPORT:
            facts = {"verb": verb_of(line), "command": line.command, "kind": kind, "how": how[:300]}
            facts |= {"code": done.code, "seconds": done.seconds, "faults": faults, "err": done.err[-600:]}
            with open(REPORT, "a") as file:
                file.write(json.dumps(facts) + "\n")
        else:
            assert not faults, f"{how}\n{faults}\n{done.out[-1000:]}\n{done.err[-4000:]}"

    attack()


def odd_flags(data: st.DataObject, verb: str) -> list[str]:
    """One or two flags of a verb with odd values."""
    options = [p for p in VERBS[verb].params if p.opts[0].startswith("-") and not OUR_PATHS & set(p.opts)]
    out = []
    for _ in range(data.draw(st.integers(1, 2)) if options else 0):
        option = data.draw(st.sampled_from(options))
        name = data.draw(st.sampled_from([*option.opts, *option.secondary_opts]))
        out.append(name)
        if not option.is_flag and option.name != "help":
            huge = [] if LONG & set(option.opts) else HUGE
            out.append(
                data.draw(st.one_of(st.sampled_from([*ODD, *huge]), st.text(max_size=9))).replace("\x00", "")
            )
    if not options or data.draw(st.integers(0, 4)) == 0:
        out.append(data.draw(st.sampled_from(["--nosuch", "extra", "--help", ESC, "--nosuch=" + ESC])))
    return [text.encode("utf-8", "replace").decode() for text in out]


def judge(world: World, line: Line, kind: str, done: Outcome, before: dict[str, str]) -> list[str]:
    """The faults of one case, each as `what: details`."""
    faults = []
    if "Traceback (most recent" in done.err or "Exception ignored" in done.err:
        faults.append(f"traceback: {frames(done.err)}")
    if done.hung:
        faults.append(f"hung: {done.seconds} s")
    elif done.code not in set(Exit):
        faults.append(f"code: {done.code}")
    errors = [text for text in done.err.splitlines() if text.startswith("lcfbench: ")]
    if done.code == Exit.USER and not (len(errors) == 1 and done.err.rstrip().splitlines()[-1] == errors[0]):
        faults.append(f"message: {len(errors)} error lines")
    if any(len(text) > LONGEST for text in errors):
        faults.append(f"message: {max(map(len, errors))} characters")
    for name, text in (("stdout", done.out), ("stderr", done.err)):
        if found := CONTROL.search(text):
            faults.append(
                f"control: {found[0]!r} on {name}: {text[max(found.start() - 40, 0) : found.end() + 10]!r}"
            )
    may = [world.now / "work" / place for place in line.writes.format(**world.names).split()]
    locks = tuple(str(place.with_name(f".{place.name}.lock")) for place in may)
    may += [world.now / "cache", world.now / "tmp", world.root / "matplotlib", world.root / "inductor"]
    may += [world.root / "rustup", Path("/dev"), Path("/proc")]
    after = world.files(world.now)
    changed = [str(world.now / p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
    for path in {*changed, *(path for event, path in done.log if event != "starts")}:
        if not any(Path(path).is_relative_to(place) for place in may) and not path.startswith(locks):
            faults.append(
                f"touched: {Path(path).relative_to(world.root) if path.startswith(str(world.root)) else path}"
            )
    if left := [p for p in after if p.startswith("tmp/")]:
        faults.append(f"left: {left[:3]}")
    faults += [f"started: {what}" for event, what in done.log if event == "starts"]
    if any("pwned" in p for p in after):
        faults.append("started: code of a file")
    if line.good and kind != "flags" and not (done.code == Exit.OK and line.good in done.out):
        faults.append(f"good run hidden: code {done.code}")
    return faults
