"""Records runs in their folders: what is asked of them, their rows as they come, their manifests.

>>> record = Record(run.asked, recipe, progress)                              # doctest: +SKIP
>>> record.open(); record.begin(); record.append(row); record.finish()   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lcfbench.errors import UserError
from lcfbench.evaluation.gathering import summary_of
from lcfbench.evaluation.identity import why_another
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.rows import MESSAGE
from lcfbench.files import check_room
from lcfbench.ownership import HeldError, when_free
from lcfbench.progress import Follower, Progress
from lcfbench.results.gathering import drop_shards, gather, is_sealed, remove_shards
from lcfbench.results.manifest import Manifest
from lcfbench.results.messages import KeptMessage
from lcfbench.results.shards import Shard, shards_of
from lcfbench.results.validation import documents_sha256
from lcfbench.results.writer import RunWriter, run_id_of

TIES = 0.1  # share of documents from which ties are reported; rounding alone causes fewer


@dataclass(frozen=True)
class Asked:
    """What a run asks, in plain values that another process can read.

    title: its name in messages. identity: everything that changes an answer. facts: for the manifest,
    beside the identity. documents: their hashes in the task's order. too_long: why documents have no
    room in a model, by hash. sums: whether all its scores give something together (`Run.summary`).
    lane: number of the documents that it shares with other runs of its group. batches: hashes of the
    documents of each batch of that lane. whole: where only a part is asked, the hashes of all documents.
    """

    title: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    documents: tuple[str, ...]
    too_long: dict[str, str]
    sums: bool = False
    lane: int = 0
    batches: tuple[tuple[str, ...], ...] = ()
    whole: tuple[str, ...] = ()

    def part(self, shard: Shard) -> Asked:
        """The batches of a shard, and nothing else."""
        batches = tuple(shard.of(self.batches))
        mine = {name for batch in batches for name in batch}
        told = {
            "index": shard.index,
            "count": shard.count,
            "documents": len(self.documents),
            "documents_sha256": documents_sha256(self.documents),
        }
        return replace(
            self,
            facts=self.facts | {"shard": told},
            documents=tuple(name for name in self.documents if name in mine),
            too_long={name: why for name, why in self.too_long.items() if name in mine},
            batches=batches,
            whole=self.documents,
            sums=False,
        )

    @property
    def run_id(self) -> str:
        return run_id_of(self.identity)


@dataclass
class Tally:
    """Counts of a run that are in no row.

    failures: why documents failed. retried: why batches were answered document by document. untimed: why
    documents could not be timed alone. ties: documents whose likeliest choices are equally likely.
    seconds: that its batches took, or would have taken alone.
    """

    failures: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    untimed: list[str] = field(default_factory=list)
    ties: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Adds the counts of another part of the run."""
        self.failures += other.failures
        self.retried += other.retried
        self.untimed += other.untimed
        self.ties += other.ties
        self.seconds += other.seconds


def in_order(records: list[Record], recipe: Recipe) -> list[Record]:
    """Returns runs in the order of opening: one that waits for other processes is the same in all."""
    return sorted(records, key=lambda each: each.asked.run_id) if recipe.wait else records


class Record:
    """Writes one run: `open`, `begin`, `append` its rows, `finish`.

    writer: its folder. score, count: sum of the scores and number of documents, earlier sessions included.
    asks: number of documents that had no answer when it was opened. finished: in this session.
    """

    def __init__(self, asked: Asked, recipe: Recipe, progress: Progress) -> None:
        self.asked, self.recipe, self.progress = asked, recipe, progress
        self.title, self.tally, self.finished = asked.title, Tally(), False
        self.shard = Shard.parse(recipe.shard) if recipe.shard else None
        self._has_room = False  # for the messages that are kept
        self._failed: set[str] = set()  # documents of this session, by hash

    def open(self, later: bool = False) -> None:
        """Begins the run's folder, or goes on with it where it was. Raises UserError.

        later: rows of documents that are to be timed are kept in `kept` too, for `complete_row`.
        """
        recipe, progress, asked = self.recipe, self.progress, self.asked
        if why := why_another(recipe.out, asked.identity):
            progress.say(why)
        self.writer, done = when_free(self._opened, recipe.wait, progress.say)
        for text in self.writer.warnings:
            progress.warn(text)
        self.score, self.count = sum(self.writer.before), len(self.writer.before)
        self.asks, self.kept = len(self.left(asked.documents)), dict[str, Mapping[str, Any]]()
        timed = set((asked.whole or asked.documents)[: recipe.latency_documents]) if later else set[str]()
        self._timed = self.left(timed.intersection(asked.documents))
        if recipe.keep_messages and (gone := self.writer.lacking_messages()):
            self.writer.close()
            what = f"{asked.run_id}: {gone:,} documents have answers from messages that were not kept."
            raise UserError(what, "Add --fresh to answer them again, or leave out --keep-messages.")
        if asked.too_long and not self.writer.complete:
            first = next(iter(asked.too_long.values()))
            count = f"{len(asked.too_long):,} of {len(asked.documents):,}"
            what = f"{count} documents are longer than a model reads and fail; the first: {first}"
            progress.warn(f"{self.title}: {what}")
        if self.writer.complete:
            progress.say(done)
            if self.shard and not is_sealed(recipe.out / asked.run_id):
                self._settle()

    def left(self, documents: Iterable[str]) -> set[str]:
        """Those of these documents of the run, by hash, that have no row of this session and no answer."""
        return {name for name in documents if name not in self.writer.done and name not in self._failed}

    def _opened(self) -> tuple[RunWriter, str]:
        """The run's writer, or its shard's, and what is said where nothing is left to do."""
        recipe, asked, shard = self.recipe, self.asked, self.shard
        run = recipe.out / asked.run_id
        given = asked.identity, asked.facts, recipe.fresh, asked.documents
        done = f"{asked.run_id}: complete already, nothing to do (--fresh runs it again)."
        if shard is None:
            if recipe.fresh:
                drop_shards(run)
            elif shards_of(run):
                for text in gather(recipe.out, asked.run_id, (), summary_of).warnings:
                    self.progress.warn(text)
            return RunWriter.open(recipe.out, *given), done
        if recipe.fresh and is_sealed(run):
            what = f"{asked.run_id} is complete, and --fresh with --shard starts over a part of it"
            raise UserError(f"{what}.", "Leave --shard out to run it again.")
        if not asked.documents:
            done = f"{asked.run_id}: it has fewer than {shard.index} batches, so shard {shard} is empty."
        elif not is_sealed(run):
            writer = RunWriter.open(recipe.out, *given, shard)
            if not is_sealed(run):  # another process may have been faster
                return writer, f"{asked.run_id}: shard {shard} is complete already."
            writer.close()
        remove_shards(run)  # those that a killed process left, where the run has all rows
        return RunWriter(run, Manifest(run_id=asked.run_id), None, {}), done

    def _settle(self) -> None:
        """Puts the run together where all its documents have rows now."""
        try:
            found = gather(self.recipe.out, self.asked.run_id, (), summary_of, partial=False)
        except HeldError as held:
            self.progress.say(f"{held.what} It is put together when that process ends it.")
            return
        for text in found.warnings:
            self.progress.warn(text)
        if found.state == "complete":
            self.progress.say(f"{found.run_id}: all {found.documents:,} documents have rows; it is complete.")
        else:
            count = f"{found.rows:,} of {len(self.asked.whole):,} documents"
            self.progress.say(f"{self.asked.run_id}: {count} have rows; shard {self.shard} is done.")

    def begin(self) -> None:
        """Shows that the run begins."""
        self.progress.begin(self.title, len(self.asked.documents), self.count, self.score)
        if isinstance(self.progress, Follower):
            self.progress.follow(self.title, self.writer.folder)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a document's row, its message first. Raises UserError where one cannot be written."""
        row = dict(row)
        if (message := row.pop(MESSAGE, None)) is not None:
            self._keep(message)
        self.writer.append(row)
        if row.get("error") is not None:
            self._failed.add(row["doc_hash"])
        self.score, self.count = self.score + float(row["score"]), self.count + 1
        if row["doc_hash"] in self._timed and row.get("error") is None:
            self.kept[row["doc_hash"]] = row

    def _keep(self, message: KeptMessage) -> None:
        """Stores a message. Raises UserError, at the first, where the disk has no room for those of all."""
        if not self._has_room:  # the longest documents come first
            count = len(self.left(self.asked.documents))
            need = count * sum(map(len, message.packets))
            what = f"keeping the messages of {count:,} documents (--keep-messages)"
            check_room(self.writer.folder, need, what, "give --limit, or --out")
            self._has_room = True
        self.writer.keep(message)

    def complete_row(self, name: str, latency: Mapping[str, float]) -> None:
        """Writes a kept row again, with its latency: the later row of a document counts."""
        self.writer.append({**self.kept.pop(name), **latency})

    def show(self) -> None:
        """Shows how far the run is."""
        self.progress.update(self.title, self.score, self.count)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Closes the run with these facts for its manifest, and reports the failures."""
        progress, tally, total = self.progress, self.tally, len(self.asked.documents)
        if tally.retried and not tally.failures:  # else a document that fails explains it
            how = "batches failed and were answered document by document"
            progress.warn(f"{self.title}: {len(tally.retried)} {how}; the first: {tally.retried[0]}")
        if tally.failures:
            count = f"{len(tally.failures)} of {total}"
            progress.warn(f"{count} documents failed and count as wrong; the first: {tally.failures[0]}")
        if tally.untimed and not tally.failures:
            count, what = str(len(tally.untimed)), "documents failed alone, so they have no latency"
            progress.warn(f"{self.title}: {count} {what}; the first: {tally.untimed[0]}")
        if tally.ties > TIES * total:
            what = "documents the likeliest choices are equally likely; the first of them counts"
            progress.warn(f"{self.title}: for {tally.ties} of {total} {what}.")
        rate = self.asks / tally.seconds if self.asks and tally.seconds else None
        self.writer.finish({"documents_per_second": rate, "seconds": tally.seconds, **facts})
        if self.shard:
            self._settle()
        elif is_sealed(self.writer.folder):
            remove_shards(self.writer.folder)
        self.finished = True
