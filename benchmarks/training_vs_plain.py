"""Training here beside the loop a researcher would write: examples a second, and peak memory.

The plain loop: one small module a layer (the same weights, sliced), batches at random, padded to
the longest; for every adapter anew both frozen models are called as they come, `model(ids,
attention_mask=…, use_cache=True)`, with the logits of every position; the fused cache goes into a
`DynamicCache`, the answer is run on it with the logits of every position, cross-entropy over the
supervised tokens; AdamW, the same clip. `--lean` spares it the logits of the two prompts.

Both sides learn from the same examples in a round; only how they fall into batches differs. Before
a time counts both must have the same loss and gradient norm on one batch in fp32. Prompts, token
alignment and targets are the harness's on both sides (plain Python).

With passes, both sides read all examples so many times, in another order each time; here the first
pass keeps its readings, as a training does (`--prefills-gb`). Every round begins without any.

python benchmarks/training_vs_plain.py    # one adapter, four, and one in three passes, on openbookqa
python benchmarks/training_vs_plain.py --cases one --task splitfacts --adapters "lcf:width=128,zero_up=no"
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks._sides import own_model
from lcfbench.adapters import lcfx
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.lcf import flat
from lcfbench.alignment.spans import membership
from lcfbench.cli.progress import TrainLine
from lcfbench.evaluation.answer import target
from lcfbench.methods._fusion import Exchange, Fusion, Segment
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.lcf import LCF
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.memory import peak_memory_bytes, reset_peak_memory
from lcfbench.models.padding import pad_left, pad_right, positions_of
from lcfbench.models.prefill_memory import Store
from lcfbench.models.protocol import LanguageModel
from lcfbench.models.timing import Clock
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt
from lcfbench.training.adapter_training import AdapterTraining
from lcfbench.training.recipe import BLOCK, TrainRecipe
from lcfbench.training.setup import accelerator_of, data_of, models_of, trainings_of
from lcfbench.training.trainer import Trainer, batch_order

FOUR = (
    "lcf:width=64,zero_up=no lcf:width=128,zero_up=no lcf:width=256,zero_up=no "
    "lcf:width=128,zero_up=no,seed=1"
)
CASES = {"one": (1, 1), "four": (4, 1), "passes": (1, 3)}  # adapters and passes of each
TARGETS = {"one": 2.5, "four": 5.0}
CLOSE = 1e-3  # how far apart losses (nats) and gradient norms (as a share) may be, in fp32


class Plain:
    """One adapter's plain training loop."""

    def __init__(
        self, one: AdapterTraining, receiver: Any, sharer: Any, recipe: TrainRecipe, lean: bool = False
    ) -> None:
        assert isinstance(one.method, Fusion)
        self.one, self.method, self.config, self.models = (
            one,
            one.method,
            one.adapter.config,
            (receiver, sharer),
        )
        # without a copy a layer would share its weights with ours
        self.layers = nn.ModuleList(one.adapter.select([i]) for i in range(len(self.config.layers))).train()
        self.optimiser = torch.optim.AdamW(
            self.layers.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.clip, self.keep = (
            recipe.clip,
            1 if lean else 0,
        )  # transformers: 0 keeps the logits of all positions

    def read(self, lm: CausalLM, model: Any, rows: list[list[int]]) -> KV:
        """A frozen model called on left-padded prompts."""
        ids, mask = pad_left(rows, lm.pad_id, lm.device)
        positions = positions_of(mask)
        with torch.no_grad():
            out = model(
                ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=self.keep,
                past_key_values=DynamicCache(),
            )
        return KV.from_cache(out.past_key_values, mask, positions)

    def loss(self, documents: Sequence[Document]) -> Tensor:
        method, (receiver, sharer) = self.method, self.models
        batch = Batch(documents, documents, Clock())
        mine = [prompt(method.receiver, d.receiver, d) for d in documents]
        shared = method.sharer_prompts(batch, mine)
        theirs = self.read(method.sharer, sharer, [list(p.ids) for p in shared])
        own = self.read(method.receiver, receiver, [list(p.ids[:-1]) for p in mine])
        cache = self.fused(batch, mine, shared, theirs, own)
        lm, tokenizer = method.receiver, method.receiver.tokenizer
        pairs = [
            target(d, p, tokenizer, tokenizer.eos_token_id) for d, p in zip(documents, mine, strict=True)
        ]
        ids, mask = pad_right(
            [[p.ids[-1], *answer[:-1]] for p, (answer, _) in zip(mine, pairs, strict=True)],
            lm.pad_id,
            lm.device,
        )
        gold, _ = pad_right([answer for answer, _ in pairs], 0, lm.device)
        weight, _ = pad_right([[int(s) for s in flags] for _, flags in pairs], 0, lm.device)
        at = own.mask.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=lm.device)
        out = receiver(
            ids,
            attention_mask=torch.cat([own.mask, mask], 1),
            position_ids=at,
            past_key_values=cache,
            use_cache=True,
        )
        nll = F.cross_entropy(out.logits.float().transpose(1, 2), gold, reduction="none") * weight
        return (nll.sum(1) / weight.sum(1)).mean()

    def fused(
        self, batch: Batch, mine: list[Prompt], shared: list[Prompt], theirs: KV, own: KV
    ) -> DynamicCache:
        """One layer after another, each edited by its own module."""
        method, cache = self.method, DynamicCache()
        edits: dict[int, tuple[nn.Module, int]] = {
            t: (module, s)
            for module, t, s in zip(self.layers, self.config.layers, self.config.layer_map, strict=True)
        }
        if pooled := self.config.kind == "lcfx":
            assert isinstance(method, LCF)
            member = membership(
                method.spans,
                shared,
                theirs.mask,
                windows=method.windows,
                window=method.window,
                stride=method.stride,
            )
            theirs = method.sharer.content_keys(theirs) if self.layers[0].unrotated_keys else theirs
            real = own.mask.bool()[None, :, None, :, None]
        else:
            index = method.positions(Exchange(batch, mine, shared, theirs), Segment.whole(mine)).to(
                own.keys.device
            )
            real = (index >= 0)[None, :, None, :, None]
        for t, (keys, values) in enumerate(zip(own.keys, own.values, strict=True)):
            if t in edits:
                module, s = edits[t]
                sent = theirs.keys[s : s + 1], theirs.values[s : s + 1]  # (1, B, H, M, D)
                if pooled:
                    assert isinstance(module, lcfx.LCFXAdapter)
                    message = module.message(module.pool(*sent, member)[:, :, 0])[:, :, None]
                else:
                    entries = torch.cat([flat(x) for x in sent], -1)  # (1, B, M, s)
                    rows = entries.gather(
                        2, index.clamp(min=0)[None, :, :, None].expand(1, -1, -1, entries.shape[-1])
                    )
                    message = module.message(rows.flatten(1, 2)).unflatten(1, index.shape)  # type: ignore[operator]
                new = module(message, keys[None], values[None])
                keys, values = (
                    torch.where(real, a, b[None])[0] for a, b in zip(new, (keys, values), strict=True)
                )
            cache.update(keys, values, t)
        return cache

    def step(self, documents: Sequence[Document]) -> None:
        self.loss(documents).backward()
        nn.utils.clip_grad_norm_(self.layers.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


class Case:
    """Both sides on one task, with some adapters side by side. passes: over all examples in a round."""

    def __init__(self, adapters: list[str], given: Any, out: Path, passes: int = 1) -> None:
        self.passes = passes
        self.steps = BLOCK * passes if passes > 1 else given.batches * given.repeats + 1
        self.recipe = TrainRecipe.model_validate(
            {
                "adapters": adapters,
                "task": given.task,
                "steps": self.steps,
                "batch_size": given.batch_size,
                "pair": given.pair,
                "out": out,
                "dtype": given.dtype,
                "device": given.device,
                "dev_documents": 2,
                "train_documents": BLOCK * given.batch_size if passes > 1 else None,
            }
        )
        pair = models_of(self.recipe, accelerator := accelerator_of(self.recipe))
        examples, dev = data_of(self.recipe, pair, lambda _: None)
        self.trainings = trainings_of(self.recipe, pair, examples)
        self.trainer = Trainer(self.recipe, self.trainings, dev, TrainLine(), accelerator)
        for one in self.trainings:
            with one.own_randomness():
                one.method.prepare(examples[:64], lambda _: None)
            one.adapter.train()
        self.order = batch_order(examples, self.recipe, self.steps)
        self.given, self.plain = given, list[Plain]()

    def add_plain(self) -> None:
        names = split_pair(self.given.pair)
        receiver = own_model(find_model(names[0]).path, self.trainings[0].method.receiver)
        sharer = (
            receiver
            if names[0] == names[1]
            else own_model(find_model(names[1]).path, self.trainings[0].method.sharer)
        )
        self.plain = [Plain(one, receiver, sharer, self.recipe, self.given.lean) for one in self.trainings]

    def check(self) -> dict[str, float]:
        """Raises where the sides' losses or gradients differ on the first batch.

        Returns the greatest differences.
        """
        group = self.order[0]
        worst = {"loss": 0.0, "gradient": 0.0}
        self.trainer.learn(self.trainings, group, 1.0)
        for one, plain in zip(self.trainings, self.plain, strict=True):
            loss = plain.loss(group)
            loss.backward()
            ours, theirs = norm(one.adapter), norm(plain.layers)
            apart = {"loss": abs(one.loss - float(loss.detach())), "gradient": abs(ours - theirs) / theirs}
            for what, found in apart.items():
                assert found < CLOSE, (
                    f"{one.spec.label}: {what} {one.loss:.5f} {ours:.5f} here, "
                    f"{float(loss.detach()):.5f} {theirs:.5f} in the plain loop"
                )
                worst[what] = max(worst[what], found)
            one.clear()
            plain.optimiser.zero_grad(set_to_none=True)
        return worst

    def rounds(self) -> dict[str, Callable[[], None]]:
        """One round of each side.

        The same examples, in batches of near length here, at random there.
        """
        if self.passes > 1:
            return {"ours": self.again, "plain": self.plain_again}
        taken = {"ours": 0, "plain": 0}

        def stretch(side: str) -> list[list[Document]]:
            at, taken[side] = taken[side], taken[side] + 1
            groups = self.order[1 + at * self.given.batches : 1 + (at + 1) * self.given.batches]
            if side == "ours":
                return groups
            mixed, size = [d for group in groups for d in group], self.given.batch_size
            random.Random(at).shuffle(mixed)
            return [mixed[i : i + size] for i in range(0, len(mixed), size)]

        def ours() -> None:
            for group in stretch("ours"):
                self.trainer.once(group)

        def plain() -> None:
            groups = stretch("plain")
            for each in self.plain:
                for group in groups:
                    each.step(group)

        return {"ours": ours, "plain": plain}

    def again(self) -> None:
        """Trains on all passes, as `Trainer.fit` does, with no reading kept from before."""
        stores: dict[LanguageModel, Store] = {lm: {} for lm in self.trainer.models}
        for one in self.trainings:
            one.plan(self.order, stores)
        for step, group in enumerate(self.order):
            self.trainer.step = step
            self.trainer.once(group)

    def plain_again(self) -> None:
        """The plain loop over all passes, each in another random order."""
        size = self.given.batch_size
        for number in range(self.passes):
            mixed = [d for group in self.order[:BLOCK] for d in group]
            random.Random(number).shuffle(mixed)
            for each in self.plain:
                for i in range(0, len(mixed), size):
                    each.step(mixed[i : i + size])


def norm(module: nn.Module | Adapter) -> float:
    """Of all gradients together."""
    return float(
        torch.stack([p.grad.float().norm() for p in module.parameters() if p.grad is not None]).norm()
    )


def measured(name: str, given: Any) -> dict[str, Any]:
    """Ratio and rates of a case on both sides."""
    count, passes = CASES[name]
    adapters = given.adapters.split()[:count]
    with tempfile.TemporaryDirectory() as out:
        exact = Case(adapters, argparse.Namespace(**vars(given) | {"dtype": "float32"}), Path(out))
        exact.add_plain()
        apart = exact.check()
        del exact
        case = Case(adapters, given, Path(out), passes)
        case.add_plain()
        sides = case.rounds()
        case.trainer.once(case.order[0])  # warm
        for each in case.plain:
            each.step(case.order[0])
        times = turns(sides, given.repeats, warm_up=0, clock=CLOCKS[given.clock])
    steps = case.steps if passes > 1 else given.batches
    examples, found = steps * given.batch_size * len(adapters), seconds(times)
    label = f"{len(adapters)} adapter{'s'[: len(adapters) > 1]} on {given.task}"
    label += f", {passes} passes" if passes > 1 else ""
    return {
        "case": label,
        "claim": "training examples an adapter and second, against the plain loop",
        "ratio": ratio(times, of="plain", to="ours"),
        **({"target": TARGETS[name]} if name in TARGETS else {}),
        "examples_per_s": {side: examples / taken for side, taken in found.items()},
        "apart": apart,
        "adapters": adapters,
    }


def memory_of(side: str, adapters: list[str], given: Any) -> int:
    """Peak resident bytes of two steps of one side on the longest batch, in a process of its own."""
    asked = [sys.executable, __file__, "--memory-of", side, "--adapters", " ".join(adapters)]
    for name in ("task", "pair", "batch_size", "dtype", "device"):
        asked += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    made = subprocess.run([*asked, *(["--lean"] if given.lean else [])], capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(made.stderr)
    return int(json.loads(made.stdout.splitlines()[-1])["bytes"])


def print_memory(given: Any) -> None:
    """What the process of `memory_of` does."""
    with tempfile.TemporaryDirectory() as out:
        case = Case(given.adapters.split(), given, Path(out))
        device = case.trainings[0].method.receiver.device
        if given.memory_of == "plain":
            case.add_plain()
            case.plain = case.plain[:1]  # they would be trained one after another
        group = max(case.order, key=lambda documents: sum(len(d.sharer.user) for d in documents))
        reset_peak_memory(device)
        for _ in range(2):
            if given.memory_of == "plain":
                case.plain[0].step(group)
            else:
                case.trainer.once(group)
    print(json.dumps({"bytes": peak_memory_bytes(device)}))


def main() -> None:
    """Prints a line a case, then JSON."""
    made = parser(
        __doc__,
        task="openbookqa",
        pair="smollm2-135m:gemma3-270m",
        adapters=FOUR,
        batch_size=8,
        batches=4,
        repeats=2,
    )
    made.add_argument("--dtype", default="auto")
    made.add_argument("--device", default="auto")
    made.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    made.add_argument("--lean", action="store_true", help="the plain loop asks for one logit a prompt")
    made.add_argument("--no-memory", action="store_true")
    made.add_argument(
        "--memory-of", choices=("ours", "plain"), help="two steps of one side, and its peak memory"
    )
    given = made.parse_args()
    quiet_libraries()
    if given.memory_of:
        print_memory(given)
        return
    results = []
    for name in given.cases.split(","):
        result = measured(name, given)
        if not given.no_memory:
            some = result["adapters"]
            result["peak_bytes"] = {side: memory_of(side, some, given) for side in ("ours", "plain")}
        results.append(result)
        rates = ", ".join(f"{side} {rate:.2f}" for side, rate in result["examples_per_s"].items())
        peak = ", ".join(f"{side} {size / 1e9:.2f} GB" for side, size in result.get("peak_bytes", {}).items())
        print(
            f"{result['case']}: {shown(result['ratio'])}× the plain loop (examples/s, all adapters "
            f"counted: {rates}); {peak}; {result['apart']}"
        )
    settings = {name: getattr(given, name) for name in ("task", "pair", "batch_size", "batches", "lean")}
    report("training_vs_plain", results, given.out, **settings)


if __name__ == "__main__":
    main()
