"""Helpers of all tests: tiny random models, the command line in a process, documents, adapters, runs."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.distributed import TCPStore
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lcfbench.adapters import lora
from lcfbench.adapters.activation import ActivationAdapter
from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.c2c_files import _shapes
from lcfbench.adapters.codec import CodecAdapter
from lcfbench.adapters.config import AdapterConfig, pair_config
from lcfbench.adapters.draft_kv import DraftKVAdapter
from lcfbench.adapters.files import load as load_adapter
from lcfbench.adapters.files import save as save_adapter
from lcfbench.adapters.prefix import PrefixAdapter
from lcfbench.adapters.xkv import XKVAdapter
from lcfbench.cli import app as cli
from lcfbench.cli import main
from lcfbench.errors import UserError
from lcfbench.evaluation import runner
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create, method_class
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.finite import NotFiniteError
from lcfbench.models.timing import Clock
from lcfbench.results.writer import RunWriter
from lcfbench.tasks.document import NOTE, Document, Step, View
from lcfbench.tasks.prompts import render
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.trainer import train

TEXT = [
    "Question: In which city is the key of Kafi? Answer: The key of Kafi is in the orange box. "
    "The orange box is in Seoul.",
    "Notes: The purple box is in Vienna. The brown box is in Toronto. Zona works as a farmer. "
    "Answer: A B C D E",
    "Der Schlüssel liegt in Zürich. Ключ в коробке. 鍵は箱の中にあります。 "
    "The quick brown fox jumps over the lazy dog 0123456789.",
    "user assistant system Which of these is a good conductor of heat? A. wood B. copper C. glass D. paper",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message) %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer(vocabulary: int = 400, bos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of its own vocabulary; with `bos` it puts `<s>` in front, as Llama's does."""
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
    positions: int = 512,
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
        max_position_embeddings=positions,
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


def causal_lm(name: str = "tiny-receiver", bos: bool = False, chat: bool = False, **shape) -> CausalLM:
    """A tiny model in fp32."""
    made = model(**shape)
    revision = str(sorted(shape.items()))
    lm = CausalLM(name, made, tokenizer(made.config.vocab_size, bos, chat), revision=revision)
    assert lm.can_join is not None  # two forwards find out, which no test wants to count
    return lm


ROOT = Path(__file__).parents[1]
TIMES = {
    "written_at",
    "row_sha256",
    "amortized_ms",
    "ttft_ms",
    "ttea_ms",
    "sharer_ms",
    "message_ms",
    "fuse_ms",
    "prefill_ms",
    "decode_ms",
    "peak_memory_bytes",
}


def lm_eval_around(tokenizer, **more):
    """lm-eval's `hf` around a tiny model: only its tokenization and chat rules are used."""
    from lm_eval.models.huggingface import HFLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    return HFLM(pretrained=LlamaForCausalLM(config), tokenizer=tokenizer, device="cpu", batch_size=1, **more)


def save_pair(folder: Path) -> str:
    """Two tiny random models of different families as folders; returns the pair."""
    save(folder / "receiver", layers=4)
    save(folder / "sharer", bos=True, family="gemma3", layers=3, heads=1, dim=16, vocabulary=330, seed=1)
    return f"{folder / 'receiver'}:{folder / 'sharer'}"


def save(folder: Path, bos: bool = False, **shape) -> Path:
    """One tiny random model with its tokenizer."""
    made = model(**shape)
    made.save_pretrained(folder)
    tokenizer(made.config.vocab_size, bos).save_pretrained(folder)
    return folder


@dataclass
class Watcher:
    """A `Progress` and `TrainProgress` that remembers."""

    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    updates: list[tuple[float, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)

    def begin(self, title, total, done, right):
        self.updates.append((right, done))

    def update(self, title, right, done):
        self.updates.append((right, done))

    def end(self, title):
        pass

    def step(self, step, steps, loss, right, gates_open, gates, examples_per_s):
        self.losses.append(loss)


class Stopped(Watcher):
    """Presses Ctrl-C after some steps of a training, before what would follow them."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.stops = set(steps)

    def step(self, step, *rest):
        super().step(step, *rest)
        if step in self.stops:
            raise KeyboardInterrupt


def whole_and_resumed(
    whole: TrainRecipe, parts: TrainRecipe, *stops: int, between: Callable[[], None] = lambda: None
) -> tuple[Path, Path]:
    """Trains once whole, and once with a Ctrl-C after each of `stops`: both adapters have the same bytes.

    parts: as `whole`, with another place. between: is called after the first training and after the last
    Ctrl-C.
    """
    [one] = train(whole, Watcher())
    between()
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(parts, Stopped(stop))
    between()
    [other] = train(parts, Watcher())
    assert (one / "adapter.safetensors").read_bytes() == (other / "adapter.safetensors").read_bytes()
    records = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    for record in records:
        record["training"].pop("minutes")
    assert records[0] == records[1]
    return one, other


def saved_and_loaded(made: Adapter, folder: Path, mode: str, ends, within: float = 1e-4) -> Adapter:
    """Saves an adapter and loads it: every tensor is the same, and so are the answers, within so much.

    Where a tensor begins in memory decides last digits. `made` takes the numbers that are stored.
    """
    with torch.no_grad():
        for p in () if made.full_precision else made.parameters():
            p.copy_(p.bfloat16())
    save_adapter(made, folder, "card")
    again = load_adapter(folder, ends[0].device, ends[0].dtype)
    assert type(again) is type(made) and again.config == made.config
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name].float()), name
    with torch.no_grad():
        first, second = (outcomes(create(mode, *ends, one), SPLIT)[0] for one in (made, again))
    for x, y in zip(first, second, strict=True):
        assert x == pytest.approx(y, abs=within, rel=0)
    return again


def refused_in_one_line(mode: str, ends, mistakes: Mapping[str, dict[str, str]], adapter=None) -> None:
    """Each of these options, by what the line says of it, is refused in one line."""
    for word, options in mistakes.items():
        with pytest.raises(UserError) as error:
            create(mode, *ends, adapter, options)
        assert word in str(error.value) and "\n" not in str(error.value)


def names_states_that_are_not_finite(method, documents, says: str) -> None:
    """A hidden state of the sharer that is NaN ends the answer, and is named; it stays NaN."""
    sharer, real = method.sharer, method.sharer.hidden_states
    sharer.hidden_states = lambda *asked: [torch.full_like(x, torch.nan) for x in real(*asked)]
    with pytest.raises(NotFiniteError, match=says):
        method.respond(Batch(documents, documents, Clock()))


def invoke(capsys, monkeypatch, *args: object) -> tuple[int, str, str]:
    """`lcfbench …` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["lcfbench", *map(str, args)])
    capsys.readouterr()
    code = 0
    try:
        cli.main()  # without handlers of signals
    except SystemExit as end:
        code = int(end.code or 0)
    got = capsys.readouterr()
    return code, got.out, got.err


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def hear_signals() -> None:
    """Lets a command hear Ctrl-C and SIGTERM, also where the tests run in the background and ignore them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(*args: object, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
    """`lcfbench …` in a process of its own."""
    command = [sys.executable, "-m", "lcfbench.cli", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd or ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )


def process(*args: object, cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
    """As `start`, to its end: exit code, stdout, stderr."""
    child = start(*args, cwd=cwd, **env)
    out, err = child.communicate(timeout=300)
    return child.returncode, out, err


WARM = ["tests.helpers", "lcfbench.api", "transformers.models.llama.modeling_llama"]
WARM += ["transformers.models.gemma3.modeling_gemma3", "transformers.models.auto.tokenization_auto"]
WARM += ["lm_eval.api.task", "transformers.models.auto.modeling_auto", "lcfbench.cli.run", "scipy.stats"]


@cache
def forks() -> ForkServerContext:
    """A process with the libraries imported, from which commands are forked; its HF_HOME is its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", tempfile.mkdtemp())
        patch.setenv("COLUMNS", "400")  # read as a module is imported
        forkserver.ensure_running()
    return context


def fork(args: Iterable[object], cwd: Path, env: dict[str, str], streams: Sequence[str]) -> BaseProcess:
    """`lcfbench …` without the seconds of its imports; streams: paths of stdin, stdout and stderr."""
    child = forks().Process(target=_forked, args=([*map(str, args)], cwd, env, streams))
    child.start()
    return child


def _forked(args: list[str], cwd: Path, env: dict[str, str], streams: Sequence[str]) -> None:
    os.setsid()  # the first terminal it opens is its own
    hear_signals()
    for number, path in enumerate(streams):
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "rw"[n > 0], closefd=False) for n in range(3))  # noqa: SIM115
    os.chdir(cwd)
    os.environ.update(env)
    sys.path[:0] = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["lcfbench", *args]
    torch.set_num_threads(1)
    main()


def forked(*args: object, cwd: Path, **env: str) -> tuple[int, str, str]:
    """As `process`, for commands whose start is not what is tested."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.devnull, f"{folder}/out", f"{folder}/err"]
        child = fork(args, cwd, environment(**env), streams)
        child.join(300)
        assert child.exitcode is not None, args
        return child.exitcode, *(Path(path).read_text(encoding="utf-8") for path in streams[1:])


class Processes:
    """A command in several processes, as a launcher starts them; each has a folder to run in."""

    def __init__(self, args: Iterable[object], folders: Sequence[Path]) -> None:
        """One process is started without a launcher."""
        count, self.streams = len(folders), Path(tempfile.mkdtemp(dir=folders[0]))
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": str(count)}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        self.all = []
        for n, folder in enumerate(folders):
            own = {"RANK": str(n), "LOCAL_RANK": str(n), **common} if count > 1 else {}
            streams = [os.devnull, str(self.streams / f"out{n}"), str(self.streams / f"err{n}")]
            self.all.append(fork(args, folder, environment(**own), streams))
        self.pids = [each.pid or 0 for each in self.all]

    def until(self, path: Path) -> None:
        """Waits until a file is there, or a process has ended."""
        end = time.monotonic() + 120
        while not path.exists() and all(each.exitcode is None for each in self.all):
            assert time.monotonic() < end
            time.sleep(0.002)

    def end(self, seconds: float = 120, launcher: bool = False) -> tuple[list[int | None], str]:
        """Waits for the end; returns the exit codes, and what was written to stderr.

        launcher: end all where one has failed, as torchrun does, by SIGTERM and by SIGKILL 5 s later.
        """
        if launcher:
            while all(each.exitcode is None for each in self.all):
                multiprocessing.connection.wait([each.sentinel for each in self.all], seconds)
            if any(each.exitcode for each in self.all):
                for each in self.all:
                    each.terminate()
                seconds = 5
        for each in self.all:
            each.join(seconds)
        codes = [each.exitcode for each in self.all]
        for each in self.all:
            each.kill()
            each.join()
        if launcher:
            codes = [each.exitcode for each in self.all]
        return codes, "".join(path.read_text() for path in sorted(self.streams.glob("err*")))


def rows(folder: Path, without: set[str] | None = None) -> list[dict]:
    """The rows of a run folder, in order, without the columns that hold times."""
    drop = TIMES if without is None else without
    return [
        {k: v for k, v in row.items() if k not in drop}
        for row in pq.ParquetFile(folder / "samples.parquet").read().to_pylist()
    ]


COLOURS = (" orange", " brown", " purple box")


def shared_document(i: int, text: str) -> Document:
    view = View(f"Question: {text}", "Answer:")
    steps = (Step(COLOURS, (i % 3,)),)
    return Document(
        "shared",
        str(i),
        view,
        view,
        view,
        View(f"Background on: {text}"),
        view,
        "cloze",
        COLOURS[i % 3],
        steps,
    )


def split_document(i: int, mine: str, theirs: str) -> Document:
    ask = "\nQuestion: In which city is the key of Kafi?\nAnswer: The key of Kafi is in the"
    steps = (Step(COLOURS, (0,)), Step((" Seoul", " Toronto"), (1,), " {0} box. The {0} box is in"))
    a, b, both, noted = (
        View(f"Notes: {t}{ask}") for t in (mine, theirs, f"{theirs} {mine}", f"{NOTE} {mine}")
    )
    return Document(
        "split", str(i), a, b, both, b, noted, "cloze", "Toronto", steps, shared=False, chat=False
    )


SHARED = [
    shared_document(i, t)
    for i, t in enumerate(
        ["Which conducts heat? Zürich 鍵", "What is copper?", "The quick brown fox jumps over the lazy dog."]
    )
]


SPLIT = [
    split_document(
        0, "The brown box is in Toronto. The orange box is in Seoul.", "The key of Kafi is in the orange box."
    ),
    split_document(
        1, "The purple box is in Vienna.", "Zona works as a farmer. The key of Kafi is in the brown box."
    ),
    split_document(2, "The brown box is in Seoul.", "The key."),
]


def tiny_pair(method: str = "lcf", attention: str = "sdpa", chat: bool = False) -> tuple[CausalLM, CausalLM]:
    receiver = causal_lm("tiny-a", chat=chat, attention=attention, layers=4)
    if method in ("kvcomm", "cacheback", "latentmas", "activation", "sde"):
        return receiver, receiver
    return receiver, causal_lm(
        "tiny-b",
        bos=True,
        chat=chat,
        attention=attention,
        family="gemma3",
        layers=3,
        heads=1,
        dim=16,
        vocabulary=330,
        seed=1,
    )


def random_adapter(
    kind: str, ends: tuple[CausalLM, CausalLM], gate: float = 1.0, token_alignment: str = "span", **options
):
    receiver, sharer = ends
    torch.manual_seed(3)
    small = {"hidden": 24, "intermediate": 20} if kind == "c2c" else {"width": 8}
    names = ((receiver.name, receiver.geometry), (sharer.name, sharer.geometry))
    adapter = build(pair_config(kind, *names, token_alignment=token_alignment, options={**small, **options}))
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.3 * torch.randn_like(p))
        adapter.gate_logit.fill_(gate)
    adapter.requires_grad_(False)
    return adapter.eval()


def made_method(name: str, kind: str | None, ends: tuple[CausalLM, CausalLM], **options):
    return create(
        name,
        *ends,
        random_adapter(kind, ends, **options) if kind else None,
        {"t2t": {"budget": "6"}, "sde": {"budget": "6"}, "latentmas": {"steps": "2"}}.get(name, {}),
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal as bits: 0.0 is not −0.0."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def outcomes(method, documents, senders=None):
    batch = Batch(documents, senders or documents, Clock())
    state = method.respond(batch)
    got, _ = answer(state, batch)
    batch.clock.total = batch.clock.total_ms()
    return [[ll for step in o.loglikelihoods for ll, _ in step] for o in got], state, batch


IDENTITY = {
    "mode": "lcf",
    "task": "splitfacts",
    "control": "matched",
    "pair": "a:b",
    "seed": 0,
    "options": {"width": 128},
}


def sample_row(index: int, **more: object) -> dict:
    return {
        "doc_hash": f"h{index:03}",
        "doc_index": index,
        "score": float(index % 2),
        "metrics": {"acc": index % 2},
        **more,
    }


def start_run(out: Path, **more: object) -> RunWriter:
    return RunWriter.open(out, {**IDENTITY, **more}, {"chance": 1 / 3})


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content STRIP}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def own_tokenizer(kind):
    """A byte-level BPE tokenizer: with or without BOS and chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        ["Question: What is it?\nA. one\nB. two\nAnswer: the same café assistant user system"] * 3, trainer
    )
    if kind == "bos":
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    elif kind == "trims":
        inner.post_processor = processors.ByteLevel(trim_offsets=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    if kind in ("keeps", "strips"):
        made.chat_template = CHATML.replace(" STRIP", " | trim " if kind == "strips" else " ")
    elif kind == "bos":
        made.chat_template = "<s>" + CHATML.replace(" STRIP", " ")
    elif kind == "doubles":  # says the first turn twice: only a search can tell where the content stands
        made.chat_template = "Topic: {{ messages[0].content }}\n" + CHATML.replace(" STRIP", " ")
    return made


TEXTS = [
    "Question: In which city is the key of Kafi?",
    "Zona",
    "The quick brown fox jumps over the lazy dog. Der Schlüssel liegt in Zürich. 鍵",
]


FAMILIES = ["llama", "qwen3", "gemma3"]


def plain_prompts(end, texts=TEXTS):
    return [render(View(t), end.tokenizer, chat=False, choices=True) for t in texts]


def _story(i: int) -> str:
    return f"Pet {i} is a cat. It has a red ball.\n\nIt sleeps in barn {i}. Mr. Lee feeds it at noon."


def coqa_rows(n: int = 60) -> list[dict]:
    """CoQA as the Hub has it: one row a story."""
    said = [
        ("What is it?", "a cat"),
        ("Where does it sleep?", "in barn {i}."),
        ("Is it fed?", "Yes"),
        ("By whom?", "Mr. Lee"),
        ("Why?", "hunger"),
    ]
    return [
        {
            "source": "made",
            "story": _story(i),
            "questions": [q for q, _ in said],
            "answers": {
                "input_text": [a.format(i=i) for _, a in said],
                "answer_start": [0] * 5,
                "answer_end": [0] * 5,
            },
        }
        for i in range(n)
    ]


def one_row_a_turn(rows: list[dict]) -> list[dict]:
    return [
        {
            "id": f"s{k}_turn{i}",
            "source": row["source"],
            "story": row["story"],
            "question": question,
            "answers": [answer, f"{answer} indeed"],
            "previous_qa": [
                {"question": q, "answer": a}
                for q, a in zip(row["questions"], row["answers"]["input_text"], strict=True)
            ],
        }
        for k, row in enumerate(rows)
        for i, (question, answer) in enumerate(
            zip(row["questions"], row["answers"]["input_text"], strict=True)
        )
    ]


def squad_rows(n: int = 60) -> list[dict]:
    def row(i, question, golds):
        text = " ".join(_story(i).split())
        return {
            "id": f"q{i}-{question}",
            "title": f"Pet {i}",
            "context": text,
            "question": question,
            "answers": {"text": golds, "answer_start": [text.index(g) if g in text else 0 for g in golds]},
        }

    return [
        row(i, *asked)
        for i in range(n)
        for asked in (
            ("Where?", [f"barn {i}", f"in barn {i}"]),
            ("What ball?", ["red", "red ball"]),
            ("Who?", ["It"]),
        )
    ]


def keep_table(root, repo: str, config: str, split: str, rows: list[dict]) -> None:
    path = root / "datasets" / repo / config / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def hotpot_row(i, n=10, kind="bridge", gold=(2, 7)):
    titles = [f"Title {i} {k}" for k in range(n)]
    return {
        "id": f"h{i}",
        "question": f"Who did {i}?",
        "answer": f"The Person {i}",
        "type": kind,
        "level": "hard",
        "supporting_facts": {
            "title": [titles[k] for k in gold if k < n],
            "sent_id": [0] * len([k for k in gold if k < n]),
        },
        "context": {"title": titles, "sentences": [[f"Fact {i} {k}.", f" More {k}."] for k in range(n)]},
    }


BESIDE = ROOT.parent / "shared"  # real data and reference outputs, where a checkout has them beside it
REFERENCE = BESIDE / "fixtures" / "c2c_reference"


@cache
def copy_fuser(released: Path, folder: Path) -> Path:
    """A copy of a fuser in the released layout, which a test may change."""
    shutil.copytree(released, folder, copy_function=shutil.copyfile)
    for path in (folder, folder / "final"):
        path.chmod(0o755)
    return folder


def reference_model(name: str, tokenizer: str = "") -> CausalLM:
    path = REFERENCE / "models" / name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    return CausalLM(name, model, AutoTokenizer.from_pretrained(REFERENCE / tokenizer if tokenizer else path))


def reference_document(user: str, chat: bool) -> Document:
    view = View(user)
    return Document("reference", user, view, view, view, view, view, "generate", "", chat=chat)


BASELINES = ("answer_letter", "excerpt", "identical", "lora", "single")


def one_model_twice(attention: str = "sdpa", chat: bool = False, **shape) -> tuple[CausalLM, CausalLM]:
    end = causal_lm("tiny-a", chat=chat, attention=attention, **{"layers": 4, **shape})
    return end, end


def two_models(attention: str = "sdpa", chat: bool = False) -> tuple[CausalLM, CausalLM]:
    other = {"family": "gemma3", "layers": 3, "heads": 1, "dim": 16, "vocabulary": 330, "seed": 1}
    return one_model_twice(attention, chat)[0], causal_lm(
        "tiny-b", bos=True, chat=chat, attention=attention, **other
    )


def random_lora(end: CausalLM, still: bool = False, **options) -> lora.LoraAdapter:
    """A LoRA as the trainer makes it: untrained (`still`), or with random weights."""
    torch.manual_seed(4)
    config = pair_config("lora", (end.name, end.geometry), (end.name, end.geometry), options=options)
    adapter = build(method_class("lora").configure(config, end, end))
    assert isinstance(adapter, lora.LoraAdapter)
    if not still:
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(0.1 * torch.randn_like(p))
        adapter.requires_grad_(False)
    return adapter


def made_baseline(name: str, kind: str | None, attention: str = "sdpa", chat: bool = False):
    ends = one_model_twice(attention, chat) if kind else two_models(attention, chat)
    adapter = random_lora(ends[0]) if kind == "lora" else random_adapter(kind, ends) if kind else None
    return create(name, *ends, adapter, {"bytes": "20"} if name == "excerpt" else {})


def dense_config(ends, alignment: str = "span", **options) -> AdapterConfig:
    names = ((e.name, e.geometry) for e in ends)
    return pair_config("dense", *names, layer_map="proportional", token_alignment=alignment, options=options)


def random_dense(ends, logit: float = 1.0, alignment: str = "span", **options):
    """An adapter with every parameter away from its start."""
    torch.manual_seed(3)
    adapter = build(dense_config(ends, alignment, **options))
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.3 * torch.randn_like(p))
        adapter.gate_logit.fill_(logit)
    return adapter.requires_grad_(False).eval()


def stirred(made, kind: type, stir: float):
    """A new adapter of this class, away from its start by `stir`, ready to be used."""
    with torch.no_grad():
        for p in made.parameters():
            p.add_(stir * torch.randn_like(p))
    assert isinstance(made, kind)
    return made.requires_grad_(False).eval()


def random_prefix(ends, stir: float = 0.3, **options) -> PrefixAdapter:
    """A small adapter, away from its zeros by `stir`."""
    torch.manual_seed(3)
    options = {"slots": 4, "width": 6, "gate": "soft", **options}
    made = build(pair_config("prefix", *((e.name, e.geometry) for e in ends), options=options))
    return stirred(made, PrefixAdapter, stir)


def random_draft(ends, stir: float = 0.3, **options) -> DraftKVAdapter:
    """A small adapter of the last layers, away from its start by `stir`."""
    torch.manual_seed(3)
    options = {"draft": 4, "width": 6, "gate": "soft", **options}
    names, layers = [(e.name, e.geometry) for e in ends], min(3, ends[0].geometry.layers)
    made = build(pair_config("draft_kv", *names, layer_map="proportional", layers=layers, options=options))
    return stirred(made, DraftKVAdapter, stir)


def random_codec(ends, stir: float = 0.3, **options) -> CodecAdapter:
    """A small adapter, away from its start by `stir`."""
    torch.manual_seed(3)
    names = ((e.name, e.geometry) for e in ends)
    made = build(pair_config("codec", *names, layer_map="proportional", options={"width": 6, **options}))
    return stirred(made, CodecAdapter, stir)


def random_xkv(ends, stir: float = 0.3, **options) -> XKVAdapter:
    """A small adapter, away from its zeros by `stir`."""
    torch.manual_seed(3)
    options = {"slots": 3, "width": 6, **options}
    names = ((e.name, e.geometry) for e in ends)
    made = build(pair_config("xkv", *names, layer_map="proportional", options=options))
    return stirred(made, XKVAdapter, stir)


def random_activation(ends, stir: float = 0.03, **options) -> ActivationAdapter:
    """A map between the models' hidden states, away from its start by `stir`."""
    torch.manual_seed(3)
    config = pair_config("activation", *((e.name, e.geometry) for e in ends), options=options)
    return stirred(build(method_class("activation").configure(config, *ends)), ActivationAdapter, stir)


def method_of(name: str, kind: str | None, chat: bool):
    """Any method on a tiny pair with a random adapter; `remap` and `c2c-remap` align by translation."""
    if name == "dense":
        ends = two_models(chat=chat)
        return create("dense", *ends, random_dense(ends))
    if name == "prefix":
        ends = two_models(chat=chat)
        return create("prefix", *ends, random_prefix(ends, place=kind))
    if name == "draft_kv":
        ends = two_models(chat=chat)
        return create("draft_kv", *ends, random_draft(ends))
    if name == "hub":
        ends = two_models(chat=chat)
        return create("hub", *ends, random_codec(ends, whole=False))
    if name == "xkv":
        ends = two_models(chat=chat)
        return create("xkv", *ends, random_xkv(ends))
    if name == "activation" and kind == "map":
        ends = two_models(chat=chat)
        return create("activation", *ends, random_activation(ends))
    if name in ("identical", "single", "lora", "answer_letter", "excerpt"):
        return made_baseline(name, kind, chat=chat)
    options = {}
    if kind in ("remap", "c2c-remap"):
        options, kind = {"token_alignment": "remap"}, "c2c" if kind == "c2c-remap" else "lcf"
    return made_method(name, kind, tiny_pair(name, chat=chat), **options)


LIMIT = 12


def small_recipe(pair: str, out: Path, **more) -> Recipe:
    chosen = {
        "mode": ["receiver"],
        "control": ["matched"],
        "limit": LIMIT,
        "batch_size": 4,
        "dtype": "float32",
        "latency_documents": 0,
        "options": {"budget": "6"},
    }
    if "t2t" not in more.get("mode", []):
        chosen.pop("options")
    if not any(
        method_class(name).adapter_kinds and not method_class(name).adapter_optional
        for name in Recipe(mode=more.get("mode", ["receiver"])).methods
    ):
        more.pop("adapter", None)  # it would be refused
    return Recipe.model_validate({**chosen, "pair": pair, "out": out, **more})


def run_recipe(pair: str, out: Path, watcher: Watcher | None = None, **more) -> list[Path]:
    return [out / run_id for run_id in runner.run(small_recipe(pair, out, **more), watcher or Watcher())]


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def printed(capsys, monkeypatch, width: int, *tables) -> str:
    """The tables as a terminal of so many columns shows them."""
    from lcfbench.cli.tables import show
    from lcfbench.cli.terminal import out

    monkeypatch.setattr(out, "_width", width)
    show(*tables)
    return capsys.readouterr().out


def released_fuser(folder: Path, receiver: str, sharer: str, layers: int = 4, **size: int) -> Path:
    """A fuser in C2C's released layout for two of the tiny models of `save_pair`; its weights are random."""
    a = {"source_dim": 16, "target_dim": 8, "source_num_heads": 1, "target_num_heads": 2}
    a |= {"hidden_dim": 6, "intermediate_dim": 5, "num_layers": 3, **size}
    (folder / "final").mkdir(parents=True)
    model = {"base_model": receiver, "teacher_model": sharer, "is_do_alignment": True}
    (folder / "config.json").write_text(json.dumps({"model": model | {"alignment_strategy": "longest"}}))
    maps = {str(i): [[min(i, 2), i]] for i in range(layers)}
    (folder / "final" / "projector_config.json").write_text(json.dumps({"0": {"1": maps}}))
    generator = torch.Generator().manual_seed(0)
    for i in range(layers):
        described = {"class": "C2CProjector", "init_args": {**a, "dropout": 0.1}}
        (folder / "final" / f"projector_{i}.json").write_text(json.dumps(described))
        state = {n: torch.randn(shape, generator=generator).bfloat16() for n, shape in _shapes(a).items()}
        torch.save(state, folder / "final" / f"projector_{i}.pt")
    return folder
