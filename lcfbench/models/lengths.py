"""The number of positions that a model has: by its config, its rotary scaling and its tokenizer."""

from __future__ import annotations

from typing import Any

EXTENDING = ("yarn", "dynamic")  # rotary scalings whose factor reaches beyond the trained length
SMALLEST = 16  # a shorter `model_max_length` of a tokenizer is a mistake


def longest(config: Any, tokenizer: Any) -> int | None:
    """Returns how many positions a model reads at most; None where its config does not say.

    A sliding window is no limit: texts may be longer. A tokenizer's `model_max_length` counts where it is
    smaller. YaRN and dynamic scaling reach `factor` times the length that the config calls original;
    some configs name the longer length already.
    """
    text = config.get_text_config()
    own = getattr(text, "max_position_embeddings", None)
    if not isinstance(own, int) or own <= 0:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer = [each for each in rope.values() if isinstance(each, dict)]
    for each in by_layer or [rope]:
        factor, original = each.get("factor"), each.get("original_max_position_embeddings") or own
        if each.get("rope_type") in EXTENDING and isinstance(factor, (int, float)):
            own = max(own, int(original * factor))
    told = getattr(tokenizer, "model_max_length", None)
    return min(own, told) if isinstance(told, int) and told >= SMALLEST else own
