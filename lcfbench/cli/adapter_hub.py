"""`lcfbench adapter push|pull|prove`: adapters on the Hub, and the proof that they carry."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from lcfbench.cli.adapter import AdapterArgument, adapter_app
from lcfbench.cli.console import echo, note, warn
from lcfbench.cli.options import ForceOption, JsonOption, OfflineOption
from lcfbench.progress import quiet_libraries
from lcfbench.tables import printable


@adapter_app.command("push")
def adapter_push(
    adapter: AdapterArgument,
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME[@BRANCH]", help="Repository on the Hub, and a branch; made where there is none."
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Only for those you let in.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch; made where there is none. [default: main]")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    offline: OfflineOption = None,
) -> None:
    """Upload an adapter to the Hub: weights, config, proof and card, nothing else of its folder.

    The card gets `model-index`, and results on the Hub's data sets go to `.eval_results`, as far as the
    adapter has a proof. Needs a token (`hf auth login`).
    """
    from lcfbench.adapters.select import find_adapter
    from lcfbench.publishing.adapter import push

    quiet_libraries()
    folder = find_adapter(adapter)
    made = push(folder, repo_id, private=private, revision=revision, message=message, offline=bool(offline))
    if not made.proofs:
        warn(f"{folder} has no proof, so its card has no results: lcfbench adapter prove {folder}")
    echo(f"pushed {adapter}: {made.url}")


@adapter_app.command("pull")
def adapter_pull(
    repo_id: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME[@REVISION]", help="Repository on the Hub; a branch, tag or commit of it."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the adapter. [default: adapters/NAME]")] = None,
    subfolder: Annotated[
        str, typer.Option(help="Where in the repository the adapter lies. [default: at its root]")
    ] = "",
    force: ForceOption = False,
    offline: OfflineOption = None,
) -> None:
    """Fetch an adapter from the Hub, a mirror or the Hub's cache.

    It is put in place only once it has been loaded whole, and its proof holds where it has one.
    """
    from lcfbench.adapters.base import method_of
    from lcfbench.adapters.config import SOURCE, read_config
    from lcfbench.adapters.hub import pull
    from lcfbench.parsing import load_json
    from lcfbench.publishing.adapter import sound_proofs

    quiet_libraries()
    folder = pull(repo_id, out, subfolder=subfolder, force=force, offline=bool(offline), check=sound_proofs)
    c, source = read_config(folder), load_json(folder / SOURCE, "source")
    for proof in sound_proofs(folder):
        note(printable(f"proof: {proof.sentence}", one_line=True))
    task = next(iter(c.tasks), "TASK")
    pair = shlex.quote(":".join(c.pair))
    use = f"lcfbench run --mode {method_of(c)} --pair {pair} --task {task} --adapter {folder}"
    commit = f", commit {source['commit'][:12]}" if "commit" in source else ", of the mirror"
    echo(f"saved {folder}{commit}: {c.kind} for {c.receiver}:{c.sharer}; use it with: {use}")


@adapter_app.command("prove")
def adapter_prove(
    adapter: AdapterArgument,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Results folder or run folder. Repeatable. [default: results]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: hold the proof that is there against the rows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put the proof beside an adapter that its messages count: from runs under matched and deranged.

    It names task, scores, content with interval, the digests of both models, of the weights and of the
    rows. A digest finds a change; it is no signature.
    """
    from lcfbench.adapters.select import find_adapter
    from lcfbench.publishing.proof import held_against, prove

    folder, paths = find_adapter(adapter), runs or [Path("results")]
    if check:
        proofs = held_against(folder, paths)
    else:
        made = prove(folder, paths)
        proofs = made.proofs
        for sentence in made.warnings:
            warn(sentence)
    if as_json:
        echo(json.dumps([proof.model_dump(mode="json", exclude={"documents"}) for proof in proofs]))
        return
    for proof in proofs:
        echo(printable(f"{'holds' if check else 'proven'}: {proof.sentence}", one_line=True))
