"""A frozen causal language model of the transformers library, with its tokenizer.

>>> receiver = CausalLM.load(find_model("smollm2-135m"), dtype="float32")
>>> opened = receiver.open(receiver.read(prompts))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.models.activations import editing, hidden_states
from lcfbench.models.capabilities import Capabilities, presumed
from lcfbench.models.conformance import Conformance
from lcfbench.models.conformance_store import known, recorded, with_joins
from lcfbench.models.dtypes import absent
from lcfbench.models.entries import ending, last_block, may_end, until_written
from lcfbench.models.kv_cache import BLOCK, KV, growing
from lcfbench.models.latent import Realignment, Thought, realignment, think
from lcfbench.models.layer_masks import (
    KINDS,
    attention_seen,
    attention_sums,
    check_maskable,
    hiding,
    kinds_of,
    maskable,
    masking,
    windows,
)
from lcfbench.models.layout import Layout, Reading, decoder_of, layers_named, measured, select_rows
from lcfbench.models.lengths import longest
from lcfbench.models.loading import How, load_model
from lcfbench.models.padding import Real, left_to_right, pad_left, pad_right, positions_of, silent_at
from lcfbench.models.placement import devices_of, main_device, number_of
from lcfbench.models.protocol import LanguageModel, Opened, State, Step
from lcfbench.models.ragged import Piece, can_join, joined_forward, joined_run, joined_steps
from lcfbench.models.rotary import TOKENS, RotaryRules, find_rules, rope_types
from lcfbench.models.shared_prefill import Held, SharedPrefill
from lcfbench.models.unpadded import (
    WholeTexts,
    by_length,
    equal_forward,
    equal_run,
    in_order,
    whole_forward,
    whole_run,
)
from lcfbench.sources.model_folder import lacks
from lcfbench.sources.models import Found, code_digest
from lcfbench.tasks.prompts import Prompt

LONG = 2048  # entries of a cache; a text within them is read at once
STRETCH = {"cpu": 1024, "cuda": 8192}  # tokens of all rows in one forward of a longer text
SCORES = 1 << 26  # of one layer's attention at once, where they are made
CHANGING = {"dynamic", "longrope"}  # kinds of rotary embedding whose frequencies depend on the length


class CausalLM:
    """A `LanguageModel` (see `lcfbench.models.protocol` for every method) run by transformers.

    learned: parameters of layers put into the model that still change; nothing read with them is
    kept for later. like: the same model without them, whose cache has been looked at already.
    """

    weights = True  # an `Outline` has none
    facts: Mapping[str, str] = {}  # quantisation, and the digest of code of its folder that was run

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        revision: str = "",
        source: str = "",
        learned: int = 0,
        like: CausalLM | None = None,
    ) -> None:
        self.name, self.revision, self.source, self.learned = name, revision, source, bool(learned)
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.layout: Layout = measured(self.model) if like is None else like.layout
        self.geometry = self.layout.geometry or Geometry(layers=0, kv_heads=1, head_dim=1)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # masks hide padding, so any token of the embedding table will do
        self.pad_id: int = pad if pad is not None and pad < self.vocabulary_size else 0
        self.shared = SharedPrefill(self.device, self.pad_id, keep_beginnings=not learned)
        self.conformance: Conformance | None = None if like is None else like.conformance
        self.read_as(self.presumed_reading if like is None else like.reading)
        self.arguments = frozenset(inspect.signature(model.forward).parameters)
        # a token is multiplied with all but the embedding table, unless that is the output head too
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        tied = head is not None and head.weight is table
        total = model.num_parameters()
        self.matmul_params: int = total + learned - (0 if tied else table.numel())

    @classmethod
    def load(cls, found: Found, *, check: bool = True, **how: Any) -> CausalLM:
        """Loads a model that `find_model` found. how: fields of `loading.How`.

        Code of its folder that may run is part of its revision. check: whether it is held against the
        plainest use of transformers, where that was not done before.

        Raises UserError when the folder holds no causal model that transformers can load, and for one
        that does not compute here what it should.
        """
        loaded = load_model(found, How(**how))
        code = f"+{code_digest(found.path)}" if how.get("trust_remote_code") else ""
        revision = f"{found.revision}{code}"
        kind = cls if loaded.place is None else Outline
        lm = kind(found.name, loaded.model, loaded.tokenizer, revision, found.source)
        lm.facts = loaded.facts
        if loaded.place is not None:
            lm.devices = [loaded.place]
            if lm.layout.geometry is None and not absent(loaded.place) and not lacks(found.path):
                return cls.load(found, check=check, **how | {"weights": True})  # the meta device hides it
        return lm.checked() if check else lm

    def checked(self) -> CausalLM:
        """Returns the model, which reads as its checks say. Raises UserError where it cannot be used."""
        self.conformance = recorded(self) if self.weights else known(self)
        if why := self.capabilities.lacks("text"):
            raise UserError(
                f"{self.name} cannot be used here: {why}.",
                f"See `lcfbench doctor --model {self.name}`; another --dtype or --attention may do.",
            )
        return self

    def read_as(self, reading: Reading) -> None:
        """Reads from now on padded, in rows of equal length, or whole texts without a cache."""
        self.reading = reading
        self.shared.padded, self.shared.beginning_first = reading in ("padded", "left"), reading == "padded"
        self.shared.release()

    @property
    def first_reading(self) -> Reading:
        """The first way of reading that the model's cache and positions may allow."""
        if self.layout.geometry is None:
            return "whole"
        if CHANGING & rope_types(self.model.config):
            return "equal"  # frequencies depend on a text's length: a padded batch would mix them
        return "left" if self.layout.recurrent else "padded"

    @property
    def presumed_reading(self) -> Reading:
        """The way of reading that holds without a check: a recurrent layer may know no padding."""
        return "steps" if self.first_reading == "left" else self.first_reading

    # -- facts ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return main_device(self.model)

    @cached_property
    def devices(self) -> list[torch.device]:
        """Where it computes: one device, or all that it is spread over, `device` first."""
        return devices_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return number_of(self.model)

    @property
    def attention(self) -> str:
        """The implementation of attention that runs."""
        return self.model.config._attn_implementation

    @property
    def has_chat(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def max_positions(self) -> int | None:
        return longest(self.model.config, self.tokenizer)

    @cached_property
    def capabilities(self) -> Capabilities:
        return presumed(self) if self.conformance is None else self.conformance.capabilities

    @property
    def vocabulary_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def intermediate_size(self) -> int | None:
        """Width of the feed-forward layers; None where the config does not say."""
        return getattr(self.model.config.get_text_config(), "intermediate_size", None)

    def decoder_layers(self, layers: Sequence[int]) -> list[int]:
        """The decoder layers that these layers of the cache belong to."""
        at = self.geometry.at or range(self.geometry.layers)
        return [at[layer] for layer in layers]

    @cached_property
    def windows(self) -> list[int | None]:
        return windows(self.model)

    @property
    def takes_layer_masks(self) -> bool:
        if self.conformance is not None and self.conformance.masks:
            return False
        return self.reading == "padded" and not self.layout.recurrent and maskable(self.model)

    def check_layer_masks(self) -> None:
        check_maskable(self.model, self.geometry.layers)
        if not self.takes_layer_masks:
            why = f": {self.conformance.masks}" if self.conformance and self.conformance.masks else ""
            raise UserError(f"layers of {self.name} take no masks of their own{why}.", "Use all layers.")

    @property
    def unpadded_because(self) -> str:
        """Why the model's rows cannot be padded, as a phrase."""
        if self.layout.recurrent:
            return f"{layers_named(self.layout.recurrent)} keep a recurrent state"
        return self.layout.reason or "padded rows differ from each row alone"

    def stop_ids(self) -> set[int]:
        """Ids that end an answer: the tokenizer's EOS and those of the generation config."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    def flops(self, tokens: int) -> float:
        """Counts 2 operations a parameter and token, and attention, from an empty cache."""
        return 2.0 * self.matmul_params * tokens + self.attention_flops(tokens, tokens=(tokens + 1) / 2)

    def attention_flops(self, queries: int, past: float = 0.0, tokens: float = 0.0) -> float:
        """Scores and weighted sums of `queries` tokens, each over `past` entries and, on average,
        `tokens` of their own.
        """
        if not self.geometry.layers:  # recurrent layers alone: their configs may name no heads
            return 0.0
        heads = self.model.config.get_text_config().num_attention_heads
        return 4.0 * self.geometry.layers * heads * self.geometry.head_dim * queries * (past + tokens)

    # -- reading ----------------------------------------------------------------------------------

    def prefill(
        self,
        rows: Sequence[Sequence[int]],
        past: KV | None = None,
        start: Tensor | int = 0,
        real: Real | None = None,
    ) -> KV:
        if past is None and real is None and isinstance(start, int) and start == 0:
            with torch.no_grad() if self.shared.frozen else nullcontext():
                short = max(map(len, rows), default=0) <= LONG
                join = partial(joined_run, self) if short and self.joins else None
                return self.shared.read(rows, partial(self.run, entries=True), join)
        # padding goes to the end, not between what was read and what is read now
        pad = pad_right if past is not None and past.length else pad_left
        return self.run(*pad(rows, self.pad_id), past, start, real, entries=True)

    def prefill_latent(self, rows: Sequence[Sequence[int]], thought: Thought) -> KV:
        if not all(rows):
            raise UserError("an empty text leaves no hidden state to think on.", "Use texts of some tokens.")
        kv = self.prefill(rows)
        if not thought.steps:
            return kv
        last = [row[-1] for row in rows]
        with torch.no_grad():
            if self.reading == "padded":
                return think(self, kv, last, thought)
            parts = []
            for some in by_length(kv.present):
                own = kv.rows_at(some).flush()
                parts.append((some, think(self, own, [last[i] for i in some.tolist()], thought)))
            return in_order(parts)

    def hidden_states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int], counts: Sequence[int]
    ) -> list[Tensor]:
        return hidden_states(self, rows, layers, counts)

    def realigned(self, hidden: Tensor, ridge: float) -> Tensor:
        """Returns input embeddings (B, e) from last hidden states (B, d); W_a is solved once a model."""
        if ridge not in self.realignments:
            self.realignments[ridge] = realignment(self, ridge)
        return self.realignments[ridge](hidden)

    @cached_property
    def realignments(self) -> dict[float, Realignment]:
        """W_a by its ridge, as far as it was asked for."""
        return {}

    def run(
        self,
        ids: Tensor,
        mask: Tensor,
        past: KV | None,
        start: Tensor | int,
        real: Real | None = None,
        entries: bool = False,
    ) -> KV:
        """Runs the decoder over ids (B, N), right-padded where `past` holds something.

        entries: nobody looks at what the last layer makes of its entries, see `models.entries`.
        """
        ids, mask = ids.to(self.device), mask.to(self.device)
        start = start.to(self.device) if isinstance(start, Tensor) else start
        begins = past is None or (not past.length and past.states is None)
        # padding in front of a recurrent layer's text would reach into several stretches
        left = self.reading == "left" and begins and (ids.shape[1] <= LONG or bool(mask.all()))
        if self.reading == "padded" or (left and real is None):
            return self.run_padded(ids, mask, past, start, real, entries)
        if real is not None and not all(map(all, real)):
            raise UserError(
                f"{self.name} cannot read prompts with padding inside: {self.unpadded_because}.",
                "Use an adapter without counted padding.",
            )
        run = whole_run if self.reading == "whole" else equal_run
        return run(self, ids, mask, past, start)

    def run_padded(
        self,
        ids: Tensor,
        mask: Tensor,
        past: KV | None,
        start: Tensor | int,
        real: Real | None = None,
        entries: bool = False,
    ) -> KV:
        """Runs the decoder over ids, padding and all: at once, or a long text stretch by stretch."""
        before = KV.empty(self.layout, ids.shape[0], self.device, self.dtype) if past is None else past
        if ids.shape[1] == 0:
            return before
        positions = positions_of(mask, start)
        silent = None
        if real is not None:
            new = silent_at(mask, real)
            mask, silent = mask * ~new, torch.cat([before.present != before.mask, new], 1)
        self.check_frequencies(before, positions)
        # covers cache and new ids: a mask of the new ids alone is silently wrong
        full, at = torch.cat([before.mask, mask], 1), torch.cat([before.positions, positions], 1)
        n, more = before.length, ids.shape[1]
        width = self.columns_at_once(before, mask, positions)
        in_place = width < more and self.layout.plain
        after = before.widened(full, at, silent) if in_place else before
        cache = after.written_from(n, self.cut_windows(after)) if in_place else before.to_cache()
        if entries and may_end(self):
            cache = ending(cache, self.geometry.layers - 1)
        for a, b in pairwise([*range(0, more, width), more]):
            with (
                hiding(self.model, before.hidden, full[:, : n + b], b - a),
                editing(self.model, before.edits, positions[:, a:b], mask[:, a:b]),
                until_written(),
            ):
                decoder_of(self.model)(
                    input_ids=ids[:, a:b],
                    attention_mask=full[:, : n + b],
                    past_key_values=cache,
                    use_cache=True,
                    **self.places(positions[:, a:b]),
                )
        if not in_place:
            after = KV.from_cache(cache, full, at, before.hidden, silent, self.uneven)
        return after.flush() if n else after  # without a past they stand right: no GPU is waited for

    def columns_at_once(self, past: KV, mask: Tensor, positions: Tensor) -> int:
        """Returns how many of the new columns (B, N) of a text one forward reads: all where it is short.

        Attention makes a mask, or scores, of its queries by all columns: a long text is read in stretches.
        A text is not cut where gradients flow through a cache, where the frequencies of its beginning
        depend on its end, nor where a recurrent layer could not go on.
        """
        rows, new = mask.shape
        total = past.length + new
        if total <= LONG or (torch.is_grad_enabled() and (past.keys.requires_grad or self.learned)):
            return new
        if self.steady is not None and int(positions.max()) >= self.steady:
            return new
        if self.layout.recurrent and (self.reading == "steps" or not bool(mask.all())):
            return new
        if self.attention == "eager" or not self.layout.plain:  # scores of all heads are made
            heads = getattr(self.model.config.get_text_config(), "num_attention_heads", 1)
            return min(max(SCORES // (total * heads * rows), 1), new)
        tokens = STRETCH.get(self.device.type, STRETCH["cuda"])
        return min(max(tokens // rows // BLOCK * BLOCK, BLOCK), new)

    def cut_windows(self, kv: KV) -> Sequence[int | None]:
        """Returns the windows of layers that are not shown the entries before them; () for none.

        Models of transformers alone: others' own code may not ask the cache how much it shows. Not under
        eager attention, whose weights are read by column.
        """
        cut = kv.length > LONG and kv.hidden is None and self.attention != "eager" and self.layout.plain
        own, kinds = type(self.model).__module__.startswith("transformers."), kinds_of(self.model)
        if not (cut and own and kinds and kinds <= KINDS):
            return ()
        return [self.windows[layer] for layer in self.decoder_layers(range(len(kv.keys)))]

    @cached_property
    def last_block(self) -> nn.Module | None:
        """The decoder layer in which a reading of a prompt may end, see `models.entries`."""
        return last_block(self)

    @property
    def joins(self) -> bool:
        """Whether rows run side by side, see `models.ragged`; where gradients flow they do not."""
        return self.can_join and not torch.is_grad_enabled()

    @cached_property
    def can_join(self) -> bool:
        """Whether rows can run side by side: as the record says, else found out by reading, once."""
        if self.conformance is not None and self.conformance.joins is not None:
            return self.conformance.joins
        with torch.no_grad():
            found = can_join(self)
        with_joins(self, found)
        return found

    @cached_property
    def steady(self) -> int | None:
        """Tokens of the longest text whose rotary frequencies do not depend on its length; None: any."""
        return self.rotary.steady if CHANGING & rope_types(self.model.config) else None

    def check_frequencies(self, past: KV, positions: Tensor) -> None:
        """Raises UserError where new positions change the frequencies under which `past` was read."""
        if self.steady is None or not positions.numel() or int(positions.max()) < self.steady:
            return
        long = not past.length or int((past.positions * past.mask).max()) >= self.steady
        if not long or "dynamic" in rope_types(self.model.config):
            self.refuse_longer()

    def refuse_longer(self) -> None:
        """Raises UserError for a text that crosses the length at which rotary frequencies change."""
        raise UserError(
            f"{self.name} reads {self.steady} tokens under one set of rotary frequencies, and this text goes "
            "beyond them: the part already read would have to be read anew.",
            "Use shorter texts or another model.",
        )

    def places(self, positions: Tensor) -> dict[str, Tensor]:
        """The argument that tells positions, where the model takes it: others count for themselves."""
        return {"position_ids": positions} if "position_ids" in self.arguments else {}

    @property
    def uneven(self) -> Layout | None:
        """The layout of a cache whose layers differ; None where all are alike."""
        return None if self.layout.plain else self.layout

    def read(self, prompts: Sequence[Prompt], past: KV | None = None, start: Tensor | int = 0) -> State:
        kv = self.prefill([p.ids[:-1] for p in prompts], past, start)
        last = torch.tensor([max(len(p.ids) - 1, 0) for p in prompts], device=self.device)
        begin = start.to(self.device) if isinstance(start, Tensor) else start
        return State.before(self, kv, [p.ids[-1:] for p in prompts], last + begin, prompts)

    def open(self, state: State) -> Opened:
        ids, mask, positions, used = state.ids, state.mask, state.positions, state.used
        rows = torch.arange(len(ids), device=ids.device)
        ends = torch.full_like(rows, ids.shape[1] - 1)
        if ids.shape[1] > 1 and state.kv.length > 0:  # padding goes to the end, see `prefill`
            used, mask, ids, positions = left_to_right(used, mask, ids, positions)
            ends = used.sum(1) - 1
        logits, longer = self.forward(state.kv, ids, mask, positions, (rows, ends))
        silent = None
        if state.silent is not None:
            silent = torch.cat([state.kv.present != state.kv.mask, used != mask], 1)

        def extended() -> KV:
            kv = longer()
            return (kv if silent is None else replace(kv, silent=silent)).flush()

        return Opened(self, logits, state.positions[:, -1] + 1, extended)

    def forward(
        self, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Callable[[], KV]]:
        """Computes logits at `at` alone: those of all tokens are the largest matrix by far.

        Gradients flow where the cache carries them.
        """
        if self.reading == "padded" or (self.reading == "left" and ids.shape[1] == 1):
            return self.forward_padded(kv, ids, mask, positions, at)
        run = whole_forward if self.reading == "whole" else equal_forward
        return run(self, kv, ids, mask, positions, at)

    def forward_padded(
        self, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Callable[[], KV]]:
        """Runs the model once, padding and all."""
        self.check_frequencies(kv, positions)
        full, columns = torch.cat([kv.mask, mask], 1), torch.cat([kv.positions, positions], 1)
        in_place = kv.length > LONG and self.layout.plain and not torch.is_grad_enabled()
        after = kv.widened(full, columns) if in_place else kv
        cache = after.written_from(kv.length) if in_place else kv.to_cache()
        with (
            hiding(self.model, kv.hidden, full, ids.shape[1]),
            editing(self.model, kv.edits, positions, mask),
        ):
            logits = self.logits_of(
                ids, at, attention_mask=full, past_key_values=cache, use_cache=True, **self.places(positions)
            ).float()

        def longer() -> KV:
            return after if in_place else KV.from_cache(cache, full, columns, kv.hidden, None, self.uneven)

        return logits, longer

    def forward_pieces(
        self, pieces: Sequence[Piece], at: Sequence[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Callable[[], KV]]]:
        kvs = [piece.kv for piece in pieces]
        if self.joins and all(kv is not None and kv.length <= LONG and kv.edits is None for kv in kvs):
            return joined_forward(self, pieces, at)
        found = []
        for piece, where in zip(pieces, at, strict=True):
            assert piece.kv is not None
            with masking(self.model, self.windows, piece.see):
                found.append(self.forward(piece.kv, piece.ids, piece.mask, piece.positions, where))
        return found

    def logits_of(self, ids: Tensor, at: tuple[Tensor, Tensor], **given: Any) -> Tensor:
        """Runs the model on ids (B, T); returns its logits (n, V) at rows (n,) and columns (n,)."""
        head = self.model.get_output_embeddings()
        every = {"logits_to_keep": 0} if "logits_to_keep" in self.arguments else {}
        with keeping(head, at):
            out = self.model(input_ids=ids, **({"use_cache": False} | given), **every)
        return out.logits[0] if head is not None else out.logits[at]  # type: ignore[no-any-return]

    def decoding(self, kv: KV) -> Any:
        """Makes the cache that `step` extends."""
        return WholeTexts(kv) if self.reading == "whole" else growing(kv, self.cut_windows(kv))

    def keep_rows(self, cache: Any, index: Tensor) -> None:
        if isinstance(cache, WholeTexts):
            cache.keep(index)
        else:
            select_rows(cache, index)

    def decoded_together(self, opened: Opened) -> list[tuple[list[int], Opened]]:
        """Returns the rows that may be decoded as one batch: all of them, or those of one length."""
        every = list(range(len(opened.logits)))
        if self.reading in ("padded", "left"):
            return [(every, opened)]
        parts = [(rows.tolist(), opened.rows_at(rows)) for rows in by_length(opened.kv.present)]
        return parts if len(parts) > 1 else [(every, opened)]

    def steps(self, steps: Sequence[Step]) -> list[Tensor]:
        short = all(step.hidden is None and step.mask.shape[1] <= LONG for step in steps)
        if len(steps) > 1 and short and self.joins:
            return joined_steps(self, steps)
        return [self.step(s.cache, s.ids, s.mask, s.positions, s.hidden) for s in steps]

    def step(self, cache: Any, ids: Tensor, mask: Tensor, positions: Tensor, hidden: Tensor | None) -> Tensor:
        last = {"logits_to_keep": 1} if "logits_to_keep" in self.arguments else {}
        if isinstance(cache, WholeTexts):
            return self.model(input_ids=cache.add(ids), use_cache=False, **last).logits[:, -1].float()
        if self.steady is not None and bool((positions == self.steady).any()):
            self.refuse_longer()  # a text that was longer already has been read under these frequencies
        with hiding(self.model, hidden, mask, 1):
            out = self.model(
                input_ids=ids[:, None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **self.places(positions[:, None]),
                **last,
            )
        return out.logits[:, -1].float()

    # -- caches -----------------------------------------------------------------------------------

    @cached_property
    def rotary(self) -> RotaryRules:
        """How each layer turns its keys; two short texts are read to find out."""
        ids = [self.vocabulary_size * (2 * i + 1) // (2 * TOKENS) for i in range(TOKENS)]
        return find_rules(self.model, ids, self.max_positions)

    def rotate(
        self, keys: Tensor, positions: Tensor, layers: Sequence[int] | None = None, inverse: bool = False
    ) -> Tensor:
        return self.rotary.turn(keys, positions, layers, inverse)

    def content_keys(self, kv: KV) -> KV:
        return replace(kv, keys=self.rotate(kv.keys, kv.positions, inverse=True))

    def attention_share(
        self, rows: Sequence[Sequence[int]], past: KV, columns: slice, queries: slice
    ) -> Tensor:
        with attention_sums(self.model, columns) as layers:
            self.prefill(rows, past, past.mask.sum(1))
        by_query = [torch.cat([each.to(self.device) for each in layer], -1) for layer in layers]
        return torch.stack([x[..., queries].contiguous().mean() for x in by_query])

    def attention_to(self, ids: Sequence[int], past: KV | None, see: Callable[[int, Tensor], None]) -> None:
        before = KV.empty(self.layout, 1, self.device, self.dtype) if past is None else past
        numbers = self.decoder_layers(range(self.geometry.layers))
        layer_of = {number: layer for layer, number in enumerate(numbers)}

        def shown(number: int, weights: Tensor) -> None:
            if number in layer_of:
                see(layer_of[number], weights[0])

        with attention_seen(self.model, shown):
            # not `prefill`, which may return a reading that was kept, without a forward
            self.run(*pad_right([ids], self.pad_id), before, before.present.sum(1))

    def differentiable(self) -> AbstractContextManager[Any]:
        return allow_mutation_on_saved_tensors() if self.layout.recurrent else nullcontext()

    @contextmanager
    def observed(self, decoder: Callable[..., None], head: Callable[..., None]) -> Iterator[None]:
        """Calls `decoder(module, args, kwargs)` before each forward of the decoder, and
        `head(module, args, logits)` after each of the output head.
        """
        with ExitStack() as stack:
            before = decoder_of(self.model).register_forward_pre_hook(decoder, with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(self.model.get_output_embeddings().register_forward_hook(head).remove)
            yield


class Outline(CausalLM):
    """A model without weights: it says what it would be on its `devices`, and reads nothing.

    Where its checks were never made here, it may do what its cache and its config allow.
    """

    weights = False

    @property
    def device(self) -> torch.device:
        """Where an adapter is put beside it."""
        return torch.device("cpu")


@contextmanager
def sharing(lms: Iterable[LanguageModel], kept: Mapping[LanguageModel, Held] | None = None) -> Iterator[None]:
    """Shares the readings of several models, however many adapters or methods there are.

    kept: see `SharedPrefill.sharing`, for each model.
    """
    with ExitStack() as stack:
        for lm in lms:
            stack.enter_context(lm.shared.sharing(None if kept is None else kept[lm]))
        yield


@contextmanager
def apart(lms: Iterable[LanguageModel]) -> Iterator[None]:
    """Shares no reading of several models."""
    with ExitStack() as stack:
        for lm in lms:
            stack.enter_context(lm.shared.apart())
        yield


@contextmanager
def keeping(head: Any, at: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Shows the output head the states at (rows (n,), columns (n,)) alone, as one row (1, n, ·).

    head: None where the model has no such module.
    """
    if head is None:
        yield
        return

    def picked(module: Any, args: Any) -> Any:
        rows, columns = (index.to(args[0].device) for index in at)
        return args[0][rows, columns][None], *args[1:]

    pick = head.register_forward_pre_hook(picked)
    try:
        yield
    finally:
        pick.remove()
