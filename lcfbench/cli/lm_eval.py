"""`lcfbench lm-eval …`: lm-eval's command line, with the pair as a model."""

from __future__ import annotations

from typing import Any

import typer

# all behind the verb is lm-eval's own; `--help` alone is ours
PASSED_ON: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
}


def lm_eval(context: typer.Context) -> None:
    """Run EleutherAI's lm-eval with a pair as its model.

    Everything behind the verb is lm-eval's: `lcfbench lm-eval run --help` lists it.
    Beside its own models and tasks there are the model `lcfbench` and our tasks,
    as `lcfbench_NAME`:

    \b
      lcfbench lm-eval run --model lcfbench \\
        --model_args pair=smollm2-135m:gemma3-270m,mode=t2t,budget=32 \\
        --tasks hellaswag,lcfbench_splitfacts --batch_size 16 --limit 100

    \b
    Arguments of the model, each with one value:
      pair       RECEIVER:SHARER, as for `lcfbench run` (needed)
      mode       a method of `lcfbench ls methods` (needed)
      control    one of `lcfbench ls controls` [default: matched]
      adapter    a folder, or a name of `lcfbench ls adapters`
      seed       of derangements, noise and our tasks [default: 0]
      wire       native, bf16, fp8, int8 or int4: messages cross as bytes
      dtype, device, receiver_device, sharer_device, device_map, attention,
      thinking, offline, trust_remote_code
                 as the flags of `lcfbench run`
      OPTION     the method's own options by their names, such as budget=32
    """
    from lcfbench.doors.lm_eval_cli import main

    main(context.args)
