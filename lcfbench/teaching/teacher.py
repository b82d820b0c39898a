"""Teaches a base model by a LoRA of PEFT's: fp32 weights under autocast, the loss on the answers alone.

>>> teach(TeachRecipe(task_options={"people": "128"}), progress)              # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lcfbench.adapters.config import CHECKPOINT
from lcfbench.errors import UserError, unknown
from lcfbench.files import locked, replacing, write_json, writing
from lcfbench.models.causal_lm import CausalLM, keeping
from lcfbench.models.memory import ran_out
from lcfbench.models.padding import pad_right
from lcfbench.progress import TeachProgress, duration
from lcfbench.provenance import cpu_name
from lcfbench.sources import taught
from lcfbench.sources.models import Found, find_model
from lcfbench.teaching.card import card
from lcfbench.teaching.recipe import RECORD, TeachRecipe, check, layers_of
from lcfbench.teaching.texts import Lesson, Text, batches, lessons_of
from lcfbench.training import checkpoint

FLOOR = 0.1  # of the peak learning rate
BETAS = (0.9, 0.99)
WINDOW = 10  # steps at least that the mean loss is over: a step has one wording
CLIP = 1.0  # largest norm of a gradient
MEASURED = 1024  # texts of a wording or split that are measured at the end
NAME = "default"  # PEFT's name for its only adapter


def teach(recipe: TeachRecipe, progress: TeachProgress) -> Path:
    """Teaches, measures what was learnt, and saves a taught model. Returns its folder.

    A killed teaching goes on from its last checkpoint under the same settings, and ends like an
    uninterrupted one. Raises UserError: another process writes the folder, tasks with nothing to teach,
    too little memory, a loss that is not finite, a folder that already holds a taught model.
    """
    check(recipe)
    with locked(recipe.folder):
        check(recipe)  # another process may have finished meanwhile
        resumed = (
            None if recipe.force else checkpoint.load(recipe.folder / CHECKPOINT, recipe.digest(), "teaching")
        )
        found = find_model(recipe.model, offline=recipe.offline)
        lm = load(found, recipe)
        lessons = lessons_of(recipe, lm.tokenizer, lm.has_chat, lm.max_positions)
        teacher = Teacher(recipe, lm, lessons, progress)
        size = sum(p.numel() for p in teacher.parameters)
        texts = sum(len(lesson.texts) for lesson in lessons if lesson.weight)
        progress.say(f"{texts:,} texts from {', '.join(recipe.task)}; a LoRA of {size:,} parameters.")
        try:
            teacher.fit(resumed)
            return save(teacher, found)
        except KeyboardInterrupt:
            kept = (recipe.folder / CHECKPOINT).exists()
            says = "the checkpoint stays; the same command goes on from there" if kept else "no step was kept"
            progress.say(f"{says} ({recipe.folder}).")
            raise


def load(found: Found, recipe: TeachRecipe) -> CausalLM:
    """Loads the base as a run would."""
    how = recipe.model_dump(include={"dtype", "device", "trust_remote_code"})
    return CausalLM.load(found, **how)


@dataclass
class Teacher:
    """The LoRA in a base model, and its training. losses: of every step so far."""

    recipe: TeachRecipe
    lm: CausalLM
    lessons: list[Lesson]
    progress: TeachProgress
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        from peft import LoraConfig, get_peft_model

        r = self.recipe
        blocks = self.lm.model.get_decoder().layers
        self.config = LoraConfig(
            r=r.rank,
            lora_alpha=r.scale * r.rank,  # type: ignore[arg-type]  # divided by the rank again
            target_modules=targets_of(r, blocks),
            layers_to_transform=layers_of(r, len(blocks)),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(r.seed)
        self.tuned: Any = get_peft_model(self.lm.model, self.config, adapter_name=NAME)
        self.parameters: list[nn.Parameter] = [p for p in self.tuned.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=r.lr, betas=BETAS, weight_decay=0, fused=True)
        self.schedule = LambdaLR(
            self.optimiser, lambda s: min((s + 1) / r.warmup, max((r.steps - s) / r.steps, FLOOR))
        )
        self.order = batches(self.lessons, r)
        size = sum(len(lesson.texts) for lesson in {o.group: o for o in self.lessons if o.weight}.values())
        self.a_pass = max(size // r.batch_size, WINDOW)  # steps

    @property
    def mean(self) -> float:
        """Mean loss of the last pass over all facts, or of the steps so far."""
        last = self.losses[-self.a_pass :]
        return sum(last) / len(last) if last else float("inf")

    @property
    def done(self) -> bool:
        steps = len(self.losses)
        return steps >= self.recipe.steps or (steps >= self.a_pass and self.learnt)

    @property
    def learnt(self) -> bool:
        """Whether the loss is low in the last pass, and on average over the latest step of each wording."""
        latest = {name: loss for (name, _), loss in zip(self.order, self.losses, strict=False)}
        every = {lesson.name for lesson in self.lessons if lesson.weight} <= set(latest)
        low = sum(latest.values()) / max(len(latest), 1) < self.recipe.until
        return every and low and self.mean < self.recipe.until

    def fit(self, resumed: dict[str, Any] | None) -> None:
        """Runs the steps that are left. Ctrl-C keeps the last whole step."""
        r = self.recipe
        if resumed is not None:
            self.restore(resumed)
            self.progress.say(f"goes on from step {len(self.losses)} of {r.steps} at most.")
        whole = True
        try:
            if not self.done:
                self.estimate(self.order[len(self.losses)][1])
            while not self.done:
                began = time.perf_counter()
                loss = self.backward(self.order[len(self.losses)][1])
                norm = nn.utils.clip_grad_norm_(self.parameters, CLIP)
                if not torch.isfinite(norm + loss):
                    what = f"the loss is not finite at step {len(self.losses) + 1}."
                    raise UserError(what, "Lower --lr, and start over with --force.")
                whole = False
                self.optimiser.step()
                self.schedule.step()
                self.losses.append(float(loss))
                self.seconds += time.perf_counter() - began
                whole = True
                self.optimiser.zero_grad()
                self.progress.lesson(len(self.losses), r.steps, self.mean, self.rate)
                if len(self.losses) % r.save_every == 0 or self.done:
                    self.save_checkpoint()
        except KeyboardInterrupt:
            if whole and self.losses:
                self.save_checkpoint()
            raise

    @property
    def rate(self) -> float:
        """Texts a second."""
        return len(self.losses) * self.recipe.batch_size / max(self.seconds, 1e-9)

    def estimate(self, batch: Sequence[Text]) -> None:
        """Times a step that changes nothing, and says how long all may take."""
        began = time.perf_counter()
        self.backward(batch)
        self.optimiser.zero_grad()
        seconds = time.perf_counter() - began
        left = seconds * (self.recipe.steps - len(self.losses))
        until = f"{self.recipe.steps} steps at most, fewer if the loss falls below {self.recipe.until:g}"
        self.progress.say(f"about {duration(left)}: {until}; {seconds:.1f} s a step.")

    def backward(self, batch: Sequence[Text]) -> Tensor:
        """Adds the gradient of a batch's loss, a mean over its texts; returns the loss."""
        with self.memory_named():
            logits, gold, rows = logits_at(self.lm, batch)
            each = nn.functional.cross_entropy(logits, gold, reduction="none")
            number = torch.bincount(rows, minlength=len(batch)).to(each)
            loss = (each / number[rows]).sum() / len(batch)
            loss.backward()
        return loss.detach()

    @contextmanager
    def memory_named(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            what = f"out of memory at step {len(self.losses) + 1}."
            raise UserError(what, f"Lower --batch-size (now {self.recipe.batch_size}).") from error

    def save_checkpoint(self) -> None:
        """Saves all that the next step depends on, whole or not at all."""
        state = {
            "recipe": self.recipe.digest(),
            "weights": [p.detach() for p in self.parameters],
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }
        checkpoint.save(self.recipe.folder / CHECKPOINT, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's state. Raises UserError for one that does not fit."""
        try:
            with torch.no_grad():
                for mine, kept in zip(self.parameters, state["weights"], strict=True):
                    mine.copy_(kept)
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.losses, self.seconds = list(state["losses"]), float(state["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.torn(self.recipe.folder / CHECKPOINT, error) from error


def logits_at(lm: CausalLM, batch: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits where an answer's token comes next (n, V), these tokens (n,), and their rows (n,)."""
    ids, mask = (t.to(lm.device) for t in pad_right([t.ids for t in batch], lm.pad_id))
    places = [
        (row, len(t.ids) - len(t.answer) + i)
        for row, t in enumerate(batch)
        for i, counts in enumerate(t.answer)
        if counts
    ]
    rows, columns = torch.tensor(places, device=lm.device).unbind(1)
    numbers = torch.bfloat16 if lm.dtype == torch.bfloat16 else torch.float32
    cast = torch.autocast(lm.device.type, numbers, enabled=numbers == torch.bfloat16)
    with cast, keeping(lm.model.get_output_embeddings(), (rows, columns - 1)):
        out = lm.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=0)
    return out.logits[0].float(), ids[rows, columns], rows


def accuracy(lm: CausalLM, texts: Sequence[Text], at_once: int) -> float:
    """Returns the share of texts whose answer is the likeliest one over the whole vocabulary."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(texts), at_once):
            batch = texts[start : start + at_once]
            logits, gold, rows = logits_at(lm, batch)
            wrong = set(rows[logits.argmax(-1) != gold].tolist())
            right += len(batch) - len(wrong)
    return right / len(texts)


def targets_of(recipe: TeachRecipe, blocks: nn.ModuleList) -> list[str]:
    """Returns the last names of the linear modules to change. Raises UserError for others."""
    linear = [n for n, m in blocks.named_modules() if isinstance(m, nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if not known:
        raise UserError(f"{recipe.model} has no linear modules.", "It cannot be taught by a LoRA.")
    if recipe.targets == ["all"]:
        return known
    for target in recipe.targets:
        if target not in known:
            raise unknown("target", target, known, "lcfbench teach --help")
    return list(recipe.targets)


def save(teacher: Teacher, found: Found) -> Path:
    """Saves the LoRA in bfloat16, loads it as a run would, measures it, and writes card and record."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    recipe, folder = teacher.recipe, teacher.recipe.folder
    own = (taught.PEFT, taught.WEIGHTS, "README.md", RECORD)
    with replacing(folder, own) as made:
        state = get_peft_model_state_dict(teacher.tuned, adapter_name=NAME)
        weights = {key: w.detach().to("cpu", torch.bfloat16).contiguous() for key, w in state.items()}
        base = taught.recorded(found.repo_id)
        teacher.config.base_model_name_or_path, teacher.config.inference_mode = base, True
        with writing(folder):
            save_file(weights, made / taught.WEIGHTS, metadata={"format": "pt"})
            teacher.config.save_pretrained(str(made))
        teacher.progress.say("measures what was learnt …")
        used = load(replace(found, name=f"{recipe.model}+{folder.name}", lora=made), recipe)
        scores = {o.name: accuracy(used, o.texts[:MEASURED], recipe.batch_size) for o in teacher.lessons}
        for name, score in scores.items():
            untaught = "" if next(o for o in teacher.lessons if o.name == name).weight else ", never taught"
            teacher.progress.say(f"{name}{untaught}: {100 * score:.1f} % right over the whole vocabulary")
        if not teacher.learnt and recipe.until:
            teacher.progress.say(f"the loss is still {teacher.mean:.3f}; more --steps would go on.")
        record = {
            "base": base,
            "revision": found.revision,
            **recipe.model_dump(
                mode="json", exclude={"model", "out", "offline", "force", "save_every", "trust_remote_code"}
            ),
            "steps_done": len(teacher.losses),
            "loss": round(teacher.mean, 5),
            "minutes": round(teacher.seconds / 60, 1),
            "machine": cpu_name() if teacher.lm.device.type == "cpu" else torch.cuda.get_device_name(),
            "models_dtype": str(teacher.lm.dtype).removeprefix("torch."),
            "texts": {o.name: len(o.texts) for o in teacher.lessons},
            "measured": {o.name: min(len(o.texts), MEASURED) for o in teacher.lessons},
            "never_taught": [o.name for o in teacher.lessons if not o.weight],
            "right": {name: round(score, 4) for name, score in scores.items()},
            "params": sum(w.numel() for w in weights.values()),
            "bytes": (made / taught.WEIGHTS).stat().st_size,
        }
        with writing(folder):
            write_json(made / RECORD, record)
            (made / "README.md").write_text(card(folder.name, record), encoding="utf-8")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return folder
