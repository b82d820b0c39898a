"""C2C and LCF in batches beside a per-document, per-layer evaluation of the same adapter, as ratios.

Ends with one JSON line.

    python -m benchmarks.per_document    # two or three minutes
    python -m benchmarks.per_document --dtype float32 --cases lcf-cloze  # equal answers

Ours is the harness's path: `Method.respond` and `scoring.answer` over padded batches of 16. The
peer (`_peer.py` says what it repeats and what not) has models of its own from the same folders, in
the same dtype, on the same threads, and reads the same documents. Two ratios: `per document`, as
such scripts are written, and `lean`, which computes the last logits only and prefills once a
document.

The LCF adapters are the shipped ones. C2C's has random weights with open gates, narrower than the
paper's (--c2c-hidden 1024 is the paper's): random weights cost the same time and show as well
whether both sides compute the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks._peer import PerDocument
from benchmarks._sides import (
    Difference,
    batched,
    difference,
    lms,
    must_agree,
    own_model,
    random_adapter,
    shipped_adapter,
)
from lcfbench.adapters.select import FOLDER
from lcfbench.methods.create import create
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Scoring
from lcfbench.tasks.task import Outcome, load_task

TARGET = {"cpu": 3.0, "cuda": 10.0}


class Case(NamedTuple):
    """adapter: a shipped one's last name, "" for random weights."""

    mode: str
    task: str
    scoring: Scoring
    adapter: str


CASES = {
    "lcf-letters": Case("lcf", "openbookqa", "letters", "lcf-openbookqa"),
    "lcf-cloze": Case("lcf", "openbookqa", "cloze", "lcf-openbookqa"),
    "lcfx-splitfacts": Case("lcf", "splitfacts", "cloze", "lcfx-splitfacts"),
    "c2c-letters": Case("c2c", "openbookqa", "letters", ""),
    "c2c-cloze": Case("c2c", "openbookqa", "cloze", ""),
    "c2c-generate": Case("c2c", "openbookqa", "generate", ""),
}
DEFAULT = [name for name in CASES if name != "c2c-cloze"]  # as lcf-cloze, and as long


def main() -> None:
    """Prints a line a case and peer, then JSON."""
    defaults: dict[str, Any] = {
        "pair": "smollm2-135m:gemma3-270m",
        "cases": ",".join(DEFAULT),
        "documents": 16,
        "repeats": 2,
    }
    options = parser(
        __doc__, **defaults, batch_size=16, dtype="auto", device="auto", c2c_hidden=256, new_tokens=8
    )
    given = options.parse_args()
    if unknown := set(given.cases.split(",")) - set(CASES):
        options.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    quiet_libraries()
    receiver, sharer = lms(given.pair, given.dtype, given.device)
    folders = [find_model(name).path for name in split_pair(given.pair)]
    first, second = (own_model(folder, end) for folder, end in zip(folders, (receiver, sharer), strict=True))
    wide = {"hidden": given.c2c_hidden, "intermediate": given.c2c_hidden}
    adapters = {
        name: shipped_adapter(FOLDER / f"{given.pair.replace(':', '.')}.{name}", receiver)
        for name in _shipped(given.cases)
    }
    if any(CASES[name].mode == "c2c" for name in given.cases.split(",")):
        adapters[""] = random_adapter("c2c", receiver, sharer, wide)
    out = []
    for name in given.cases.split(","):
        case = CASES[name]
        adapter = adapters[case.adapter]
        documents = load_task(case.task).documents(
            scoring=case.scoring, limit=given.documents, receiver_chat=receiver.has_chat
        )
        documents = [
            dataclasses.replace(d, max_new_tokens=min(d.max_new_tokens, given.new_tokens)) for d in documents
        ]
        method = create(case.mode, receiver, sharer, adapter)
        peers = {
            "per document": PerDocument(method, first, second),
            "lean": PerDocument(method, first, second, lean=True),
        }
        found: dict[str, Difference] = {}

        def compare(
            answers: dict[str, dict[str, Outcome]], name: str = name, found: dict[str, Difference] = found
        ) -> None:
            for peer in ("per document", "lean"):
                found[peer] = difference(answers["ours"], answers[peer])
                must_agree(found[peer], receiver.dtype, f"{name}, {peer}")

        sides = {"ours": lambda m=method, d=documents: batched(m, d, given.batch_size)}
        sides |= {
            peer: lambda p=p, d=documents: {x.hash: p.answer(x) for x in d} for peer, p in peers.items()
        }
        batched(
            method, documents[:2], given.batch_size
        )  # kernels and templates warm up; whole rounds would take too long
        for p in peers.values():
            p.answer(documents[0])
        times = turns(sides, given.repeats, warm_up=0, check=compare, clock=CLOCKS[given.clock])
        speed = {side: len(documents) / taken for side, taken in seconds(times).items()}
        for peer in peers:
            times_faster = ratio(times, peer, "ours")
            line: dict[str, Any] = {
                "case": f"{name}, {peer}",
                "claim": f"{case.mode} {case.task} {case.scoring}: documents/s, ours ÷ {peer}",
            }
            line |= {
                "ratio": times_faster,
                "documents_per_s": {"ours": speed["ours"], peer: speed[peer]},
                "differing": found[peer].picks,
            }
            line |= {"largest_gap_nats": found[peer].nats, "adapter_params": adapter.params}
            if peer == "per document":
                line["target"] = TARGET[receiver.device.type]
            out.append(line)
            print(
                f"{name}: ours {speed['ours']:.1f} documents/s, {peer} {speed[peer]:.1f}, "
                f"{shown(times_faster)}×; ",
                end="",
            )
            print(
                f"{found[peer].picks} of {len(documents)} answers differ, "
                f"log-likelihoods by ≤ {found[peer].nats:.2g}",
                flush=True,
            )
    report(
        "per_document",
        out,
        given.out,
        pair=given.pair,
        dtype=str(receiver.dtype),
        documents=given.documents,
        batch_size=given.batch_size,
    )


def _shipped(cases: str) -> set[str]:
    return {CASES[name].adapter for name in cases.split(",")} - {""}


if __name__ == "__main__":
    main()
