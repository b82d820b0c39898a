"""Models, adapters and documents for a machine that has nothing: all weights and texts are made here.

>>> receiver, sharer = exact_pair(Place("cuda"))       # shapes of qwen3-0.6b:qwen2.5-0.5b
>>> method = made("lcf", (receiver, sharer), "lcf", {"width": 128})
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.untrained import untrained
from lcfbench.methods.base import Method
from lcfbench.methods.create import create, method_class
from lcfbench.methods.load_pair import Pair
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.loading import How
from lcfbench.models.random_weights import BEGIN, WORD, made_tokenizer, random_lm
from lcfbench.tasks.document import NOTE, Document, Scoring, Step, View
from lcfbench.tasks.splitfacts import Settings, rows

VOCABULARY = 2000
SMALL = dict(hidden_size=32, intermediate_size=48, vocab_size=VOCABULARY, max_position_embeddings=4096)
SPECIAL = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
EXACT = ("qwen3-0.6b", "qwen2.5-0.5b")


@dataclass(frozen=True)
class Place:
    """Where a step runs. tiny: models and lengths of a test instead of the real ones."""

    device: str
    tiny: bool = False

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def size(self, real: int, tiny: int) -> int:
        return tiny if self.tiny else real


@cache
def texts() -> list[str]:
    return [row["full"] for row in rows("train", 300, Settings())]


@cache
def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template; with `bos` it puts a token in front of a text."""
    out = made_tokenizer(VOCABULARY - 100 * bos)
    if bos:
        first = [(BEGIN, out.convert_tokens_to_ids(BEGIN))]
        template = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=first)
        out.backend_tokenizer.post_processor = template
    return out


@torch.inference_mode(False)
def exact_pair(place: Place, dtype: torch.dtype = torch.bfloat16) -> tuple[CausalLM, CausalLM]:
    """Random models of the shapes of qwen3-0.6b and qwen2.5-0.5b; tiny ones of their families."""
    if not place.tiny:
        how = How(dtype=str(dtype).removeprefix("torch."), device=place.device, attention="sdpa")
        mine, theirs = (random_lm(name, how, offline=True) for name in EXACT)
        return mine, theirs
    shape = dict(SMALL, num_attention_heads=4, num_key_value_heads=2)
    configs = (
        Qwen3Config(**shape, **SPECIAL, head_dim=8, num_hidden_layers=4),
        Qwen2Config(**shape, **SPECIAL, num_hidden_layers=3),
    )
    mine, theirs = (model_of(n, c, dtype, place.device) for n, c in zip(EXACT, configs, strict=True))
    return mine, theirs


def model_of(name: str, config: Any, dtype: torch.dtype, device: str, bos: bool = False) -> CausalLM:
    """A tiny model: equal weights on every device, large enough for sharp answers."""
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for part, p in made.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 0.5 if "embed" in part else 2.0 / p.shape[-1] ** 0.5)
    return CausalLM(name, made.to(device, dtype), tokenizer(bos), revision="random")


def tiny_pair(device: str, dtype: torch.dtype = torch.float32) -> tuple[CausalLM, CausalLM]:
    """A Llama and a Gemma with a window."""
    shape = dict(num_key_value_heads=2, num_attention_heads=4, head_dim=8, num_hidden_layers=4)
    llama = LlamaConfig(**SMALL, **SPECIAL, **shape, tie_word_embeddings=True)
    shape = dict(num_key_value_heads=1, num_attention_heads=2, head_dim=16, num_hidden_layers=3)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    gemma = Gemma3TextConfig(
        **SMALL | {"vocab_size": VOCABULARY - 100},
        **SPECIAL,
        **shape,
        sliding_window=8,
        layer_types=kinds,
        query_pre_attn_scalar=16,
    )
    return model_of("llama", llama, dtype, device), model_of("gemma", gemma, dtype, device, bos=True)


# of each kind of adapter for tiny models: the smallest that has all its parts
OPTIONS: dict[str, dict[str, Any]] = {
    "lcf": {"width": 8},
    "lcfx": {"width": 8},
    "c2c": {"hidden": 24, "intermediate": 20},
    "prefix": {"slots": 4, "width": 6},
    "xkv": {"slots": 3, "width": 6},
    "codec": {"width": 6},
    "dense": {"multiple": 2},
}


def adapter_for(
    kind: str, models: tuple[CausalLM, CausalLM], options: Mapping[str, Any], mode: str, noise: float
) -> Adapter:
    """An adapter of random weights and open gates, the same on every device. noise: added to each weight."""
    torch.manual_seed(3)
    ends = ((lm.name, lm.geometry) for lm in models)
    config = method_class(mode).configure(pair_config(kind, *ends, options=dict(options)), *models)
    if not noise:
        return untrained(config, models[0].device, models[0].dtype)
    adapter = build(config)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(noise * torch.randn_like(p))
        if isinstance(adapter.gate_logit, torch.nn.Parameter):
            adapter.gate_logit.fill_(1.0)
    return adapter.requires_grad_(False).eval().to(models[0].device, models[0].dtype)


def made(
    mode: str,
    pair: tuple[CausalLM, CausalLM],
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    own: Mapping[str, str] | None = None,
    noise: float = 0.0,
) -> Method:
    """A method between two models, with a random adapter where it has one. own: its own options."""
    models = Pair(*pair, ("receiver", "sharer")).models_for(method_class(mode).roles)
    if mode in ("kvcomm", "latentmas", "activation", "sde"):
        models = (models[0], models[0])
    adapter = adapter_for(kind, models, options or {}, mode, noise) if kind else None
    return create(mode, *models, adapter, dict(own or {}))


@cache
def letters() -> tuple[str, ...]:
    """Four choices of one token each."""
    words = sorted(token for token in tokenizer(bos=True).get_vocab() if WORD.fullmatch(token))
    return tuple(" " + word[1:] for word in words[:4])


# -- documents ------------------------------------------------------------------------------------


def text_of(words: int, seed: int) -> str:
    """So many words of the made-up texts."""
    draw, out = random.Random(seed), list[str]()
    while len(out) < words:
        out += draw.choice(texts()).split()
    return " ".join(out[:words])


def question(number: int, words: int, scoring: Scoring, shared: bool = True, written: int = 8) -> Document:
    """A document with choices or text to write; on different contexts each model has its own text."""
    mine, theirs = View(text_of(words, number) + "\nAnswer:"), View(text_of(words, number + 10_000))
    if shared:
        theirs = mine
    full = mine if shared else View(f"{theirs.user} {mine.user}")
    choices = letters() if scoring == "letters" else tuple(f" {text_of(3, number + k)}" for k in range(3))
    steps = () if scoring == "generate" else (Step(choices, (number % len(choices),)),)
    return Document(
        "made",
        str(number),
        mine,
        theirs,
        full,
        View(theirs.user),
        View(f"{NOTE}\n\n{mine.user}"),
        scoring,
        "A",
        steps,
        shared=shared,
        max_new_tokens=written,
    )


def chats(count: int, most: int) -> list[Document]:
    """Conversations as long as those of OpenHermes-2.5: question and answer lognormal, up to `most` words."""
    draw, out = random.Random(0), []
    for number in range(count):
        asked, answered = (min(max(int(draw.lognormvariate(mean, 0.8)), 4), most) for mean in (4.2, 4.9))
        view = View(text_of(asked, number))
        document = question(number, 1, "generate")
        views = dict.fromkeys(("receiver", "sharer", "full", "request"), view)
        gold = text_of(answered, number + count)
        out.append(replace(document, task="chats", gold=gold, noted=View(f"{NOTE}\n\n{view.user}"), **views))
    return out


def cut_to(lm: CausalLM, tokens: int, rows: int = 1) -> list[list[int]]:
    """Rows of so many token ids that the models know."""
    draw = random.Random(tokens)
    return [[draw.randrange(10, VOCABULARY - 100) for _ in range(tokens)] for _ in range(rows)]
