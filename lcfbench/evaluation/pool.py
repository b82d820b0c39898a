"""Lets several workers answer a recipe's batches, while this process alone writes the rows.

A run's batches are those of one process, so its rows are too, bit for bit on one kind of device. A worker
that dies is replaced, and its batch is answered again; a row is written once its batch came back.

>>> with ExitStack() as stack: list(Pool(recipe, progress, Processes(2), stack).run())   # doctest: +SKIP
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from lcfbench.errors import Exit, UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.record import Asked, Record, in_order
from lcfbench.evaluation.service import Answered, Order, Reply, Timed
from lcfbench.progress import Crew, Progress

DEATHS = 3  # of workers at one piece of work, after which it is given up


class Workers(Protocol):
    """Starts workers by number, calls them, and hears of their deaths.

    count: how many there may be. timing_threads: CPU threads with which one of them times documents
    while the others rest; 0: each times them as it answers, with a device of its own.
    """

    count: int
    timing_threads: int

    def start(self, number: int, order: Order) -> None:
        """Starts a worker, or another in the place of a dead one."""

    def call(self, number: int, name: str, *args: Any) -> None:
        """Asks a worker, which has one call at a time; `wait` gives the reply."""

    def wait(self) -> list[tuple[int, Reply | str]]:
        """Waits for some replies. A text in place of a reply says how a worker died."""

    def stop(self) -> None:
        """Ends all workers."""


@dataclass
class Piece:
    """A call that some worker has to answer. about: for messages. deaths: of workers that tried.

    alone: no other worker may compute meanwhile.
    """

    name: str
    args: tuple[Any, ...]
    about: str
    runs: list[Record] = field(default_factory=list)
    deaths: int = 0
    alone: bool = False


@dataclass
class Opened:
    """A group whose runs are open. number: its place, from 0. left: pieces of each lane that are not done.

    writing: the runs whose folders are open. begun: ids of those that are shown.
    """

    number: int
    group: Any
    records: list[Record]
    pieces: deque[Piece] = field(default_factory=deque)
    left: dict[int, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    writing: list[Record] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return all(each.writer.complete or each.finished for each in self.records)


@dataclass
class Hand:
    """A worker. opened: the group whose runs it has at hand. about: what it does, for the progress.

    place: where it is, once it has loaded.
    """

    piece: Piece | None = None
    opened: Any = None
    about: str = "is loading"
    place: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.place['host']}, process {self.place['pid']}" if self.place else ""


class Pool:
    """Hands pieces of work to workers: `run`.

    Workers keep to the group that they have at hand while it has batches left, so that models, prompts
    and adapters stay loaded.
    """

    def __init__(self, recipe: Recipe, progress: Progress, workers: Workers, stack: ExitStack) -> None:
        self.recipe, self.progress, self.workers = recipe, progress, workers
        self.order = Order.of(recipe, workers.count, workers.timing_threads)
        self.hands = {number: Hand() for number in range(workers.count)}
        self.groups: list[Any] | None = None
        self.opened: dict[Any, Opened] = {}  # groups that are not done
        self.finished: dict[int, list[str]] = {}  # ids of the runs of groups that are
        self.opening: Piece | None = None
        self.said: set[tuple[str, str]] = set()
        stack.callback(self.put_away)
        self.deaths = 0  # while loading, since a worker last loaded

    def run(self) -> Iterator[str]:
        """Yields each run's id when it is complete, in the recipe's order."""
        shown = 0
        for number in self.hands:
            self.start(number)
        while self.groups is None or shown < len(self.groups):
            for number, reply in self.workers.wait():
                hand = self.hands[number]
                piece, hand.piece = hand.piece, None
                assert piece is not None
                if isinstance(reply, Reply):
                    self.take(hand, piece, reply, number)
                else:
                    self.died(number, hand, piece, reply)
            for opened in [each for each in self.opened.values() if each.done]:
                self.finished[opened.number] = [each.writer.run_id for each in opened.records]
                del self.opened[opened.group]
            while shown in self.finished:
                yield from self.finished[shown]
                shown += 1
            self.hand_out()
            self.show()

    def start(self, number: int) -> None:
        """Starts a worker and lets it load the models."""
        self.hands[number] = Hand()
        self.workers.start(number, self.order)
        self.give(number, Piece("load", (), "is loading"))

    def give(self, number: int, piece: Piece) -> None:
        """Hands a piece of work to a worker that has none."""
        hand = self.hands[number]
        hand.piece, hand.about = piece, piece.about
        args = piece.args
        if piece.name == "answer":
            group, batch = args
            todo = {r.asked.run_id: wanted for r in piece.runs if (wanted := r.left(batch))}
            args = group, batch, todo, {r.asked.run_id: r.asked.identity for r in piece.runs}
        if piece.name != "load":
            hand.opened = args[0]
        self.workers.call(number, piece.name, *args)

    # -- what comes back --------------------------------------------------------------------------

    def take(self, hand: Hand, piece: Piece, reply: Reply, number: int) -> None:
        """Uses the reply to a piece of work."""
        for kind, text in reply.said:
            if (kind, text) not in self.said:  # every worker says it
                self.said.add((kind, text))
                (self.progress.say if kind == "say" else self.progress.warn)(text)
        if reply.bug:
            raise RuntimeError(f"worker {number + 1} ({hand.name}) failed:\n{reply.bug}")
        if reply.error is not None and not reply.lost:
            raise reply.error
        if reply.error is not None:
            self.died(number, hand, piece, reply.error.what, reply.error)
            return
        hand.about = "waits"
        getattr(self, f"{piece.name}_done")(hand, piece, reply.value)

    def load_done(self, hand: Hand, piece: Piece, value: tuple[list[Any], dict[str, Any]]) -> None:
        groups, place = value
        self.deaths, hand.place = 0, place
        if self.groups is None:
            threads = f", {place['threads']} CPU thread(s) each" if self.workers.timing_threads else ""
            count = self.workers.count
            self.progress.say(f"{count} workers answer{threads}; --processes sets their number.")
        self.groups = self.groups or groups

    def open_done(self, hand: Hand, piece: Piece, value: list[Asked]) -> None:
        self.opening = None
        records = [Record(asked, self.recipe, self.progress) for asked in value]
        opened = Opened(len(self.opened) + len(self.finished), piece.args[0], records)
        self.opened[opened.group] = opened
        for each in in_order(opened.records, self.recipe):
            each.open(later=bool(self.workers.timing_threads))
            opened.writing.append(each)
        left = [each for each in opened.records if not each.writer.complete]
        for lane in dict.fromkeys(each.asked.lane for each in left):
            runs = [each for each in left if each.asked.lane == lane]
            for number, batch in enumerate(runs[0].asked.batches, 1):
                if any(each.left(batch) for each in runs):
                    about = f"{opened.group.task}, batch {number} of {len(runs[0].asked.batches)}"
                    opened.pieces.append(Piece("answer", (opened.group, batch), about, runs))
                    opened.left[lane] = opened.left.get(lane, 0) + 1
            if not opened.left.get(lane):
                self.begin(opened, runs)
                self.close(opened, runs)

    def answer_done(self, hand: Hand, piece: Piece, value: Answered) -> None:
        by_id = {each.asked.run_id: each for each in piece.runs}
        opened = self.opened[piece.args[0]]
        for name, facts in value.facts.items():
            self.begin(opened, piece.runs)
            by_id[name].writer.record(**facts)
        for name, row in value.rows:
            by_id[name].append(row)
        for name, tally in value.tallies.items():
            by_id[name].tally.add(tally)
            by_id[name].show()
        self.passed(opened, piece)

    def time_done(self, hand: Hand, piece: Piece, value: Timed) -> None:
        [record] = piece.runs
        for name, latency in value.latency.items():
            record.complete_row(name, latency)
        record.tally.add(value.tally)
        opened = self.opened[piece.args[0]]
        self.passed(opened, piece)

    def summary_done(self, hand: Hand, piece: Piece, value: dict[str, Any]) -> None:
        [record] = piece.runs
        record.finish(value)
        self.progress.end(record.title)

    # -- what is to be done -----------------------------------------------------------------------

    def begin(self, opened: Opened, runs: list[Record]) -> None:
        """Shows that runs that are answered together have begun, once."""
        kept = ("device", "gpu", "threads")
        places = [{k: hand.place[k] for k in kept} for hand in self.hands.values() if hand.place]
        for each in runs:
            if each.asked.run_id not in opened.begun:
                opened.begun.add(each.asked.run_id)
                each.writer.record(together=len(runs), workers=places)
                each.begin()

    def put_away(self) -> None:
        """Closes the runs that are not done; what is recorded stays."""
        with ExitStack() as stack:
            for opened in self.opened.values():
                for each in opened.writing:
                    if each.asked.run_id in opened.begun and not each.finished:
                        stack.callback(self.progress.end, each.title)
                    stack.callback(each.writer.interrupt)  # does nothing to a run that was finished

    def passed(self, opened: Opened, piece: Piece) -> None:
        """Counts a piece of a lane; after the last the next stage begins: batches, latency, the end."""
        lane = piece.runs[0].asked.lane
        opened.left[lane] -= 1
        if opened.left[lane]:
            return
        runs = [r for r in opened.records if r.asked.lane == lane and not r.writer.complete]
        untimed = [each for each in runs if each.kept] if piece.name == "answer" else []
        for each in untimed:
            args = opened.group, each.asked.run_id, tuple(each.kept)
            opened.pieces.append(Piece("time", args, f"{each.title}, latency", [each], alone=True))
        opened.left[lane] = len(untimed)
        if not untimed:
            self.close(opened, runs)

    def close(self, opened: Opened, runs: list[Record]) -> None:
        """Has the runs of a lane finished, all of whose rows are written."""
        for each in runs:
            if not each.asked.sums:
                each.finish({})
                self.progress.end(each.title)
                continue
            args = opened.group, each.asked.run_id, each.writer.metrics()
            opened.pieces.append(Piece("summary", args, f"{opened.group.task}, sums up", [each]))

    def hand_out(self) -> None:
        """Gives work to every worker that has none."""
        for number, hand in self.hands.items():
            if hand.piece is None and hand.place and (piece := self.next_for(hand)) is not None:
                self.give(number, piece)

    def next_for(self, hand: Hand) -> Piece | None:
        """The next piece for a worker: of the group that it has at hand, of another, or a group to open."""
        busy = [other.piece for other in self.hands.values() if other.piece and other.piece.name != "load"]
        if any(piece.alone for piece in busy):
            return None
        waiting = [each for each in self.opened.values() if each.pieces]
        if any(each.pieces[0].alone for each in waiting) and busy:
            return None
        for opened in sorted(waiting, key=lambda each: each.group != hand.opened):
            return opened.pieces.popleft()
        if (
            self.groups is None
            or self.opening is not None
            or len(self.opened) + len(self.finished) == len(self.groups)
        ):
            return None
        group = self.groups[len(self.opened) + len(self.finished)]
        self.opening = Piece("open", (group,), f"{group.task}, opens")
        return self.opening

    def died(self, number: int, hand: Hand, piece: Piece, how: str, error: UserError | None = None) -> None:
        """Replaces a worker; its piece of work is given to another. Raises UserError after DEATHS of them."""
        piece.deaths += 1
        self.deaths += not hand.place
        who = f"worker {number + 1}{f' ({hand.name})' if hand.place else ''}"
        if max(piece.deaths, self.deaths) >= DEATHS:
            raise error or WorkersDied(
                f"{who} {how}, as others before it, while it {doing(piece)}.",
                "What is recorded stays, and the same command goes on. Fewer workers or a smaller "
                "--batch-size take less memory.",
            )
        self.progress.warn(f"{who} {how} while it {doing(piece)}; another takes its place.")
        if piece is self.opening:
            self.opening = None
        elif piece.name != "load":
            opened = self.opened[piece.args[0]]
            opened.pieces.appendleft(piece)
        self.start(number)

    def show(self) -> None:
        """Tells the progress what every worker does."""
        if isinstance(self.progress, Crew):
            self.progress.workers([f"{n + 1} {hand.about}" for n, hand in self.hands.items()])


def doing(piece: Piece) -> str:
    """What a worker did, in a sentence."""
    words = {"load": "loaded the models", "open": "opened", "answer": "answered", "time": "timed"}
    return words.get(piece.name, "summed up") + (f" {piece.about}" if piece.name != "load" else "")


class WorkersDied(UserError):  # noqa: N818
    """Worker after worker died at the same piece of work."""

    code = Exit.FAILED
