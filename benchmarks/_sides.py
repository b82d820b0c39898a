"""Both sides of a comparison.

The harness's batched path over some documents, and models for a peer that are its own.

>>> method = harness_method("lcf", pair, adapter, dtype="bfloat16")
>>> answers = batched(method, documents, 16)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import load as load_adapter
from lcfbench.evaluation.answer import answer, answer_texts
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.worker import SIDE_BY_SIDE
from lcfbench.methods.base import Batch, Method
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Outcome

TOLERANCE = 1e-3  # of log-likelihoods in fp32


def lms(pair: str, dtype: str, device: str = "auto") -> tuple[CausalLM, CausalLM]:
    """Receiver and sharer as the harness loads them."""
    first, second = (CausalLM.load(find_model(name), dtype=dtype, device=device) for name in split_pair(pair))
    return first, second


def own_model(folder: Path, like: CausalLM) -> Any:
    """A second copy of a model, as transformers loads it from its folder; same dtype and device."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=like.dtype, attn_implementation="sdpa")
    return model.to(like.device).eval().requires_grad_(False)


def shipped_adapter(folder: Path, receiver: CausalLM) -> Adapter:
    """A trained adapter in the receiver's dtype."""
    return load_adapter(folder, receiver.device, receiver.dtype)


def random_adapter(
    kind: str, receiver: CausalLM, sharer: CausalLM, options: Mapping[str, Any], seed: int = 0
) -> Adapter:
    """An adapter of random weights with all gates open.

    The same work and the same edits on both sides as a trained one's.

    Edits are a tenth of the initialisation's, so that the answers stay those of a language model.
    """
    torch.manual_seed(seed)
    ends = ((receiver.name, receiver.geometry), (sharer.name, sharer.geometry))
    adapter = build(pair_config(kind, *ends, options=dict(options)))
    with torch.no_grad():
        adapter.gate_logit.fill_(1.0)
        for name, weight in adapter.named_parameters():
            if name in ("out_weight", "out_bias", "up_key", "up_value"):
                weight.mul_(0.1)
    return adapter.requires_grad_(False).eval().to(receiver.device, receiver.dtype)


@torch.inference_mode()
def batched(method: Method, documents: Sequence[Document], size: int) -> dict[str, Outcome]:
    """The harness's way: documents of near length in padded batches.

    Outcome of each, by the document's hash. Of answers that are written, the rows that `run` writes side by
    side.
    """
    out: dict[str, Outcome] = {}
    every = batches(documents, size)
    if not documents[0].steps and method.receiver.joins:
        count = max(SIDE_BY_SIDE // size, 1)
        for some in (every[i : i + count] for i in range(0, len(every), count)):
            made = [Batch(group, group, Clock(method.receiver.device)) for group in some]
            found = answer_texts([(method.respond(batch), batch) for batch in made])
            for group, (outcomes, _) in zip(some, found, strict=True):
                out |= {d.hash: o for d, o in zip(group, outcomes, strict=True)}
        return out
    for group in every:
        batch = Batch(group, group, Clock(method.receiver.device))
        outcomes, _ = answer(method.respond(batch), batch)
        out |= {d.hash: o for d, o in zip(group, outcomes, strict=True)}
    return out


class Difference(NamedTuple):
    """How far two sets of answers are apart.

    Documents with another pick or text, and the largest gap between log-likelihoods (nats).
    """

    picks: int
    nats: float


def difference(ours: Mapping[str, Outcome], theirs: Mapping[str, Outcome]) -> Difference:
    """Compares outcomes of the same documents."""
    assert ours.keys() == theirs.keys(), "the two sides answered different documents"
    picks = sum((ours[k].picks, ours[k].text) != (theirs[k].picks, theirs[k].text) for k in ours)
    # once a pick differs, later steps ask something else
    same = [k for k in ours if ours[k].picks == theirs[k].picks]
    gaps = [
        abs(a - b)
        for k in same
        for mine, other in zip(ours[k].loglikelihoods, theirs[k].loglikelihoods, strict=True)
        for (a, _), (b, _) in zip(mine, other, strict=True)
    ]
    return Difference(picks, max(gaps, default=0.0))


def must_agree(found: Difference, dtype: torch.dtype, what: str) -> None:
    """In fp32 the answers are equal, or no time counts.

    In bf16 sums in another order round differently: differences are counted and shown.
    """
    if dtype == torch.float32 and (found.picks or found.nats > TOLERANCE):
        raise SystemExit(
            f"{what}: {found.picks} answers differ, log-likelihoods by up to "
            f"{found.nats:.2g} nats: the times mean nothing."
        )
