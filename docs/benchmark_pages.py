"""Makes a page a benchmark, `docs/benchmarks/*.md`, from the task files and from measured summaries.

python docs/benchmark_pages.py --from results/    # puts the summaries of these runs into measured.json
python docs/generate.py                           # writes the pages, with all others

`measured.json` holds counts and scores, and no text of any data set.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from lcfbench.errors import UserError
from lcfbench.sources.cache import EMBEDDED_PAIR
from lcfbench.tasks.yaml_files import describe, read_task, task_names

FOLDER = Path(__file__).parent / "benchmarks"
MEASURED = FOLDER / "measured.json"
MODES = ("receiver", "sharer", "t2t", "full_context")
# by benchmark: title, the published test rows (count), what it asks, what a number of it is worth
BENCHMARKS: dict[str, dict[str, str]] = yaml.safe_load((FOLDER / "pages.yaml").read_text(encoding="utf-8"))


def pages() -> dict[Path, str]:
    """The text of the index and of every benchmark's page, by path."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    here = [name for name in BENCHMARKS if name in task_names()]
    found = {FOLDER / f"{name}.md": _page(name, measured.get(name, [])) for name in here}
    rows = [f"| [{BENCHMARKS[name]['title']}]({name}.md) | `{name}` | {_contexts(name)} |" for name in here]
    index = [
        "# Benchmarks",
        "The benchmarks of the papers, a page each: data, scoring, commands, and the embedded pair's scores"
        " on a few real documents. That pair is two of the smallest models there are; many of its numbers are"
        " at chance, and they are given as they are.",
        "\n".join(["| benchmark | task | contexts |", "| --- | --- | --- |", *rows]),
        "All other tasks: [Tasks](../tasks.md).",
    ]
    return {FOLDER / "index.md": "\n\n".join(index), **found}


def _contexts(name: str) -> str:
    return str(describe(name)["context"])


def _page(name: str, rows: list[dict[str, Any]]) -> str:
    said, facts, config = BENCHMARKS[name], describe(name), read_task(name)
    scorings = ", ".join(
        f"{scoring} ({over['primary']})" for scoring, over in config["metadata"]["scorings"].items()
    )
    table = [
        ("data", f"`{facts['dataset']}`, {said['count']}"),
        ("licence", facts["licence"]),
        ("contexts", facts["context"]),
        ("scoring", f"{scorings}; by default {facts['default_scoring']}"),
        *((f"`--task-option {key}=…`", _option(value)) for key, value in facts["options"].items()),
    ]
    parts = [
        f"# {said['title']}",
        said["what"],
        "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in table)]),
        "## Run it",
        f"```bash\n{_command(name)} --control matched,deranged --limit 100\nlcfbench show\n```",
        said.get("worth", ""),
        "## Measured",
        *_measured(name, rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _command(name: str) -> str:
    return f"lcfbench run --task {name} --mode {','.join(MODES)}"


def _option(facts: dict[str, Any]) -> str:
    choices = f" ({', '.join(map(str, facts['choices']))})" if facts.get("choices") else ""
    return f"{facts.get('help', '')}{choices}; default {facts['default']}"


def _measured(name: str, rows: list[dict[str, Any]]) -> list[str]:
    command = f"`{_command(name)} --limit N`, then `python docs/benchmark_pages.py --from results/`."
    if not rows:
        return [f"Not measured with the embedded pair yet: {command}"]
    heads = ("method", "scoring", "n", "score %", "95 %", "unparsed %", "chance %", "failed")
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * (len(heads) - 2)]
    for row in rows:
        cells = [
            row["label"],
            f"{row['scoring']} ({row['metric']})",
            f"{row['n']:,}",
            _percent(row["score"]),
            f"{_percent(row['low'])}–{_percent(row['high'])}",
            _percent(row["unparsed"]),
            _percent(row["chance"]),
            str(row["errors"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    n = max(row["n"] for row in rows)
    told = (
        f"The embedded pair `{EMBEDDED_PAIR}` (RECEIVER:SHARER) on {n:,} documents, control matched. So few"
    )
    return [f"{told} documents leave wide intervals. Again: {command}", "\n".join(lines)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def measure(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A line for each matched run of the embedded pair. Raises UserError for an empty folder."""
    from lcfbench.analysis.summary import load_summary
    from lcfbench.results.reader import load_samples

    summary = load_summary(folder)
    samples = load_samples(folder)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in summary.to_dict("records"):
        asked = line["pair"] == EMBEDDED_PAIR and line["task"] in BENCHMARKS and line["control"] == "matched"
        if not asked or line["mode"] not in MODES or line["state"] != "complete":
            continue
        mine = samples[samples["run_id"] == line["run_id"]]
        parsed = mine["parsed"].dropna() if "parsed" in mine else []
        unparsed = 1 - float(parsed.astype(float).mean()) if len(parsed) else None
        kept = {
            key: _plain(line[key]) for key in "label scoring metric n score low high chance errors".split()
        }
        found.setdefault(line["task"], []).append({**kept, "unparsed": unparsed})
    return {
        task: sorted(rows, key=lambda row: (row["scoring"], MODES.index(row["label"].split()[0])))
        for task, rows in found.items()
    }


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def main() -> int:
    """Puts the summaries of a results folder into measured.json."""
    if sys.argv[1:2] != ["--from"] or len(sys.argv) != 3:
        print(__doc__)
        return 2
    try:
        measured = measure(Path(sys.argv[2]))
    except UserError as error:
        print(error)
        return 2
    before = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    text = json.dumps(before | measured, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    MEASURED.write_text(text, encoding="utf-8")
    print(f"{', '.join(measured) or 'nothing'} measured; now run python docs/generate.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
