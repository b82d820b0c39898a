"""Tiny random models and tokenizers for unit tests: two families, two vocabularies, different depths and cache shapes."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lcfbench.models.causal_lm import CausalLM

TEXT = [
    "Question: In which city is the key of Kafi? Answer: The key of Kafi is in the orange box. The orange box is in Seoul.",
    "Notes: The purple box is in Vienna. The brown box is in Toronto. Zona works as a farmer. Answer: A B C D E",
    "Der Schlüssel liegt in Zürich. Ключ в коробке. 鍵は箱の中にあります。 The quick brown fox jumps over the lazy dog 0123456789.",
    "user assistant system Which of these is a good conductor of heat? A. wood B. copper C. glass D. paper",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if not (loop.last and continue_final_message) %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer(vocabulary: int = 400, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of its own vocabulary; with `bos`, one that puts `<s>` in front as Llama's and Gemma's do."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>", "<pad>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if bos:
        from tokenizers.processors import TemplateProcessing

        inner.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>"
    )
    if chat:
        out.chat_template = CHAT
    return out


def model(
    family: str = "llama",
    layers: int = 3,
    heads: int = 2,
    dim: int = 8,
    vocabulary: int = 400,
    seed: int = 0,
    attention: str = "sdpa",
    window: int = 8,
):
    """A random causal model. Weights are larger than at initialisation, so that logits are not flat."""
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2 * heads,
        num_key_value_heads=heads,
        head_dim=dim,
        max_position_embeddings=512,
        attn_implementation=attention,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
    )
    if family == "gemma3":
        config = Gemma3TextConfig(
            **shape,
            sliding_window=window,
            layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
            query_pre_attn_scalar=dim,
        )
        made = Gemma3ForCausalLM(config)
    elif family == "qwen3":
        made = Qwen3ForCausalLM(Qwen3Config(**shape))
    else:
        made = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 2.0 / p.shape[-1] ** 0.5 if "embed" not in name else 0.5)
    return made.eval()


def endpoint(name: str = "tiny-receiver", bos: bool = False, chat: bool = False, **shape) -> CausalLM:
    """A tiny endpoint in fp32."""
    made = model(**shape)
    return CausalLM(
        name, made, tokenizer(made.config.vocab_size, bos, chat), revision=str(sorted(shape.items()))
    )
