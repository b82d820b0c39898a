"""One frozen model with its tokenizer: prefill, score, decode, all batched, all starting from a `State`.

Letters, full-text choices, generation and the training loss are written here once; a method only has to bring the `State`.

>>> receiver = Endpoint.load(find_model("smollm2-135m"), dtype="float32")
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.kv import KV, left_to_right, pad_left, pad_right, positions_of
from lcfbench.layer_masks import hiding
from lcfbench.prompts import Prompt
from lcfbench.state import Message, Opened, State

LEAST_SHARED = 1 << 30  # bytes of caches that `Endpoint.sharing` keeps at least
_warned = False  # of prefills that are not shared


class Endpoint:
    """A causal language model, frozen."""

    def __init__(self, name: str, model: Any, tokenizer: Any, revision: str = "", source: str = "") -> None:
        self.name, self.model, self.tokenizer, self.revision, self.source = name, model.eval(), tokenizer, revision, source
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.geometry = Geometry.of_config(model.config)
        self._shared: dict[tuple[Any, ...], KV] | None = None
        self._shared_limit = 0  # bytes; measured when sharing begins
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad_id: int = 0 if pad is None else pad
        # parameters a token is multiplied with: the embedding table is looked up, unless it is tied and is the output head
        table = model.get_input_embeddings().weight
        tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is table
        self.matmul_params: int = sum(p.numel() for p in model.parameters()) - (0 if tied else table.numel())

    @classmethod
    def load(cls, found: Any, *, dtype: str = "auto", device: str = "auto", attention: str = "sdpa") -> Endpoint:
        """Loads a model that `assets.find_model` found. `dtype` and `device` "auto" mean what is fastest here.

        Raises UserError when the folder holds no causal model transformers can load.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = pick_device(device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(found.path)
            model = AutoModelForCausalLM.from_pretrained(found.path, dtype=pick_dtype(dtype, place), attn_implementation=attention)
        except ImportError as error:  # an attention implementation that is not installed
            raise UserError(f"{found.name} cannot be loaded ({first_line(error)})", "Use --attention sdpa, or install it.") from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{found.name}: {found.path} is not a causal language model transformers can load ({first_line(error)}).",
                "Check the folder or name another model.",
            ) from error
        model.to(place)  # type: ignore[arg-type]
        return cls(found.name, model, tokenizer, found.revision, found.source)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def has_chat(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    # -- reading -------------------------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, mask: Tensor, past: KV | None = None, start: Tensor | int = 0) -> KV:
        """The cache after reading ids (B, N) under mask (B, N), on top of `past` where given; no logits are computed.

        start: rotary position of the first real token, a number or (B,).
        """
        g = self.geometry
        key: tuple[Any, ...] = ()
        if share := past is None and self._shared is not None:
            key = (tuple(ids.shape), tuple(ids.flatten().tolist()), tuple(mask.flatten().tolist()), str(start))
            if self._shared and key in self._shared:
                return self._shared[key]
        before = past or KV.empty(g.layers, ids.shape[0], g.kv_heads, g.head_dim, torch.zeros(0, device=self.device, dtype=self.dtype))
        if ids.shape[1] == 0:
            return before
        positions = positions_of(mask, start)
        if before.length:  # padding goes to the end, not between what was read and what is read now
            mask, ids, positions = left_to_right(mask, ids, positions)
        full = torch.cat([before.mask, mask], 1)  # covers cache + new ids: a mask of the new ids alone is silently wrong
        cache = before.to_cache()
        with hiding(self.model, before.hidden, full, ids.shape[1]):
            self.model.get_decoder()(input_ids=ids, attention_mask=full, position_ids=positions, past_key_values=cache, use_cache=True)
        read = KV.from_cache(cache, full, torch.cat([before.positions, positions], 1), before.hidden).flush()
        if share and self._shared is not None:
            held = sum(kv.keys.nbytes + kv.values.nbytes for kv in self._shared.values())
            if held + read.keys.nbytes + read.values.nbytes <= self._shared_limit:
                self._shared[key] = read
            else:
                warn_unshared(self._shared_limit)
        return read

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Within it equal prefills from an empty cache are computed once: several adapters or methods on the same batch share them.

        Caches are never written in place, so sharing them is safe; they are let go at the end. What is kept ends at a quarter of
        the memory that was free when this endpoint first shared.
        """
        self._shared_limit = self._shared_limit or max(free_bytes(self.device) // 4, LEAST_SHARED)
        outer, self._shared = self._shared, {} if self._shared is None else self._shared
        try:
            yield
        finally:
            self._shared = outer

    def read(self, prompts: Sequence[Prompt], past: KV | None = None, start: Tensor | int = 0) -> State:
        """Prefills all but the last token of each prompt; the last one is left to run on whatever the cache has become."""
        ids, mask = pad_left([list(p.ids) for p in prompts], self.pad_id, self.device)
        positions = positions_of(mask, start)
        kv = self.prefill(ids[:, :-1], mask[:, :-1], past, start)
        return State(self, kv, ids[:, -1:], mask[:, -1:], positions[:, -1:], list(prompts), Message.none(len(prompts)))

    def _forward(self, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, keep: int) -> tuple[Tensor, Any]:
        """Logits (B, keep, V) in fp32 and the extended transformers cache. Gradients flow where the cache carries them."""
        cache = kv.to_cache()
        full = torch.cat([kv.mask, mask], 1)
        with hiding(self.model, kv.hidden, full, ids.shape[1]):
            out = self.model(
                input_ids=ids, attention_mask=full, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=keep
            )
        return out.logits.float(), cache

    def open(self, state: State) -> Opened:
        """Runs what is left of the prompt: the logits of the first answer token, and the cache to go on from."""
        last = state.positions[:, -1]
        ragged = state.ids.shape[1] > 1 and state.kv.length > 0
        ids, mask, positions = state.ids, state.mask, state.positions
        if ragged:  # padding goes to the end, see `prefill`
            mask, ids, positions = left_to_right(mask, ids, positions)
        logits, cache = self._forward(state.kv, ids, mask, positions, ids.shape[1] if ragged else 1)
        first = logits[torch.arange(len(logits), device=self.device), mask.sum(1) - 1] if ragged else logits[:, -1]
        full = torch.cat([state.kv.mask, mask], 1)
        kv = KV.from_cache(cache, full, torch.cat([state.kv.positions, positions], 1), state.kv.hidden).flush()
        return Opened(self, kv, first, last + 1)

    # -- answering -----------------------------------------------------------------------------------------------------------

    def rank(self, opened: Opened, choices: list[list[list[int]]]) -> list[list[tuple[float, bool]]]:
        """Log-likelihood of every choice (token ids) of every document, and whether greedy decoding would write it.

        First tokens come from the logits at hand; only longer choices are run, all sharing the prompt's cache.
        """
        logprobs = opened.logits.log_softmax(-1)
        best = opened.logits.argmax(-1)
        total = [[float(logprobs[b, ids[0]]) for ids in row] for b, row in enumerate(choices)]
        greedy = [[bool(best[b] == ids[0]) for ids in row] for b, row in enumerate(choices)]
        longer = [(b, c) for b, row in enumerate(choices) for c, ids in enumerate(row) if len(ids) > 1]
        if longer:
            rows = torch.tensor([b for b, _ in longer], device=self.device)
            tails = [choices[b][c] for b, c in longer]
            ids, mask = pad_right([t[:-1] for t in tails], self.pad_id, self.device)
            positions = opened.next_position[rows][:, None] + torch.arange(ids.shape[1], device=self.device)
            logits, _ = self._forward(opened.kv.rows_at(rows), ids, mask, positions, ids.shape[1])
            targets, target_mask = pad_right([t[1:] for t in tails], self.pad_id, self.device)
            picked = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0] * target_mask
            hits = (logits.argmax(-1) == targets) | (target_mask == 0)
            for i, (b, c) in enumerate(longer):
                total[b][c] += float(picked[i].sum())
                greedy[b][c] &= bool(hits[i].all())
        return [list(zip(t, g, strict=True)) for t, g in zip(total, greedy, strict=True)]

    def decode(self, opened: Opened, max_new_tokens: int, until: Sequence[str] = ()) -> tuple[list[str], list[int]]:
        """Greedy continuation of each row, cut before the first `until` string; and the number of tokens written, per row."""
        rows, stops = opened.logits.shape[0], self.stop_ids()
        written: list[list[int]] = [[] for _ in range(rows)]
        alive = [True] * rows
        cache, mask, position, logits = opened.kv.to_cache(), opened.kv.mask, opened.next_position, opened.logits
        for step in range(max_new_tokens):
            ids = logits.argmax(-1)
            for b, token in enumerate(ids.tolist()):
                if alive[b] and token in stops:
                    alive[b] = False
                elif alive[b]:
                    written[b].append(token)
                    # decoding the tail alone is enough to see a stop string, and keeps the loop linear
                    tail = self.tokenizer.decode(written[b][-16:], skip_special_tokens=False) if until else ""
                    alive[b] = not any(u in tail for u in until)
            if not any(alive) or step == max_new_tokens - 1:
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            with hiding(self.model, opened.kv.hidden, mask, 1):
                out = self.model(
                    input_ids=ids[:, None],
                    attention_mask=mask,
                    position_ids=position[:, None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            logits, position = out.logits[:, -1].float(), position + 1
        texts = [cut(self.tokenizer.decode(ids, skip_special_tokens=True), until) for ids in written]
        return texts, [len(ids) for ids in written]

    def loss(self, state: State, targets: list[list[int]], supervised: list[list[bool]], mean: str = "document") -> tuple[Tensor, Tensor]:
        """Next-token cross-entropy of the supervised target tokens, and the share of them that greedy decoding would have got right.

        mean: `document`, over supervised tokens within a document, then over documents: a long answer weighs no more than a short one; `token`,
            over all supervised tokens.
        """
        rest = [row[keep.bool()].tolist() for row, keep in zip(state.ids, state.mask, strict=True)]
        ids, mask = pad_right([r + t[:-1] for r, t in zip(rest, targets, strict=True)], self.pad_id, self.device)
        begin = state.positions[:, -1:] + 1 - state.mask.sum(1, keepdim=True)
        positions = begin + torch.arange(ids.shape[1], device=self.device)
        gold, _ = pad_right(targets, self.pad_id, self.device)
        logits, _ = self._forward(state.kv, ids, mask, positions, ids.shape[1])
        at = state.mask.sum(1, keepdim=True) - 1 + torch.arange(gold.shape[1], device=self.device)  # (B, T): where each target is predicted
        logits = logits.gather(1, at.clamp(max=ids.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[-1]))
        weight, _ = pad_right([[int(s) for s in row] for row in supervised], 0, self.device)
        nll = F.cross_entropy(logits.transpose(1, 2), gold, reduction="none") * weight  # (B, T)
        per_document = weight.sum(1).clamp(min=1)
        count = weight.sum().clamp(min=1)
        right = ((logits.argmax(-1) == gold) * weight).sum() / count
        return (nll.sum() / count if mean == "token" else (nll.sum(1) / per_document).mean()), right

    def stop_ids(self) -> set[int]:
        """Ids that end an answer: the tokenizer's EOS and those of the checkpoint's generation config."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    def flops(self, tokens: int) -> float:
        """Floating-point operations to run `tokens` new tokens from an empty cache: 2 a parameter and token, plus attention."""
        return 2.0 * self.matmul_params * tokens + self.attention_flops(tokens, tokens=(tokens + 1) / 2)

    def attention_flops(self, queries: int, past: float = 0.0, tokens: float = 0.0) -> float:
        """Scores and weighted sums of `queries` tokens, each over `past` entries and, on average, `tokens` of their own."""
        config = getattr(self.model.config, "text_config", None) or self.model.config
        return 4.0 * self.geometry.layers * config.num_attention_heads * self.geometry.head_dim * queries * (past + tokens)


@contextmanager
def sharing(endpoints: Iterable[Endpoint]) -> Iterator[None]:
    """`Endpoint.sharing` of several at once: each reads its part of a batch once, however many adapters or methods there are."""
    with ExitStack() as stack:
        for endpoint in endpoints:
            stack.enter_context(endpoint.sharing())
        yield


def free_bytes(device: torch.device) -> int:
    """Memory that is free where a model runs; 8 GiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 8 << 30)


def warn_unshared(limit: int) -> None:
    """Says once a process that `limit` bytes were not enough."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"prefills are no longer shared beyond {limit / 1e9:.1f} GB; results are the same, only slower.", stacklevel=2)


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def cut(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


def pick_device(device: str) -> torch.device:
    """ "auto" is the GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}.", "Use auto, cpu or cuda[:n].") from error
    if place.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {device!r}.", "Use auto, cpu or cuda[:n].")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device} is not there.", "Use --device cpu, or a torch build and a machine with CUDA.")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU and on CPUs with bfloat16 matmul instructions (1.8× faster prefill there), float32 elsewhere."""
    if dtype != "auto":
        named = {
            "float32": torch.float32,
            "fp32": torch.float32,
            "bfloat16": torch.bfloat16,
            "bf16": torch.bfloat16,
            "float16": torch.float16,
        }
        if dtype not in named:
            raise UserError(f"unknown dtype {dtype!r}.", f"Use one of auto, {', '.join(named)}.")
        return named[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
