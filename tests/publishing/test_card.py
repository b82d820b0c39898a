"""A pushed adapter's card and `.eval_results`, read by the Hub's own client."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from lcfbench.adapters.config import CARD, PROOF
from lcfbench.adapters.proof import read_proofs
from lcfbench.publishing.adapter import push
from lcfbench.publishing.card import BEGIN
from lcfbench.publishing.proof import prove
from tests.helpers import invoke
from tests.publishing.test_proof import change

REPO = "me/mine"


@pytest.fixture(scope="module")
def proven(world, tmp_path_factory):
    folder = world.copy(tmp_path_factory.mktemp("proven") / "mine")
    prove(folder, [world.runs])
    return folder


@pytest.fixture
def mine(proven, tmp_path, server, monkeypatch):
    """A proven adapter, and a token that may write."""
    monkeypatch.setenv("HF_TOKEN", "token")
    return shutil.copytree(proven, tmp_path / "mine")


def read_card(server, branch="main") -> ModelCard:
    return ModelCard(server.files(REPO, branch)[CARD].decode())


def test_a_card_says_matched_deranged_and_content(server, mine):
    (proof,) = push(mine, REPO).proofs
    card = read_card(server)
    card.validate(repo_type="model")
    found = {each.metric_type: each for each in card.data.eval_results}
    name = next(iter(found))
    assert list(found) == [name, f"{name}_deranged", "content"]
    assert [each.metric_value for each in found.values()] == [proof.matched, proof.deranged, proof.content]
    assert "control deranged" in found[f"{name}_deranged"].metric_name
    interval = found["content"].metric_args
    assert (interval["low"], interval["high"], interval["confidence"]) == (proof.low, proof.high, 0.95)
    for each in found.values():
        assert each.dataset_args["documents"] == proof.n and each.dataset_args["revisions"] == proof.revisions
        assert each.source_url.endswith(f"/{REPO}/blob/main/{PROOF}")
    assert f"{100 * proof.content:+.1f}" in card.text and proof.adapter_sha256 in card.text
    assert not [n for n in server.files(REPO) if n.startswith(".eval_results")], "no data set of the Hub"


def test_a_score_on_a_data_set_of_the_hub_is_in_eval_results(server, mine):
    change(mine, forge=True, dataset="allenai/openbookqa", dataset_config="main", dataset_split="test")
    (proof,) = push(mine, REPO).proofs
    (name,) = [n for n in server.files(REPO) if n.startswith(".eval_results/")]
    (entry,) = parse_eval_result_entries(yaml.safe_load(server.files(REPO)[name]))
    assert (entry.dataset_id, entry.task_id) == ("allenai/openbookqa", "main")
    assert entry.value == pytest.approx(100 * proof.matched, abs=0.005)
    said = f"message {100 * proof.deranged:.1f}", proof.interval, *(r[:12] for r in proof.revisions)
    assert all(part in entry.notes for part in said)


def test_another_branch_is_the_address_of_its_proof(server, mine):
    push(mine, f"{REPO}@v/2")
    card = read_card(server, "v/2")
    assert {e.source_url.rpartition("/blob/")[2] for e in card.data.eval_results} == {f"v%2F2/{PROOF}"}


def test_pushed_again_without_a_proof_nothing_of_it_is_left(server, mine):
    change(mine, forge=True, dataset="allenai/openbookqa", dataset_config="main", dataset_split="test")
    push(mine, REPO)
    (mine / PROOF).unlink()
    push(mine, REPO)
    card = read_card(server)
    assert card.data.eval_results is None and BEGIN not in card.text
    assert not [n for n in server.files(REPO) if n == PROOF or n.startswith(".eval_results")]


def test_an_authors_results_and_words_stay(server, mine):
    theirs = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "me/own", "name": "own"},
        "metrics": [{"type": "accuracy", "value": 0.5}],
    }
    head = yaml.safe_dump({"licence": "mit", "model-index": [{"name": "x", "results": [theirs]}]})
    (mine / CARD).write_text(f"---\n{head}---\n# Mine\n\nBefore.\n\n---\n\nAfter ---\n")
    push(mine, REPO)
    first = server.files(REPO)[CARD]
    (mine / CARD).write_bytes(first)
    push(mine, REPO)
    assert server.files(REPO)[CARD] == first, "as many entries as before"
    card = read_card(server)
    assert [e.dataset_type for e in card.data.eval_results].count("me/own") == 1
    assert len(card.data.eval_results) == 4 and "Before.\n\n---\n\nAfter ---" in card.text


def test_a_pulled_adapter_whose_interval_was_forged_is_not_put_in_place(
    server, mine, tmp_path, capsys, monkeypatch
):
    push(mine, REPO)
    (proof,) = read_proofs(mine)
    change(mine, forge=True, low=proof.content - 0.0001, high=1.0)
    files = server.files(REPO)
    files[PROOF] = json.dumps(json.loads((mine / PROOF).read_text())).encode()
    code, _, said = invoke(capsys, monkeypatch, "adapter", "pull", REPO, "--out", tmp_path / "got")
    assert code == 2 and "is not that of its documents" in said
    assert not (tmp_path / "got").exists()
