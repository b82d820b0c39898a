"""Oracles on tiny random models: slices, ridge maps against planted relations, the two verbs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from lcfbench.adapters.ridge import Held, Ridge, Scale
from lcfbench.analysis.plots import oracle as oracle_plots
from lcfbench.cli.oracle import oracle_app
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.timing import Clock
from lcfbench.oracle.aligned_texts import align_texts, entries, file_texts, split
from lcfbench.oracle.enrich import examples, measure, run_enrich
from lcfbench.oracle.recipe import Enrich, Transform
from lcfbench.oracle.record import OracleRun
from lcfbench.oracle.slices import answered, enriched_prompt, one_layer, oracle, sliced
from lcfbench.oracle.transform import fit, plane, run_transform
from lcfbench.tasks.task import load_task
from tests import helpers
from tests.helpers import SHARED, SPLIT, same_bits, save, save_pair


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def splitfacts():
    return load_task("splitfacts")


def states(end, documents, before="examples", shown=SHARED[1:]):
    direct = end.read([prompt(end, d.receiver, d) for d in documents])
    kept = end.read([enriched_prompt(end, d, before, shown) for d in documents])
    return direct, kept


def scores(state, documents):
    outcomes, _ = answer(state, Batch(documents, documents, Clock()))
    return [ll for o in outcomes for step in o.loglikelihoods for ll, _ in step]


# -- slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("positions", ["direct", "kept"])
def test_nothing_in_front_changes_nothing(chat, positions):
    end = helpers.causal_lm(chat=chat, layers=4)
    direct, kept = states(end, SHARED, shown=[])
    enriched = oracle(direct, kept, positions)
    assert same_bits(enriched.kv.keys, direct.kv.keys) and same_bits(enriched.kv.values, direct.kv.values)
    assert scores(enriched, SHARED) == scores(direct, SHARED)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_slice_is_the_questions_and_nothing_else(chat, family):
    end = helpers.causal_lm(chat=chat, bos=True, layers=3, family=family)
    direct, kept = states(end, SHARED)
    enriched = oracle(direct, kept)
    assert enriched.kv.length == direct.kv.length and torch.equal(enriched.positions, direct.positions)
    changed = (enriched.kv.values != direct.kv.values).any(dim=(0, 2, 4))  # (B, N)
    for i, (a, b) in enumerate(zip(direct.prompts, kept.prompts, strict=True)):
        n = sliced(a, b) - 1
        expected = [False] * (direct.kv.length - n) + [True] * n
        assert changed[i].tolist() == expected
        start = len(a.ids) - n - 1
        assert a.ids[start:] == b.ids[-n - 1 :] and a.offsets[start][1] > a.spans[0][0], (
            "it begins within the question's own text"
        )
        assert a.offsets[start - 1][1] <= max(a.spans[0][0], a.offsets[1][1]), (
            "and leaves none of it out, the sink aside"
        )


def test_a_moved_slice_has_the_keys_of_its_new_positions():
    """Keys of layer 0 depend on token and place alone: once moved they equal the direct ones."""
    for family in ("llama", "gemma3"):
        end = helpers.causal_lm(layers=3, family=family)
        direct, kept = states(end, SHARED)
        enriched, stayed = oracle(direct, kept), oracle(direct, kept, "kept")
        real = direct.kv.mask.bool()
        own, moved, old = (s.kv.keys[0].transpose(1, 2)[real] for s in (direct, enriched, stayed))
        assert torch.allclose(own, moved, atol=1e-5) and not torch.allclose(own, old, atol=1e-2)
        assert (
            torch.equal(stayed.positions, kept.positions)
            and (enriched.kv.keys[-1] != direct.kv.keys[-1]).any()
        )


def test_all_layers_one_by_one_are_the_oracle():
    end = helpers.causal_lm(layers=4)
    direct, kept = states(end, SHARED)
    enriched = oracle(direct, kept)
    built = direct
    for layer in range(4):
        assert scores(one_layer(direct, enriched, layer), SHARED) != scores(direct, SHARED) or layer == 0
        built = one_layer(built, enriched, layer)
    assert same_bits(built.kv.keys, enriched.kv.keys) and scores(built, SHARED) == scores(enriched, SHARED)


def test_the_other_sides_text_stands_in_front(splitfacts):
    end = helpers.causal_lm(layers=2)
    for d in splitfacts.documents(limit=3):
        assert enriched_prompt(end, d, "context", []).text == prompt(end, d.full, d).text, (
            "kept is then the method full_context"
        )
    made = enriched_prompt(end, SPLIT[0], "context", []).text
    assert made.startswith("Notes: The key of Kafi is in the orange box. The brown box") and made.endswith(
        "The key of Kafi is in the"
    )
    direct, kept = states(end, SPLIT, "context")
    assert all(sliced(a, b) > 10 for a, b in zip(direct.prompts, kept.prompts, strict=True))


def test_examples_are_answered_train_documents(splitfacts):
    asked = splitfacts.documents(limit=20)
    shown = examples(splitfacts, asked, 3, None, False)
    train = {d.hash for d in splitfacts.documents(split="train", limit=200)}
    assert (
        len(shown) == 3
        and all(d.hash in train for d in shown)
        and not {d.receiver for d in shown} & {d.receiver for d in asked}
    )
    word, city = (s.choices[s.gold[0]].strip() for s in shown[0].steps)
    assert answered(shown[0]) == f"{shown[0].receiver.prefix} {word} box. The {word} box is in {city}"
    text = enriched_prompt(helpers.causal_lm(layers=2), asked[0], "examples", shown).text
    assert f"is in {city}\n\nNotes:" in text and text.endswith(asked[0].receiver.prefix)
    assert answered(SHARED[0]) == "Answer: orange"


# -- enrich ---------------------------------------------------------------------------------------


def test_direct_is_the_receiver_method_and_kept_is_full_context(splitfacts):
    end, chosen = helpers.causal_lm(layers=3), Enrich(task="splitfacts", per_layer=True, batch_size=4)
    documents = splitfacts.documents(limit=10)
    rows = measure(end, splitfacts, documents, [], "context", chosen, print)
    assert len(rows) == 10 * (3 + 3) and sorted(rows["layer"].dropna().unique()) == [0, 1, 2]
    for mode, condition in (("receiver", "direct"), ("full_context", "kept")):
        method = create(mode, end, end)
        for group in batches(documents, 4):
            batch = Batch(group, group, Clock())
            outcomes, _ = answer(method.respond(batch), batch)
            for d, outcome in zip(group, outcomes, strict=True):
                row = rows[(rows["doc_hash"] == d.hash) & (rows["condition"] == condition)].iloc[0]
                gold = [
                    ranked[s.gold[0]][0] for s, ranked in zip(d.steps, outcome.loglikelihoods, strict=True)
                ]
                assert row["gold_ll"] == sum(gold) and row["score"] == splitfacts.score(d, outcome)["score"]


def test_batch_1_equals_batch_n_in_every_condition(splitfacts):
    end, documents = helpers.causal_lm(layers=2, bos=True, family="gemma3"), splitfacts.documents(limit=6)
    shown = examples(splitfacts, documents, 2, None, False)
    one, many = (
        measure(
            end,
            splitfacts,
            documents,
            shown,
            "examples",
            Enrich(task="splitfacts", per_layer=True, batch_size=n),
            print,
        )
        for n in (1, 6)
    )
    assert (
        one["prediction"].tolist() == many["prediction"].tolist()
        and one["slice_tokens"].tolist() == many["slice_tokens"].tolist()
    )
    assert np.allclose(one["gold_ll"], many["gold_ll"], atol=1e-4)
    direct, whole = (many[many["condition"] == c]["gold_ll"].to_numpy() for c in ("direct", "oracle"))
    assert (direct != whole).all()


def test_written_answers_have_a_score_and_no_likelihood(splitfacts):
    documents = splitfacts.documents(limit=2, scoring="generate")
    rows = measure(
        helpers.causal_lm(layers=2),
        splitfacts,
        documents,
        [],
        "context",
        Enrich(task="splitfacts", scoring="generate"),
        print,
    )
    assert rows["gold_ll"].isna().all() and rows["score"].notna().all()


# -- ridge ----------------------------------------------------------------------------------------


def planted(n: int = 900, noise: float = 0.0):
    rng = torch.Generator().manual_seed(0)
    x = 5 * torch.randn(n, 12, generator=rng) * torch.linspace(0.1, 30, 12) + torch.linspace(-200, 300, 12)
    weight = torch.randn(12, 7, generator=rng) / x.std(0)[:, None]
    return x, x @ weight + 40 + noise * torch.randn(n, 7, generator=rng)


def fitted(x, y, size, penalty):
    scale, ridge = Scale.of(x.split(size), clamp=1e9), Ridge(12, 7)
    for a, b in zip(x.split(size), y.split(size), strict=True):
        ridge.add(scale(a), b)
    return scale, ridge.solve(penalty), ridge


def test_a_planted_linear_relation_is_found():
    x, y = planted()
    scale, found, ridge = fitted(x[:700], y[:700], 100, 0.0)
    held = Held(7)
    for a, b in zip(x[700:].split(50), y[700:].split(50), strict=True):
        held.add(found(scale(a)), b)
    assert held.tokens == 200 and torch.allclose(held.r2(7), torch.ones(7), atol=1e-6)
    assert torch.allclose(ridge.mean(), y[:700].mean(0), atol=1e-2)
    worse = Held(7)
    worse.add(torch.zeros(200, 7), y[700:])
    assert (worse.r2(7) < 0).all(), "the origin is worse than the mean"


def test_streamed_sums_equal_the_textbook_ridge():
    x, y = planted(noise=3.0)
    for size in (37, 900):
        scale, found, _ = fitted(x, y, size, 0.05)
        z = scale(x).double()
        z_mean, y_mean = z.mean(0), y.double().mean(0)
        weight = torch.linalg.solve(
            (z - z_mean).T @ (z - z_mean) + 0.05 * 900 * torch.eye(12), (z - z_mean).T @ (y - y_mean)
        )
        assert torch.allclose(found.weight, weight.float(), atol=1e-3)
        assert torch.allclose(found(scale(x)), ((z - z_mean) @ weight + y_mean).float(), atol=2e-2)
    held = Held(7)
    held.add(found(scale(x)), y)
    by_hand = 1 - (y - found(scale(x))).square().sum() / (y - y.mean(0)).square().sum()
    assert held.r2()[0] == pytest.approx(float(by_hand), abs=1e-4) and 0.01 < held.r2()[0] < 0.99


def test_inputs_are_standardised_and_clamped():
    x, _ = planted()
    z = Scale.of(x.split(64))(x)
    assert torch.allclose(z.mean(0), torch.zeros(12), atol=1e-3) and torch.allclose(
        z.std(0), torch.ones(12), atol=1e-2
    )
    assert float(Scale.of([x])(x + 1e6).max()) == 8.0
    assert float(Scale.of([torch.ones(5, 2)])(torch.ones(5, 2)).abs().max()) == 0.0


# -- transform ------------------------------------------------------------------------------------


def passages(splitfacts):
    return [d.full.user for d in splitfacts.documents(split="train", limit=60)]


@pytest.fixture(scope="module")
def unlike():
    return helpers.causal_lm(layers=4), helpers.causal_lm(
        bos=True, family="gemma3", layers=3, heads=1, dim=24, vocabulary=330, seed=1
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_model_is_mapped_onto_itself(splitfacts, family):
    end = helpers.causal_lm(layers=3, family=family)
    pairs = align_texts(passages(splitfacts), (end.tokenizer, end.tokenizer), 4000)
    x, y = next(iter(entries(end, end, pairs, 8)))
    assert torch.equal(x, y) and all(p.tokens == p.reads and p.tokens[0] == 2 for p in pairs)
    rows, points = fit(end, end, pairs, "proportional", 1, 16, print)
    assert (rows[["r2_k", "r2_v", "cosine_k", "cosine_v"]] > 0.99).all(axis=None) and rows["chosen"].all()
    assert (rows["mean_cosine_v"] < 0.9).all()
    best, _ = fit(end, end, pairs, "best", 1, 16, print)
    assert len(best) == 9 and best[best["chosen"]]["sharer_layers"].tolist() == ["0", "1", "2"]
    assert set(points["kind"]) == {"receiver", "mapped", "sharer"}, (
        "equal dims: the sharer's entries are drawn as they are"
    )


def test_other_models_are_mapped_less_and_batches_do_not_matter(splitfacts, unlike):
    pairs = align_texts(passages(splitfacts), (unlike[0].tokenizer, unlike[1].tokenizer), 2500)
    train, held = split(pairs)
    assert len(held) == len(pairs) // 5 and not {p.mine.text for p in held} & {p.mine.text for p in train}
    (one, points), (many, _) = (fit(*unlike, pairs, "proportional", 2, n, print) for n in (1, 16))
    numbers = [c for c in one if c.startswith(("r2", "cosine", "mean"))]
    assert one["sharer_layers"].tolist() == many["sharer_layers"].tolist() == ["0,1", "1,0", "1,0", "2,1"]
    assert np.allclose(one[numbers], many[numbers], atol=5e-3)
    assert (one[["r2_k", "r2_v"]] < 0.999).all(axis=None) and (one["r2_k"] > 0.05).all()
    assert set(points["kind"]) == {"receiver", "mapped"} and sorted(points["receiver_layer"].unique()) == [
        0,
        1,
        2,
        3,
    ]


def test_more_input_fits_no_worse_and_best_contains_every_single_map(splitfacts, unlike):
    pairs = align_texts(passages(splitfacts), (unlike[0].tokenizer, unlike[1].tokenizer), 3000)
    single, _ = fit(*unlike, pairs, "terminal", 1, 16, print)
    best, _ = fit(*unlike, pairs, "best", 1, 16, print)
    assert len(best) == 12 and best["chosen"].sum() == 4
    both = single.merge(best, on=["receiver_layer", "sharer_layers"], suffixes=("", "_best"))
    assert len(both) == 4 and np.allclose(both["r2_v"], both["r2_v_best"], atol=1e-3)
    top = best[best["chosen"]]
    assert (
        (top["r2_k"] + top["r2_v"]).to_numpy() >= (single["r2_k"] + single["r2_v"]).to_numpy() - 1e-3
    ).all()


def test_the_plane_holds_what_lies_in_a_plane():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 2)))
    cloud = torch.tensor(rng.normal(size=(40, 2)) @ basis.T + 3)
    a, b = plane([cloud[:25], cloud[25:]])
    flat = np.concatenate([a, b])
    true = torch.cdist(cloud, cloud).numpy()
    assert np.allclose(np.linalg.norm(flat[:, None] - flat[None], axis=-1), true, atol=1e-5)


def test_a_file_is_cut_into_texts(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("One.\n\nTwo\nlines.\n\nOne.\n\n" + "x" * 4100)
    assert [len(t) for t in file_texts(file)] == [4, 10, 2000, 100], (
        "equal paragraphs once, long ones in pieces"
    )
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            file_texts(bad)


# -- the verbs ------------------------------------------------------------------------------------


class ComputedError(Exception):
    """What the test forbids to run raises this."""


def compute(*_):
    raise ComputedError


def call(*args: object):
    app = typer.Typer()
    app.add_typer(oracle_app, name="oracle")
    return CliRunner().invoke(app, ["oracle", *map(str, args)])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("pair"))


def test_enrich_records_shows_and_finds_again(tmp_path, pair, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    asked = (
        "enrich",
        "--model",
        pair.split(":")[0],
        "--task",
        "splitfacts",
        "--limit",
        6,
        "--per-layer",
        "--out",
        tmp_path,
        "--dtype",
        "float32",
    )
    first = call(*asked)
    assert first.exit_code == 0, (first.output, first.exception)
    assert "oracle: question's slice" in first.output and "points (95 %" in " ".join(first.output.split())
    [folder] = (tmp_path / "oracle").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["state"] == "complete"
        and manifest["identity"]["before"] == "context"
        and manifest["documents"] == 6
    )
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "rows.parquet", "enrich.png", "enrich.svg"}
    stamps = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    monkeypatch.setattr("lcfbench.oracle.enrich.measure", compute)
    again = call(*asked, "--json")
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    told = json.loads(again.stdout)
    rows = pd.read_parquet(folder / "rows.parquet")
    for line in told["conditions"]:
        assert line["score"] == pytest.approx(
            rows.loc[rows["condition"] == line["condition"], "score"].mean()
        )
    assert told["conditions"][0]["change"] == 0 and len(told["layers"]) == 3
    assert isinstance(call(*asked, "--fresh").exception, ComputedError)
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.iterdir()}, (
        "what fails leaves the earlier run alone"
    )


def test_transform_records_shows_and_finds_again(tmp_path, pair, monkeypatch):
    asked = (
        "transform",
        "--pair",
        pair,
        "--tokens",
        1500,
        "--map",
        "best",
        "--out",
        tmp_path,
        "--dtype",
        "float32",
    )
    first = call(*asked)
    assert first.exit_code == 0, (first.output, first.exception)
    assert "of the variance of the receiver's keys" in " ".join(first.output.split())
    [folder] = (tmp_path / "oracle").iterdir()
    figures = {f"{n}.{kind}" for n in ("layers", "matrix", "picture") for kind in ("png", "svg")}
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "rows.parquet", "points.parquet", *figures}
    (folder / "matrix.png").write_bytes(b"old")
    place = OracleRun(folder)
    kept = place.manifest()
    place.keep({n: place.table(n) for n in ("rows", "points")}, kept.pop("identity"), kept)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".parquet"} and place.finished(), (
        "plots of other numbers do not stay"
    )
    monkeypatch.setattr("lcfbench.oracle.transform.fit", compute)
    told = json.loads(call(*asked, "--json").stdout)
    rows = pd.read_parquet(folder / "rows.parquet")
    assert len(rows) == 12 and told["r2_v"] == pytest.approx(rows[rows["chosen"]]["r2_v"].mean())
    other = call(*asked[:-2], "--dtype", "bfloat16", "--json")
    assert isinstance(other.exception, ComputedError), "another dtype is another run"


def test_pictures_are_the_same_bytes_twice(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            {
                "doc_index": i,
                "condition": c,
                "layer": None,
                "score": float(rng.random() < 0.5),
                "gold_ll": rng.normal(),
            }
            for c in ("direct", "kept", "oracle")
            for i in range(30)
        ]
        + [
            {"doc_index": i, "condition": "layer", "layer": n, "score": 1.0, "gold_ll": rng.normal()}
            for n in range(4)
            for i in range(30)
        ]
    ).astype({"layer": "Int64"})
    names = {c: f"{c}: this" for c in ("direct", "kept", "oracle")}
    a, b = (oracle_plots.plot_enrich(rows, names, "title", tmp_path / name) for name in "ab")
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]


BAD = [
    (("enrich", "--model", "smollm2-135n"), "unknown model"),
    (("enrich", "--task", "openbookq"), "unknown task"),
    (
        ("enrich", "--task", "splitfacts", "--limit", "1"),
        "setting limit: input should be greater than or equal to 2",
    ),
    (("enrich", "--task", "splitfacts", "--limit", "0"), "setting limit"),
    (("enrich", "--task", "splitfacts", "--with", "example"), "examples"),
    (("enrich", "--task", "splitfacts", "--scoring", "letters"), "unknown scoring"),
    (
        ("enrich", "--task", "splitfacts", "--with", "examples", "--shots", "0"),
        "setting shots: input should be greater than or equal to 1",
    ),
    (("enrich", "--task", "splitfacts_heldout", "--with", "examples"), "no train split"),
    (("enrich", "--task", "openbookqa", "--with", "context"), "no other side's context"),
    (("enrich", "--task", "splitfacts", "--per-layer", "--positions", "kept"), "own positions only"),
    (("transform", "--pair", "smollm2-135m"), "RECEIVER:SHARER"),
    (("transform", "--map", "proportionl"), "proportional"),
    (("transform", "--map", "best", "--sources", "2"), "one at a time"),
    (("transform", "--sources", "4"), "setting sources: input should be less than or equal to 3"),
    (("transform", "--tokens", "20"), "setting tokens: input should be greater than or equal to 200"),
    (("transform", "--task", "splitfacts_heldout"), "no train split"),
    (("transform", "--text", "/nowhere/at/all.txt"), "cannot be read"),
]


@pytest.mark.parametrize(("args", "said"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_mistakes_are_one_line_and_a_next_step(args, said, tmp_path, pair):
    model = ("--model", pair.split(":")[0]) if args[0] == "enrich" else ("--pair", pair)
    known = () if model[0] in args else model
    error = call(*args, *known, "--out", tmp_path, "--offline").exception
    assert isinstance(error, UserError) and said in f"{error.what} {error.next_step}" and error.next_step, (
        error
    )
    assert "\n" not in str(error) and not list(tmp_path.iterdir())


def test_too_little_text_is_said(tmp_path, pair):
    file = tmp_path / "few.txt"
    file.write_text("\n\n".join(f"Paragraph number {i} of a short file." for i in range(5)))
    with pytest.raises(UserError, match="only 5 texts"):
        run_transform(Transform(pair=pair, text=file, out=tmp_path), print)


def test_a_task_that_cuts_no_slice_says_so(tmp_path, monkeypatch, splitfacts):
    monkeypatch.setattr("lcfbench.oracle.enrich.sliced", lambda a, b: 0)
    folder = save(tmp_path / "model", layers=2)
    with pytest.raises(UserError, match="no slice to keep"):
        run_enrich(Enrich(model=str(folder), task="splitfacts", limit=4, out=tmp_path), print)


# -- real weights ---------------------------------------------------------------------------------


@pytest.mark.real
def test_real_models_direct_equals_the_receiver_and_maps_carry_something():
    from lcfbench.models.causal_lm import CausalLM
    from lcfbench.sources.models import find_model

    task = load_task("splitfacts")
    receiver, sharer = (CausalLM.load(find_model(name)) for name in ("smollm2-135m", "gemma3-270m"))
    documents = task.documents(limit=4)
    rows = measure(receiver, task, documents, [], "context", Enrich(task="splitfacts", batch_size=4), print)
    assert rows.groupby("condition").size().to_dict() == {"direct": 4, "kept": 4, "oracle": 4}
    direct, whole = (rows[rows["condition"] == c]["gold_ll"].to_numpy() for c in ("direct", "oracle"))
    assert np.isfinite(whole).all() and (np.abs(whole - direct) > 1e-3).all()
    pairs = align_texts(passages(task), (receiver.tokenizer, sharer.tokenizer), 900)
    table, _ = fit(receiver, sharer, pairs, "proportional", 1, 8, print)
    assert len(table) == 30 and table["r2_k"].mean() > 0.4 and table["r2_v"].mean() > 0.3
    assert (table["cosine_v"] > table["mean_cosine_v"]).all()
