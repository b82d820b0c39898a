"""A small world of files that every verb can work on, and the commands that run in a copy of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from tests import helpers
from tests.fuzz.verbs import ENRICH

SERVER = Path(__file__).with_name("server.py")
PAIR = "models/receiver:models/sharer"
RECIPE = {
    "pair": PAIR,
    "mode": ["receiver", "lcf"],
    "task": ["splitfacts"],
    "control": ["matched"],
    "adapter": ["adapters/lcf"],
    "limit": 3,
    "batch_size": 2,
    "dtype": "float32",
    "latency_documents": 0,
}
TRAINING = {
    "adapters": ["lcf"],
    "pair": PAIR,
    "task": ["splitfacts"],
    "steps": 3,
    "batch_size": 2,
    "eval_every": 2,
    "save_every": 1,
    "dev_documents": 2,
    "dtype": "float32",
    "options": {"width": 8},
}
TASK = """\
task: mine
dataset_path: own/mine
dataset_name: main
test_split: test
validation_split: test
training_split: test
output_type: multiple_choice
process_docs: !function mine_docs.docs
doc_to_text: "Question: {{question}}\\n"
gen_prefix: "Answer:"
doc_to_choice: options
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata:
  version: 1
  description: Questions of our own.
  licence: ours
  context: shared
  default_scoring: cloze
  scorings:
    cloze: {primary: acc}
"""
PROCESS = """\
from lcfbench.tasks.process_docs import per_row


@per_row
def docs(row, index):
    options = [row["a"], row["b"]]
    return {"id": row["id"], "question": row["question"], "options": options, "gold": row["gold"]}
"""


@dataclass
class Outcome:
    """The end of one command. log: pairs of an event and the path that it changed."""

    argv: list[str]
    code: int
    hung: bool
    seconds: float
    out: str
    err: str
    log: list[tuple[str, str]] = field(default_factory=list)


class World:
    """The template in `root/box`, the copy that a case works on in `root/now`, and the process that forks.

    names: what `{lcf}` and the like stand for in the table of verbs.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.box, self.now = root, root / "box", root / "now"
        self.names: dict[str, str] = {}
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LCFBENCH_", "HF_"))},
            **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
            "PYTHONPATH": os.environ.get("PYTHONPATH") or str(helpers.ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUTF8": "1",
            "MPLBACKEND": "agg",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "RUSTUP_HOME": str(root / "rustup"),  # pip asks rustc for its version
            "HF_HOME": str(self.now / "cache" / "hf"),
            "HOME": str(self.now / "home"),
            "MPLCONFIGDIR": str(root / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
            "TMPDIR": str(self.now / "tmp"),
            "LCFBENCH_CACHE": str(self.now / "cache"),
            "LCFBENCH_MIRROR": str(self.now / "work" / "mirror"),
            "COLUMNS": "200",
        }
        (self.now / "tmp").mkdir(parents=True)
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(root / "server.log", "w"),  # noqa: SIM115
            text=True,
            env=environment,
        )
        self._answer()
        self._make()

    def _answer(self) -> Any:
        assert self.server.stdout
        line = self.server.stdout.readline()
        assert line, (self.root / "server.log").read_text()[-2000:]
        return json.loads(line)

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(30)

    def reset(self) -> None:
        """Puts everything back as it was."""
        shutil.rmtree(self.now, ignore_errors=True)
        shutil.copytree(self.box, self.now, symlinks=True)

    def run(self, argv: list[str], **how: Any) -> Outcome:
        """`lcfbench …` in the copy, with limits as `server.child` takes them."""
        return self.together([{"argv": argv, **how}])[0]

    def together(self, commands: list[dict[str, Any]]) -> list[Outcome]:
        """Several commands side by side. Each is `argv`, and perhaps `delay` (seconds) and limits."""
        asked = []
        for i, one in enumerate(commands):
            files = {name: str(self.root / f"{name}{i}") for name in ("stdout", "stderr", "log")}
            for path in files.values():
                Path(path).unlink(missing_ok=True)
            asked.append({"cwd": str(self.now / "work"), "seconds": 60, "wall": 180, **files, **one})
        assert self.server.stdin
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        return [self._outcome(one, answer) for one, answer in zip(asked, self._answer(), strict=True)]

    def _outcome(self, asked: dict[str, Any], answer: dict[str, Any]) -> Outcome:
        texts = [
            Path(asked[n]).read_bytes().decode(errors="replace") if Path(asked[n]).is_file() else ""
            for n in ("stdout", "stderr", "log")
        ]
        log = [tuple(json.loads(line)) for line in texts[2].splitlines()]
        return Outcome(asked["argv"], answer["code"], answer["hung"], answer["seconds"], *texts[:2], log)

    def files(self, folder: Path) -> dict[str, str]:
        """Every file, link and folder below, with a digest of its content."""
        return dict(_walk(folder))

    def _make(self) -> None:
        shutil.rmtree(self.now)
        work = self.now / "work"
        for name in ("work", "home", "cache", "tmp"):
            (self.now / name).mkdir(parents=True)
        (self.now / "home" / "notes.txt").write_text("mine\n")
        helpers.save(work / "models" / "receiver", layers=2)
        helpers.save(
            work / "models" / "sharer", bos=True, family="qwen3", layers=2, heads=1, vocabulary=330, seed=1
        )
        (work / "run.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        (work / "train.yaml").write_text(yaml.safe_dump(TRAINING, sort_keys=False))
        (work / "text.txt").write_text("\n\n".join(f"{i}. {t}" for i in range(12) for t in helpers.TEXT))
        rows = "".join(f"Which is {i}?,{i},{i + 1},{'ab'[i % 2]}\n" for i in range(8))
        (work / "table.csv").write_text(f"question,a,b,answer\n{rows}")
        self._make_task(work)
        self._make_fuser(work / "fuser")
        self._good("train --recipe train.yaml --out adapters/lcf")
        self._killed("train --recipe train.yaml --out training", "training/checkpoint.pt")
        shutil.copytree(work / "adapters" / "lcf", work / "mirror" / "adapters" / "org" / "tiny")
        self._good("run --recipe run.yaml --control matched,deranged --out results")
        self._good(f"oracle enrich {ENRICH} --out oracle")
        for path in sorted((work / "results").iterdir()):
            mode, _, control = path.name.split("-")[:3]
            self.names[f"{mode}_{control}" if control != "matched" else mode] = path.name
        self._good("run --recipe run.yaml --control matched --keep-messages --out kept")
        self.names["kept"] = next(p.name for p in (work / "kept").iterdir() if p.name.startswith("lcf-"))
        self.names["oracle"] = next(p.name for p in sorted((work / "oracle").iterdir()) if p.is_dir())
        self._make_journal(work)
        shutil.move(self.now, self.box)
        self.reset()

    def _good(self, command: str) -> None:
        done = self.run(command.split())
        assert done.code == 0, (command, done.code, done.err)

    def _killed(self, command: str, trigger: str) -> None:
        kills = [(str(self.now / "work" / trigger), signal.SIGKILL)]
        assert self.run(command.split(), kills=kills).code < 0

    def _make_task(self, work: Path) -> None:
        rows = [
            {"id": f"q{i}", "question": f"Which is {i}?", "a": f"{i}", "b": f"{i + 1}", "gold": i % 2}
            for i in range(8)
        ]
        helpers.keep_table(work / "mirror", "own/mine", "main", "test", rows)
        (work / "tasks").mkdir()
        (work / "tasks" / "mine.yaml").write_text(TASK)
        (work / "tasks" / "mine_docs.py").write_text(PROCESS)

    def _make_journal(self, work: Path) -> None:
        """`journals`: the runs of `results` as a kill leaves them: rows in a journal, no parquet file."""
        import pyarrow.parquet as pq

        shutil.copytree(work / "results", work / "journals")
        for folder in (work / "journals").iterdir():
            rows = pq.ParquetFile(folder / "samples.parquet").read().to_pylist()
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "samples.parquet").unlink()
            (folder / "samples.jsonl").write_text(text)
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "state": "running"}))

    def _make_fuser(self, folder: Path) -> None:
        """A fuser in C2C's released layout: two projectors of random weights."""
        size = {
            "source_dim": 8,
            "target_dim": 8,
            "source_num_heads": 1,
            "target_num_heads": 2,
            "hidden_dim": 6,
            "intermediate_dim": 5,
            "num_layers": 3,
        }
        (folder / "final").mkdir(parents=True)
        model = {"base_model": "a", "teacher_model": "b", "is_do_alignment": False}
        (folder / "config.json").write_text(json.dumps({"model": model}))
        layers = {"0": {"1": {"0": [[0, 0]], "1": [[1, 1]]}}}
        (folder / "final" / "projector_config.json").write_text(json.dumps(layers))
        for i in range(2):
            described = {"class": "C2CProjector", "init_args": {**size, "dropout": 0.1}}
            (folder / "final" / f"projector_{i}.json").write_text(json.dumps(described))
            torch.save(projector(size), folder / "final" / f"projector_{i}.pt")


def projector(a: dict[str, int]) -> dict[str, torch.Tensor]:
    """The tensors of one C2C projector of these sizes."""
    torch.manual_seed(0)
    source, target = (a[f"{s}_num_heads"] * a[f"{s}_dim"] for s in ("source", "target"))
    hidden, inner, heads = a["hidden_dim"], a["intermediate_dim"], a["target_num_heads"]
    out = {"gate_temperature": torch.tensor(1.0)}
    for p in ("key", "value"):
        out[f"{p}_gate_logit"] = torch.tensor(1.0)
        for name, given, made in (
            ("in", source + target, hidden),
            ("scalar_head", hidden, heads),
            ("proj_out", hidden, target),
        ):
            out[f"{p}_{name}.weight"] = torch.randn(made, given)
            out[f"{p}_{name}.bias"] = torch.randn(made)
        for block, width in (("mlp1", inner), ("scalar_mlp2", hidden), ("proj_mlp2", inner)):
            out[f"{p}_{block}.blocks.0.norm.weight"] = torch.ones(hidden)
            out[f"{p}_{block}.blocks.0.w1.weight"] = torch.randn(width, hidden)
            out[f"{p}_{block}.blocks.0.w2.weight"] = torch.randn(hidden, width)
    return out


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                yield key, f"link {os.readlink(path)}"
            elif path.is_dir():
                yield key, "folder"
            elif path.is_file():
                yield key, hashlib.md5(path.read_bytes()).hexdigest()
            else:
                yield key, "special"


def frames(err: str) -> str:
    """The last exception of a traceback and the deepest line of the package in it."""
    ours = re.findall(r'File "[^"]*/lcfbench/([^"]+)", line (\d+), in (\w+)', err)
    last = [
        line
        for line in err.splitlines()
        if re.match(r"[\w.]+(Error|Exception|Warning|Interrupt|Exit)\b", line)
    ]
    deepest = ":".join(ours[-1]) if ours else "?"
    return f"{deepest} {last[-1][:160] if last else ''}"
