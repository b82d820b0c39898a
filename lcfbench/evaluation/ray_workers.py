"""Workers that are actors of a Ray cluster; rows come back through Ray, so no disk need be shared.

The package, the models and the files that a recipe names must be on every node.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from lcfbench.errors import UserError
from lcfbench.evaluation.service import Order, Reply, Service

LOCAL = "ray"  # a cluster of this machine, unless RAY_ADDRESS names another


class RayWorkers:
    """Starts each worker as an actor with one CPU and so many GPUs.

    address: `ray`, or `ray://HOST:PORT`, or `ray://auto` for the cluster that this machine is a node of.
    count: of workers; None: as many as there is room for. gpus: of each, may be a fraction; None: one
    where a node has any. Raises UserError where Ray is not installed, the cluster cannot be reached, or
    it has no room.
    """

    def __init__(self, address: str, count: int | None, gpus: float | None) -> None:
        if find_spec("ray") is None:
            raise UserError("Ray is not installed.", 'pip install "lcfbench[ray]"')
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that starts here; Ray's own is 15
        import ray

        self.ray = ray
        self.actors: dict[int, Any] = {}
        self.asked: dict[Any, int] = {}
        self.mine = not ray.is_initialized()
        if self.mine:
            self._connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.gpus = gpus if gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in nodes))
        room = sum(int(node.get("GPU" if self.gpus else "CPU", 0) // (self.gpus or 1)) for node in nodes)
        if count is None and not room:
            self.stop()
            need = f"{self.gpus:g} GPUs" if self.gpus else "a CPU"
            raise UserError(
                f"no node of the Ray cluster has {need} for a worker.",
                "Lower --gpus-per-worker; where the cluster grows by demand, give --processes too.",
            )
        self.count = count or room
        self.timing_threads = 0 if self.gpus else 1  # as many CPUs as an actor has

    def _connect(self, address: str) -> None:
        place = {LOCAL: None, "ray://auto": "auto"}.get(address, address)
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if place is None and not os.environ.get("RAY_ADDRESS"):
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            settings |= {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
        with signals_kept():
            try:
                self.ray.init(address=place, **settings)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                why = " ".join(str(error).split())[:200].rstrip(".")
                step = "`ray start --head` starts one; --on ray takes one of this machine alone."
                raise UserError(f"no Ray cluster at {address}: {why}.", step) from error

    def start(self, number: int, order: Order) -> None:
        """Starts an actor; it begins when the cluster has room."""
        if number in self.actors:
            self.ray.kill(self.actors.pop(number))
        kind = self.ray.remote(num_cpus=1, num_gpus=self.gpus)(Service)
        self.actors[number] = kind.remote(pickle.dumps(order))

    def call(self, number: int, name: str, *args: Any) -> None:
        """Sends a call."""
        self.asked[self.actors[number].call.remote(name, *args)] = number

    def wait(self) -> list[tuple[int, Reply | str]]:
        """Waits for a reply or a death."""
        ready, _ = self.ray.wait(list(self.asked), num_returns=1)
        found: list[tuple[int, Reply | str]] = []
        for each in ready:
            number = self.asked.pop(each)
            try:
                found.append((number, self.ray.get(each)))
            except self.ray.exceptions.RayError as error:  # of the actor, its node or an object of it
                why = " ".join(str(error).split())
                found.append((number, f"died ({why[:300]})"))
        return found

    def stop(self) -> None:
        """Ends the actors, and the cluster where it was started here."""
        for actor in self.actors.values():
            self.ray.kill(actor)
        if self.mine:
            self.ray.shutdown()


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keeps the handlers of signals, of which Ray replaces some."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)
