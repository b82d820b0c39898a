"""Models of exact shape with random weights: they take the time and memory of trained ones.

>>> lm = random_lm("qwen3-0.6b", How(dtype="bfloat16"), offline=True)
>>> lm.source, lm.facts["tokenizer"]
('random', 'made here')
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.cpu_packing import packed
from lcfbench.models.dtypes import pick_device, pick_dtype
from lcfbench.models.loading import How, check_weights, described
from lcfbench.models.memory import free_bytes
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.sources.model_folder import TOKENIZER_FILES, check_configs, check_quantised
from lcfbench.sources.models import find_shape, read_config
from lcfbench.tasks.chat_template import parse_thinking
from lcfbench.tasks.splitfacts import vocabulary

RANDOM = "random"  # source and revision of such a model
STD = 0.02  # of weights, as most models are initialised
PERIOD = 1_048_573  # numbers that are drawn and then repeated; a prime, so that rows of a matrix differ
RARE = 0.05  # the share of its size that the output row of a token keeps which is not to be written
WORD = re.compile(r"[Ġ▁][A-Za-z]{2,}")  # a word with its space, as vocabularies spell it
VOCABULARY = 8192
BEGIN, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
ROLES = ("user", "assistant", "system")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message) %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def random_lm(name: str, how: How, offline: bool = False) -> CausalLM:
    """Returns a model of the named one's shape with random weights, in the dtype and on the device asked.

    Its config comes from a folder, this package or the Hub; no weights are fetched. Its tokenizer is its
    own where that is on this disk, else one that is made here. What it writes are words, so that a note
    has as many tokens for its reader as for its writer. Raises UserError where no config is found, and
    for a model that does not fit into memory.
    """
    found, place = find_shape(name, offline=offline), pick_device(how.device)
    raw = check_configs(found.path)
    if quantised := check_quantised(found.path, raw):
        what = f"{name} is quantised ({quantised}), and random weights are not"
        raise UserError(f"{what}.", "Name the model that it was made from.")
    config = read_config(found.path, how.trust_remote_code)
    model = described(found, raw, how, config, pick_dtype(how.dtype, place))
    needed, free = sum(p.nbytes for p in model.parameters()), free_bytes(place)
    if needed > free:
        what = f"{name} needs {needed / 1e9:.1f} GB on {place}, and {free / 1e9:.1f} GB are free"
        raise UserError(f"{what}.", "Name a smaller model, or another --dtype or --device.")
    materialise(model, place)
    check_weights(name, model)
    tokenizer, whose = _tokenizer(found.path, how, model.get_input_embeddings().weight.shape[0])
    prefer_words(model, tokenizer)
    lm = CausalLM(found.name, packed(model), tokenizer, RANDOM, RANDOM)
    lm.facts = {"tokenizer": whose}
    return lm.checked() if lm.reading != lm.first_reading else lm


def materialise(model: Any, place: torch.device) -> None:
    """Gives a model of the meta device its memory and random weights, as quickly as memory is written.

    Matrices get normal numbers; norms, biases and buffers begin as their code says.
    """
    model.to_empty(device=place)
    model.tie_weights()
    fill = Filler(model.dtype, place)
    for weight in model.parameters():
        if weight.dim() > 1:
            fill(weight)
            weight._is_hf_initialized = True  # transformers leaves it as it is
    model.initialize_weights()


class Filler:
    """Writes normal numbers of mean 0, drawn once and repeated, into one tensor after another."""

    def __init__(self, dtype: torch.dtype, place: torch.device) -> None:
        drawn = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).mul_(STD)
        self.drawn, self.at = drawn.to(place, dtype), 0

    def __call__(self, weight: Tensor) -> None:
        flat, done = weight.data.view(-1), 0
        while done < flat.numel():
            some = min(PERIOD - self.at, flat.numel() - done)
            flat[done : done + some].copy_(self.drawn[self.at : self.at + some])
            done, self.at = done + some, (self.at + some) % PERIOD


@torch.no_grad()
def prefer_words(model: Any, tokenizer: Any) -> None:
    """Makes the output rows of all tokens but words small: the most likely token is a word."""
    head: Tensor = (model.get_output_embeddings() or model.get_input_embeddings()).weight
    named = tokenizer.get_vocab().items()
    words = [i for token, i in named if WORD.fullmatch(token)] or [i for _, i in named]
    rare = torch.ones(head.shape[0], dtype=torch.bool, device=head.device)
    rare[torch.tensor(words, device=rare.device)] = False
    head[rare] *= RARE


def _tokenizer(folder: Any, how: How, rows: int) -> tuple[Any, str]:
    """The tokenizer of a folder where it has one that fits the model's embedding table, and whose it is."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        own = load_tokenizer(folder, how.trust_remote_code, how.thinking)
        if len(own) <= rows:
            return own, "its own"
    return made_tokenizer(rows, how.thinking), "made here"


def made_tokenizer(rows: int, thinking: Any = "off") -> Any:
    """Returns a byte-level tokenizer of this package's words, with a chat template.

    rows: of the model's embedding table. Raises UserError where not even all bytes fit into it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if rows < len(alphabet) + 3:
        what = f"no tokenizer fits a model with {rows} tokens"
        raise UserError(f"{what}.", "Put its own into its folder.")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=min(VOCABULARY, rows),
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words = vocabulary("trained")
    inner.train_from_iterator([" ".join(words), *(f"{BEGIN}{role}\n" for role in ROLES * 9)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=PAD)
    made.chat_template, made.thinking = CHAT, parse_thinking(thinking)
    return made
