"""Training several adapters over shared prefills beside one reading of each batch an adapter.

Ends with one JSON line.

python -m benchmarks.training_sharing --adapter lcf:width=64 --adapter lcf:width=128 --steps 4
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from benchmarks._common import ratio, report, shown
from lcfbench.cli.progress import TrainLine
from lcfbench.progress import quiet_libraries
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.setup import accelerator_of, data_of, models_of, trainings_of
from lcfbench.training.trainer import Trainer, batch_order

DEFAULT = ["lcf:width=64", "lcf:width=128", "lcf:width=256", "prefix"]


def main() -> None:
    """Prints a line, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", action="append", help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--task", default="splitfacts")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    given = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as out:
        recipe = TrainRecipe.model_validate(
            {
                "adapters": given.adapter or DEFAULT,
                "task": given.task,
                "steps": given.steps + 1,
                "batch_size": given.batch_size,
                "out": Path(out),
            }
        )
        pair = models_of(recipe, accelerator := accelerator_of(recipe))
        examples, dev = data_of(recipe.model_copy(update={"dev_documents": 2}), pair, print)
        trainings = trainings_of(recipe, pair, examples)
        trainer = Trainer(recipe, trainings, dev, TrainLine(), accelerator)
        for one in trainings:
            one.method.prepare(examples[:64], lambda _: None)
            one.adapter.train()
        seconds: dict[str, list[float]] = {"shared": [], "apart": []}
        for number, group in enumerate(batch_order(examples, recipe, recipe.steps)):
            for name in seconds:
                began = time.perf_counter()
                with nullcontext() if name == "shared" else patch.object(Trainer, "sharing", nullcontext):
                    trainer.once(group)
                if number:  # the first is the warm-up
                    seconds[name].append(time.perf_counter() - began)
    per_s = {
        name: given.batch_size * len(trainings) / statistics.median(times) for name, times in seconds.items()
    }
    gain = ratio(seconds, "apart", "shared")
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in per_s.items())
    print(
        f"{len(trainings)} adapters, batches of {given.batch_size}: examples/s, all adapters counted: "
        f"{rates}; shared is {shown(gain)}× apart"
    )
    result = {
        "case": f"{len(trainings)} adapters",
        "claim": f"{len(trainings)} adapters over shared prefills ÷ the same trained apart: examples/s",
        "ratio": gain,
        "examples_per_s": per_s,
    }
    report("training_sharing", [result], out=given.out, adapters=recipe.adapters, batch_size=given.batch_size)


if __name__ == "__main__":
    main()
