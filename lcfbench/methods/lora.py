"""lora: the receiver alone, fine-tuned with PEFT's LoRA: training's gain without a message.

This is the one method that needs the modules of a transformers model: PEFT replaces some of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lcfbench.adapters.config import AdapterConfig
from lcfbench.adapters.lora import LoraAdapter, rank_for
from lcfbench.errors import UserError, unknown
from lcfbench.methods.base import Batch, Method, read_alone
from lcfbench.models.capabilities import Capability
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.layout import blocks_of
from lcfbench.models.protocol import LanguageModel, State

NAME = "default"  # PEFT's name for its only adapter
# types of model in which PEFT takes no projection out of a recurrent layer, whose kernels read its weights
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}


@dataclass
class Lora(Method):
    """`tuned` answers: the receiver's frozen weights in a second tree of modules with LoRA layers.

    The receiver stays as it is.
    """

    adapter: LoraAdapter

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)
    adapter_kinds: ClassVar[tuple[str, ...]] = ("lora",)
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {}

    def __post_init__(self) -> None:
        adapter, base = self.adapter, self.receiver
        assert isinstance(base, CausalLM) and isinstance(adapter, LoraAdapter)
        adapter.config.check_fits(base.geometry, base.geometry, "")
        model = sharing_weights(base.model)
        found = target_modules(model, sorted(adapter.down), base.decoder_layers(adapter.config.layers))
        here = {target: shape_of(modules[0]) for target, modules in found.items()}
        made_for = {target: (up.shape[1], adapter.down[target].shape[2]) for target, up in adapter.up.items()}
        if here != made_for:
            pair = f"{adapter.config.receiver}:{adapter.config.receiver}"
            raise UserError(
                f"this lora adapter was made for modules of {made_for}; {base.name} has {here}.",
                f"Run it with --pair {pair}, or train one for this receiver.",
            )
        self.layers = inject(model, found, adapter)
        self.tuned = CausalLM(
            base.name, model, base.tokenizer, base.revision, base.source, adapter.params, like=base
        )
        self._placed: tuple[Any, ...] = ()  # the frozen weights that stand in the layers

    @classmethod
    def configure(
        cls, config: AdapterConfig, receiver: LanguageModel, sharer: LanguageModel
    ) -> AdapterConfig:
        """Adds the shapes of the target modules, and the rank where a parameter count was given."""
        assert isinstance(receiver, CausalLM)
        options = dict(config.options)
        targets = [t for t in str(options.get("targets", "all")).split("+") if t]
        at = receiver.decoder_layers(config.layers)
        found = target_modules(receiver.model, [] if targets == ["all"] else targets, at)
        options["shapes"] = {target: list(shape_of(modules[0])) for target, modules in found.items()}
        if params := options.pop("params", 0):
            options["rank"] = rank_for(params, options["shapes"], len(config.layers))
        return config.model_copy(update={"options": options})

    def respond(self, batch: Batch) -> State:
        with batch.clock("prefill"):
            self.place_weights()
        return read_alone(self.tuned, [d.receiver for d in batch.documents], batch)

    def place_weights(self) -> None:
        """Puts the adapter's weights as they are now into PEFT's layers, in the model's dtype.

        Gradients flow back into the stacks. Frozen weights that have not changed stand there
        already.
        """
        adapter, dtype = self.adapter, self.tuned.dtype
        now: tuple[Any, ...] = ()
        weights = list(adapter.parameters())
        if not any(p.requires_grad or p.is_inference() for p in weights):
            now = (dtype, torch.is_inference_mode_enabled(), *((p.data_ptr(), p._version) for p in weights))
            if now == self._placed:
                return
        self._placed = now
        for target, layers in self.layers.items():
            downs, ups = adapter.down[target].to(dtype).unbind(), adapter.up[target].to(dtype).unbind()
            for layer, down, up in zip(layers, downs, ups, strict=True):
                layer.lora_A[NAME].weight, layer.lora_B[NAME].weight = down, up


def sharing_weights(model: nn.Module) -> Any:
    """Copies the tree of modules over the same parameters and buffers, at no cost in memory."""
    kept: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


def target_modules(model: Any, targets: Sequence[str], layers: Sequence[int]) -> dict[str, list[nn.Linear]]:
    """Returns the linear modules of decoder layers by their last name; all without `targets`.

    Raises UserError for targets that are not there, or differ in shape between layers.
    """
    blocks = blocks_of(model)
    barred = {"out_proj", "conv1d"} if model.config.model_type in MAMBA else set()  # by PEFT
    found: dict[str, list[nn.Linear]] = {}
    for layer in layers:
        for name, module in blocks[layer].named_modules():
            # a router gives more than one tensor
            if isinstance(module, nn.Linear) and "router" not in type(module).__name__.lower():
                found.setdefault(name.rpartition(".")[2], []).append(module)
    known = {
        name: modules
        for name, modules in found.items()
        if name not in barred and len(modules) == len(layers) and len({shape_of(m) for m in modules}) == 1
    }
    for target in targets:
        if target not in known:
            raise unknown("lora target", target, sorted(known), "lcfbench train --mode lora -o targets=all")
    if not known:
        raise UserError(
            f"{type(model).__name__} has no linear modules that are alike in all layers.",
            "Use an adapter of another kind.",
        )
    return {target: known[target] for target in (targets or sorted(known))}


def shape_of(module: nn.Linear) -> tuple[int, int]:
    """Returns (out, in) features."""
    return module.out_features, module.in_features


def inject(model: Any, found: dict[str, list[nn.Linear]], adapter: LoraAdapter) -> dict[str, list[Any]]:
    """Replaces these modules by PEFT's LoRA layers without weights; returns them by target."""
    from peft import LoraConfig, inject_adapter_in_model  # not at the top: slow to import

    # with a model's config at hand PEFT takes some names for those of its experts
    holder: Any = nn.ModuleList([model])
    names = {id(module): name for name, module in holder.named_modules()}
    paths = {target: [names[id(m)] for m in modules] for target, modules in found.items()}
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.scale * adapter.rank,  # type: ignore[arg-type]  # divided by the rank again
        target_modules=[path for each in paths.values() for path in each],
    )
    inject_adapter_in_model(config, holder, low_cpu_mem_usage=True, adapter_name=NAME)
    layers = {target: [holder.get_submodule(path) for path in each] for target, each in paths.items()}
    for layer in (x for each in layers.values() for x in each):
        # parameters without storage: `place_weights` sets tensors in their place
        del layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    return layers
