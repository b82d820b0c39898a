"""Every architecture of the zoo with every method: the number is right, or one line refuses it."""

from __future__ import annotations

import pytest
import torch

from tests.models import cells, zoo


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_reads_its_text(name):
    """What a test of it is worth: its logits are not flat, and what it read moves them."""
    model = zoo.build(name)
    ids = torch.randint(5, 390, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(ids).logits[0].float()
        moved = model(torch.cat([ids[:, :38].flip(1), ids[:, 38:]], 1)).logits[0, -1]
    spread = logits.std(-1).mean()
    assert torch.isfinite(logits).all() and spread > 0.5
    assert (moved - logits[-1]).square().mean().sqrt() > 0.01 * spread


LATER = """
llama-longrope phi4-mini modernbert-decoder openai-gpt roberta bert-encoder falcon-alibi deepseek-v3.2 glm-dsa
deepseek-v4 jamba nemotron-h minimax zamba zamba2 recurrent-gemma mamba mamba2 rwkv xlstm lfm3 zaya
""".split()
CACHES = [name for name in zoo.ZOO if name not in LATER]
METHODS = [m for m in cells.METHODS if m not in ("lora", "dense", "prefix")]


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in CACHES for method in METHODS])
def test_a_method_is_exact(name, method):
    assert cells.cell(name, method) == "exact"
