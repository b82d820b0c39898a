"""The largest logit is found by stretches as it is by looking at all."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lcfbench.models.answering import STRETCH, largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 7, 2 * STRETCH - 1, 2 * STRETCH, 5 * STRETCH, 5 * STRETCH + 3])
def test_the_largest_logit_is_that_of_argmax(dtype, vocabulary):
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(vocabulary)).to(dtype)
    logits[0] = 1.0  # all equal: the first
    logits[1, -1] = logits[1].max() + 1  # the last
    logits[2, vocabulary // 2] = float("nan")
    logits[3, -1] = logits[3, 0] = float("inf")  # the first of two
    place, number = largest(logits)
    assert place.tolist() == logits.argmax(-1).tolist()
    assert_close(number, logits.amax(-1), rtol=0, atol=0, equal_nan=True)
    assert place[0] == 0
    assert place[1] == vocabulary - 1
    assert place[3] == 0
