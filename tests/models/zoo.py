"""Tiny random models of many architectures: what "any causal model" is tested with.

    model = build("gemma4")                         # transformers' class, fp32
    lm = lm_of("gemma4", attention="eager")         # the same as a CausalLM
    path = folder("gemma4", tmp_path)               # saved, with a tokenizer, for the command line

Each has every kind of layer its family has: both kinds in hybrids, a window shorter than the prompts,
layers that share a cache, that differ in head size, that rotate nothing or in part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lcfbench.models.causal_lm import CausalLM
from tests.helpers import tokenizer

VOCABULARY = 400
WINDOW = 10
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 3,
    # experts
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "mamba_n_heads": 4,
    "n_mamba_heads": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "n_groups": 2,
    "block_size": 8,
}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
GLOBAL_LOCAL = [[["global", "local"], 2]]
HYBRID = [LINEAR, FULL, LINEAR, FULL]
MIXED = [SLIDING, SLIDING, FULL, SLIDING, FULL]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def longrope(rotated: int, original: int) -> dict[str, Any]:
    """Two sets of factors, the second for texts longer than `original`. rotated: dims a head."""
    n = rotated // 2
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * i for i in range(n)],
        "long_factor": [2.0 + 0.7 * i for i in range(n)],
        "factor": 8.0,
        "original_max_position_embeddings": original,
    }


def rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **more}}


GEMMA3: dict[str, Any] = {**SMALL, "num_hidden_layers": 5, "layer_types": MIXED, "query_pre_attn_scalar": 8}
SEES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
GEMMA4: dict[str, Any] = {
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
    "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
MLA: dict[str, Any] = {"num_key_value_heads": 4}
LONGCAT: dict[str, Any] = {
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 24,
    "moe_topk": 2,
    "num_layers": 2,
    "head_dim": 4,
    "zero_expert_num": 2,
}
GRANITE: dict[str, Any] = {"position_embedding_type": "rope", "attention_multiplier": 0.3}
ZAMBA: dict[str, Any] = {"num_hidden_layers": 5, "num_key_value_heads": 4}
PHI4: dict[str, Any] = {
    "rope_parameters": longrope(6, 30) | {"partial_rotary_factor": 0.75},
    "original_max_position_embeddings": 30,
}


# name → (transformers' model type, what differs from SMALL)
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    # one shape of cache, rotary in halves over the whole head
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-3.1": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 128}),
    "llama-longrope": ("llama", {"rope_parameters": longrope(8, 30)}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "ministral": ("ministral", {"num_hidden_layers": 5, "layer_types": MIXED}),
    "ministral3": ("ministral3", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-sliding": ("qwen3", {"use_sliding_window": True, "max_window_layers": 2}),
    "granite": ("granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.6, "logits_scaling": 0.5}),
    "olmo2": ("olmo2", {}),
    "seed-oss": ("seed_oss", {}),
    "starcoder2": ("starcoder2", {"sliding_window": 24}),
    # experts
    "qwen2-moe": ("qwen2_moe", {}),
    "qwen3-moe": ("qwen3_moe", {}),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "olmoe": ("olmoe", {}),
    "phimoe": ("phimoe", {"sliding_window": None}),
    "minimax-m2": ("minimax_m2", {}),
    "gpt-oss": ("gpt_oss", {"num_hidden_layers": 5, "layer_types": MIXED}),
    "gpt-oss-yarn": ("gpt_oss", {"rope_parameters": YARN}),
    # windows, two bases, soft caps
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 5, "layer_types": MIXED, "query_pre_attn_scalar": 8}),
    "olmo3": ("olmo3", {"num_hidden_layers": 5, "layer_types": MIXED}),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": WINDOW}),
    "llama4": ("llama4_text", {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 48}),
    "gemma3-images": ("gemma3", {"text_config": "gemma3", "vision_config": SEES}),
    # layers that share a cache or differ in head size
    "gemma3n": (
        "gemma3n_text",
        {
            "num_hidden_layers": 7,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.9] * 2 + [0.0] * 5,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
        },
    ),
    "gemma4": ("gemma4_text", GEMMA4 | {"num_kv_shared_layers": 2, "num_hidden_layers": 6}),
    "gemma4-k-eq-v": (
        "gemma4_text",
        GEMMA4 | {"num_hidden_layers": 6, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    "mimo-v2-flash": ("mimo_v2_flash", {}),
    # layers without rotary
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3-sliding": ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True}),
    "cohere2": ("cohere2", {"num_hidden_layers": 5, "layer_types": MIXED, "logit_scale": 1.0}),
    "exaone4": ("exaone4", {"num_hidden_layers": 5, "layer_types": MIXED}),
    # interleaved rotary
    "cohere": ("cohere", {"logit_scale": 1.0}),
    "ernie4.5": ("ernie4_5", {}),
    "glm": ("glm", {"eos_token_id": 2}),
    "glm4": ("glm4", {"eos_token_id": 2}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    # partial rotary
    "glm4-moe": ("glm4_moe", rope(partial_rotary_factor=0.5)),
    "phi": ("phi", rope(partial_rotary_factor=0.5)),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-sliding": ("phi3", {"sliding_window": 24}),
    "phi4-mini": ("phi3", {"sliding_window": None, **PHI4}),
    "stablelm": ("stablelm", rope(partial_rotary_factor=0.25)),
    "gpt-neox": ("gpt_neox", rope(partial_rotary_factor=0.5)),
    "nemotron": ("nemotron", rope(partial_rotary_factor=0.5)),
    "persimmon": ("persimmon", rope(partial_rotary_factor=0.5)),
    # norms behind the rotary
    "hunyuan": ("hunyuan_v1_dense", {}),
    "hunyuan-moe": ("hunyuan_v1_moe", {}),
    "nanochat": ("nanochat", {}),
    # no rotary at all: learned places, ALiBi
    "gpt2": ("gpt2", {"n_inner": 48}),
    "gpt-neo": ("gpt_neo", {"num_layers": 4, "attention_types": GLOBAL_LOCAL, "window_size": 8}),
    "gpt-bigcode": ("gpt_bigcode", {"n_inner": 48}),
    "opt": ("opt", {"ffn_dim": 48}),
    "biogpt": ("biogpt", {}),
    "xglm": ("xglm", {"num_layers": 3, "attention_heads": 4, "ffn_dim": 48}),
    "ctrl": ("ctrl", {"dff": 48}),
    "openai-gpt": ("openai-gpt", {}),
    "bert": ("bert", {"is_decoder": True}),
    "roberta": ("roberta", {"is_decoder": True}),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {"max_seq_len": 512}),
    "falcon": ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-alibi": ("falcon", {"alibi": True, "multi_query": False}),
    # latent attention
    "deepseek-v2": ("deepseek_v2", MLA),
    "deepseek-v3": ("deepseek_v3", MLA | {"first_k_dense_replace": 1}),
    "minicpm3": ("minicpm3", MLA | {"scale_emb": 2, "dim_model_base": 32}),
    "glm4-moe-lite": ("glm4_moe_lite", MLA),
    "longcat": ("longcat_flash", MLA | LONGCAT),
    # latent attention with an index of entries, or with compressed entries
    "deepseek-v3.2": ("deepseek_v32", MLA),
    "glm-dsa": ("glm_moe_dsa", MLA),
    "deepseek-v4": ("deepseek_v4", {}),
    # recurrent layers beside attention
    "qwen3-next": ("qwen3_next", {"layer_types": HYBRID}),
    "qwen3.5": ("qwen3_5_text", {"layer_types": HYBRID}),
    "olmo-hybrid": ("olmo_hybrid", {"layer_types": HYBRID}),
    "kimi-linear": ("kimi_linear", MLA | {"layer_types": HYBRID}),
    "falcon-h1": ("falcon_h1", {}),
    "lfm2": ("lfm2", {"num_hidden_layers": 5, "layer_types": ["conv", FULL, "conv", FULL, "conv"]}),
    "lfm2-moe": ("lfm2_moe", {"num_hidden_layers": 5, "layer_types": ["conv", FULL, "conv", FULL, "conv"]}),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "bamba": ("bamba", {"num_hidden_layers": 5, "attn_layer_indices": [1, 3]}),
    "granite-hybrid": (
        "granitemoehybrid",
        {"layer_types": HYBRID, "shared_intermediate_size": 48, **GRANITE},
    ),
    "nemotron-h": ("nemotron_h", {"layers_block_type": [LINEAR, "mlp", FULL, LINEAR, "moe", FULL, LINEAR]}),
    "minimax": ("minimax", {"num_hidden_layers": 5, "layer_types": [LINEAR, FULL, LINEAR, FULL, LINEAR]}),
    "lfm3": ("lfm3", {}),
    "zaya": ("zaya", {"num_experts_per_tok": 1}),
    "zamba": ("zamba", {"layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid", LINEAR], **ZAMBA}),
    "zamba2": ("zamba2", {"layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid", LINEAR], **ZAMBA}),
    "recurrent-gemma": ("recurrent_gemma", {"attention_window_size": WINDOW}),
    # recurrent layers only
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {"num_heads": 4, "head_dim": 16}),
    "rwkv": ("rwkv", {"context_length": 512}),
    "xlstm": ("xlstm", {"hidden_size": 128, "num_heads": 4, "chunk_size": 16}),
    # not causal: attend what comes later
    "bert-encoder": ("bert", {}),
}


def config(name: str) -> Any:
    """The config of a tiny model. Its `text_config` in `ZOO` is the name of another one."""
    kind, own = ZOO[name]
    inner = {"text_config": config(own["text_config"]).to_dict()} if "text_config" in own else {}
    return shrunk(kind, **own | inner)


def shrunk(kind: str, **own: Any) -> Any:
    """The config of a model type with every size that it has made small."""
    made = CONFIG_MAPPING[kind]
    known = {*getattr(made, "__dataclass_fields__", {}), *made.attribute_map}
    return made(**{k: v for k, v in SMALL.items() if k in known} | own)


def build(name: str, seed: int = 0, attention: str = "sdpa") -> Any:
    """A random model in fp32. attention: of those that its class has, eager where it lacks this one."""
    return random_model(config(name), seed, attention)


def random_model(config: Any, seed: int = 0, attention: str = "sdpa") -> Any:
    torch.manual_seed(seed)
    try:
        made = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    except ValueError:  # its class lacks this one
        made = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    stir(made)
    return made.eval()


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Makes weights larger than at initialisation, so that logits are not flat and every layer counts."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, p in model.named_parameters():
        if id(p) in embeddings:
            p.normal_(0, 0.5)
        elif "A_log" in name or p.dim() < 2:
            p.add_(0.2 * torch.randn_like(p))
        else:
            p.normal_(0, 2.0 / p.shape[-1] ** 0.5)


def lm_of(
    name: str, seed: int = 0, attention: str = "sdpa", chat: bool = False, bos: bool = False
) -> CausalLM:
    model = build(name, seed, attention)
    return CausalLM(f"tiny-{name}", model, tokenizer(VOCABULARY, bos, chat), revision=f"{seed}")


def folder(name: str, tmp: Path, chat: bool = False, seed: int = 0) -> Path:
    """Saves the model and a tokenizer in a folder of `tmp`; returns the folder."""
    path = tmp / f"{name}{'-chat' if chat else ''}{seed or ''}"
    build(name, seed).save_pretrained(path)
    tokenizer(VOCABULARY, False, chat).save_pretrained(path)
    return path
