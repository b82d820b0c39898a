"""Every tiny model of the zoo is worth a test: its logits are not flat, and every token it reads counts."""

from __future__ import annotations

import pytest
import torch

from tests.models import zoo


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_reads_its_text(name):
    model = zoo.build(name)
    ids = torch.randint(5, 390, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(ids).logits[0].float()
        moved = model(torch.cat([ids[:, :33], ids[:, :5], ids[:, 38:]], 1)).logits[0, -1]
    spread = logits.std(-1).mean()
    assert torch.isfinite(logits).all() and spread > 0.5
    assert (moved - logits[-1]).square().mean().sqrt() > 0.03 * spread
