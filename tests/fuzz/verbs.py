"""Every verb of the command line, and the files of the world that it reads: a line each.

A line is: the command; the files or folders that are damaged, one a case; the places that it may
write. `{lcf}` and the like are the names of recorded runs. `tests/fuzz/test_fuzz.py` fails for a
verb that is in no line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One command. good: a text that stdout has whatever is damaged, for the good run stands beside."""

    command: str
    reads: str = ""
    writes: str = "out"
    good: str = ""
    slow: bool = True  # loads models


RUNS = "results/{lcf} journals/{lcf}"
FP = "--dtype float32 --batch-size 2"
OWN = "tasks mirror/datasets"
PAIR = "--pair models/receiver:models/sharer"
GRID = f"{PAIR} --mode receiver,lcf --adapter adapters/lcf --task splitfacts --dtype float32 "
GRID += "--prompt-tokens 40 --answer-tokens 1 --repeats 1 --warm-up 1"
PRUNE = f"{PAIR} --dev splitfacts --limit 2 --keep 1 {FP}"
ENRICH = f"--model models/receiver --task splitfacts --limit 2 {FP}"
PROBE = "--task splitfacts --minutes 0.5 --limit 4 --batch-size 2 --budget 3 --dtype float32"
TEACH = "--task planted --task-option people=32 --batch-size 4 --steps 2 --rank 2 --dtype float32"
TEXT = "--text text.txt --tokens 1200 --dtype float32"
LINES = [
    Line("run --recipe run.yaml --out out", "run.yaml models/receiver models/sharer adapters/lcf"),
    Line("run --recipe run.yaml --out results", "results/{lcf}", "results"),
    Line("run --recipe run.yaml --out journals", "journals/{lcf}", "journals"),
    Line(f"run {PAIR} {FP} --mode receiver --limit 3 --task tasks/mine.yaml --out out", OWN),
    Line(f"run {PAIR} {FP} --mode receiver --limit 3 --task table.csv --out out", "table.csv"),
    Line(
        f"run {PAIR} {FP} --mode t2t:budget=2,3,lcf --limit 2 --adapter adapters/lcf --out out",
        "adapters/lcf",
    ),
    Line("run --recipe run.yaml --dry-run", "run.yaml models/receiver models/sharer", slow=False),
    Line(f"run --dry-run --task tasks/mine.yaml {PAIR}", OWN, slow=False),
    Line("demo --limit 1 --out out"),
    Line("plan run.yaml --out results", "run.yaml results/{lcf} models/receiver", slow=False),
    Line("plan run.yaml --out journals --json", "journals/{lcf}", slow=False),
    Line("gather results journals --out out", RUNS, slow=False),
    Line("train --recipe train.yaml --out out/a", "train.yaml models/receiver models/sharer"),
    Line("train --recipe train.yaml --out training", "training", "training"),
    Line("show results", "results/{lcf}", good="receiver", slow=False),
    Line("show journals", "journals/{lcf}", good="receiver", slow=False),
    Line("show --json results/{lcf} journals", RUNS, good="receiver", slow=False),
    Line("verdict results", "results/{lcf}", slow=False),
    Line("verdict --csv journals", "journals/{lcf}", slow=False),
    Line("compare results journals", RUNS, slow=False),
    Line("claims results journals --all", RUNS, slow=False),
    Line("check results journals --junit out/junit.xml", RUNS, slow=False),
    Line("report results journals -o out/r.html", RUNS, slow=False),
    Line("report results --markdown -o out/r.md", "results/{lcf}", slow=False),
    Line("plot frontier results journals --out out", RUNS, slow=False),
    Line("plot rate results --out out", RUNS, slow=False),
    Line("plot length results journals --out out --data out/l.csv", RUNS, slow=False),
    Line("plot training adapters/lcf --out out", "adapters/lcf", slow=False),
    Line(f"bench {GRID} --out out/b.json", "models/sharer adapters/lcf"),
    Line("ls runs --out results", "results/{lcf}", good="receiver", slow=False),
    Line("ls runs --out journals", "journals/{lcf}", good="receiver", slow=False),
    Line("ls adapters", "adapters/lcf", good="smollm2", slow=False),
    Line("ls tasks", "tasks", good="splitfacts", slow=False),
    Line("ls models", slow=False),
    Line("watch results --once", "results/{lcf}", good="receiver", slow=False),
    Line("watch journals --once --json", "journals/{lcf}", slow=False),
    Line("export jsonl results -o out/rows.jsonl", "results/{lcf}", slow=False),
    Line("export csv journals -o out/rows.csv", "journals/{lcf}", slow=False),
    Line("export eee results -o out/eee", "results/{lcf}", slow=False),
    Line("publish results --to out/published", "results/{lcf}", slow=False),
    Line(
        "adapter prove adapters/lcf --runs results", "adapters/lcf results/{lcf}", "adapters/lcf", slow=False
    ),
    Line("lm-eval ls tasks", slow=False),
    Line("task new mine --from table.csv --out out", "table.csv", slow=False),
    Line(f"task check tasks/mine.yaml {PAIR}", OWN, slow=False),
    Line(f"task check table.csv {PAIR}", "table.csv", slow=False),
    Line(f"probe {PAIR} {PROBE} --out out/probe", "models/sharer"),
    Line("doctor --offline", "mirror", slow=False),
    Line(f"teach --model models/sharer {TEACH} --out out/t", "models/sharer"),
    Line(f"adapter find {PAIR} --mode lcf --task splitfacts", "adapters/lcf", slow=False),
    Line(f"adapter size {PAIR}", "models/receiver models/sharer", slow=False),
    Line(f"adapter compose adapters/lcf {PAIR} --out out/composed", "adapters/lcf", slow=False),
    Line("adapter info adapters/lcf", "adapters/lcf", slow=False),
    Line("adapter import-c2c fuser --out out/c2c", "fuser", slow=False),
    Line(f"adapter prune adapters/lcf {PRUNE} --out out/p", "adapters/lcf models/receiver"),
    Line("adapter push adapters/lcf org/new", "adapters/lcf", slow=False),
    Line("adapter pull org/tiny --out out/tiny", "mirror/adapters", slow=False),
    Line("message show kept", "kept/{kept}", slow=False),
    Line("message show kept/{kept} --document 1 --json", "kept/{kept}", slow=False),
    Line("message replay kept", "kept/{kept} adapters/lcf models/receiver"),
    Line(f"oracle enrich {ENRICH} --out oracle", "oracle/{oracle} models/receiver", "oracle"),
    Line(f"oracle transform {PAIR} {TEXT} --out out", "text.txt models/sharer"),
]
