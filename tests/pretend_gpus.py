"""GPUs that are not there: tensors say they are on one and compute on the CPU.

An operation on tensors of two devices fails, as on real ones; a CPU tensor of no dimension may join.
Streams run at once; what is done to them, and every wait of the host for a device, is written down.

>>> with pretend_gpus() as seen: torch.ones(2, device="cuda:1") + torch.ones(2, device="cuda:0")
Traceback (most recent call last):
RuntimeError: aten.add.Tensor on cuda:0 and cuda:1
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

COPIES = ("aten._to_copy.default", "aten.copy_.default")  # the operations that take two devices
WAITS = ("aten._local_scalar_dense.default", "aten.nonzero.default")
HOST = {getattr(torch.Tensor, f) for f in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__")}
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
COMPOSITE = "CompositeImplicitAutograd"
MATMULS = ("aten.mm.default", "aten.addmm.default", "aten.bmm.default")
INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default")  # by CPU tensors too


class Placed(torch.Tensor):
    """A tensor of a pretended device around one of the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Placed:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"{self.inner} on {self.device}"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Does what PyTorch does in C++ with a guard of the device, which is not there."""
        if func in HOST:
            if Pretended.current is not None:
                Pretended.current.wait(args[0].device, func.__name__)
            return func(args[0].inner, *args[1:])
        if func is torch.Tensor.__invert__:
            return torch.bitwise_not(args[0])
        if func in INDEXING:
            self, index, *value = args
            if not isinstance(self, Placed):
                raise RuntimeError(f"an index on {tree_leaves(index)[0].device} of a tensor of the CPU")
            found = [x for x in tree_leaves((index, value)) if isinstance(x, Placed)]
            if others := {x.device for x in found} - {self.device}:
                raise RuntimeError(f"{func.__name__} on {self.device} and {others}")
            index, value = tree_map_only(Placed, lambda x: x.inner, (index, value))
            got = func(self.inner, index, *value)
            return got if got is None else Placed(got, self.device)
        if func in (torch.Tensor.contiguous, torch.Tensor.copy_):
            return getattr(torch.ops.aten, func.__name__)(*args)
        if func is torch.Tensor.nonzero:
            found = torch.ops.aten.nonzero(args[0])
            return found.unbind(1) if (kwargs or {}).get("as_tuple") else found
        if func is F.scaled_dot_product_attention:
            devices = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"attention on {devices}")
            own = tree_map_only(Placed, lambda x: x.inner, (args, kwargs or {}))
            return Placed(func(*own[0], **own[1]), devices.pop())
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def indexed(place: torch.device) -> torch.device:
    return torch.device("cuda", 0) if place == torch.device("cuda") else place


def placed(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    return x if device.type == "cpu" or isinstance(x, Placed) else Placed(x, device)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the CPU, after a look at its devices."""
    name, tensors = str(func), [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Placed)]
    asked = kwargs.get("device")
    devices = {t.device for t in there}
    if name not in COPIES:
        many = {t.device for t in tensors if t.dim() or isinstance(t, Placed)} if there else set()
        if name in INDEXED and len(devices) == 1:
            many = devices
        if len(many) > 1:
            raise RuntimeError(f"{name} on {' and '.join(sorted(map(str, many)))}")
    if there and name in MATMULS and Pretended.current is not None:
        Pretended.current.seen.append(f"a matmul on {Pretended.current.stream(there[0].device).name}")
    if there and name in WAITS and Pretended.current is not None:
        Pretended.current.wait(there[0].device, name)
    own = tree_map_only(Placed, lambda t: t.inner, (args, {**kwargs, **({"device": "cpu"} if asked else {})}))
    out = func(*own[0], **own[1])
    place = torch.device(asked) if asked is not None else there[0].device if there else torch.device("cpu")
    if name == "aten.copy_.default":
        return args[0]
    place = indexed(place)
    if there and func._schema.is_mutable and isinstance(args[0], Placed) and out is own[0][0]:
        return args[0]
    return tree_map_only(torch.Tensor, lambda t: placed(t, place), out)


@dataclass
class Queue:
    """A stream. seen: what was done to all of them, in order."""

    name: str
    device: torch.device
    seen: list[str]

    def wait_stream(self, other: Queue) -> None:
        self.seen.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.seen.append(f"the host waits for {self.name}")


class Graph:
    """A recorded graph: its results stand where they were when it was recorded."""

    def replay(self) -> None:
        """Does nothing: the same numbers would be written again."""


@dataclass
class Moment:
    """An event; its time is the host's when it is recorded."""

    seen: list[str]
    at: float = 0.0

    def record(self, stream: Queue) -> None:
        self.at = time.perf_counter() * 1e3

    def synchronize(self) -> None:
        self.seen.append("the host waits for an event")

    def elapsed_time(self, end: Moment) -> float:
        return end.at - self.at


@dataclass
class Pretended(TorchDispatchMode):
    """The devices of one test. seen: streams' orders and the host's waits."""

    seen: list[str] = field(default_factory=list)
    at: dict[torch.device, Queue] = field(default_factory=dict)
    current = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:
                return func.decompose(*args, **kwargs or {})
        return computed(func, args, kwargs or {})

    def stream(self, device: Any = None) -> Queue:
        place = indexed(torch.device(device or "cuda"))
        return self.at.setdefault(place, Queue(f"main {place}", place, self.seen))

    @contextlib.contextmanager
    def on(self, stream: Queue | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        before, self.at[stream.device] = self.stream(stream.device), stream
        self.seen.append(f"work on {stream.name}")
        try:
            yield
        finally:
            self.seen.append(f"no more work on {stream.name}")
            self.at[stream.device] = before

    def wait(self, device: torch.device, what: str) -> None:
        self.seen.append(f"the host waits for {self.stream(device).name}: {what}")


@contextlib.contextmanager
def pretend_gpus(count: int = 2) -> Iterator[Pretended]:
    """Within it torch has so many GPUs."""
    mode = Pretended()
    fakes = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "memory_reserved": lambda index=0: 0,
        "synchronize": lambda device=None: mode.seen.append(f"the host waits for cuda:{device}"),
        "current_stream": mode.stream,
        "stream": mode.on,
        "Stream": lambda device="cuda:0": Queue(f"side {device}", torch.device(device), mode.seen),
        "is_current_stream_capturing": lambda: False,
        "max_memory_allocated": lambda device=0: 0,
        "reset_peak_memory_stats": lambda device=0: None,
        "memory_allocated": lambda device=0: 0,
        "mem_get_info": lambda device=None: (1 << 34, 1 << 34),
        "get_device_name": lambda device=0: "a pretended GPU",
        "Event": lambda enable_timing=False: Moment(mode.seen),
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(),
    }
    with contextlib.ExitStack() as stack:
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes them on the CPU first
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        for name, fake in fakes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        stack.enter_context(mock.patch.object(nn.Module, "to", moved_to))
        stack.enter_context(mock.patch.object(Pretended, "current", mode))
        stack.enter_context(mode)
        yield mode


TO = nn.Module.to


def moved_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`: numbers change on the CPU, then the module moves."""
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    if dtype is not None:
        TO(module, dtype)
    return module if device is None else move(module, device)


def move(module: nn.Module, device: Any) -> nn.Module:
    """Puts all weights and buffers of a module on a pretended device, in place."""
    place = indexed(torch.device(device))
    for part in module.modules():
        for name, x in list(part._parameters.items()):
            if x is not None:
                part._parameters[name] = nn.Parameter(
                    placed(x.detach(), place), requires_grad=x.requires_grad
                )
        for name, x in list(part._buffers.items()):
            if x is not None:
                part._buffers[name] = placed(x, place)
    return module
