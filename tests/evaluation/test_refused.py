"""What would have no effect, or is out of range, is one line before any model is loaded."""

from __future__ import annotations

import pytest

from lcfbench.adapters.files import save as save_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation import session
from lcfbench.methods import load_pair
from tests.helpers import invoke, random_adapter, run_recipe, save, save_pair, two_models

LCFX = "smollm2-135m.gemma3-270m.lcfx-splitfacts"
REFUSED = {
    "lcf-untrained": (
        ["--mode", "lcf", "--task", "coqa_split"],
        "no adapter is at hand for --mode lcf on coqa_split",
    ),
    "lcf-untrained-2": (
        ["--mode", "lcf", "--task", "hotpotqa_split"],
        "no adapter is at hand for --mode lcf on hotpotqa_split",
    ),
    "adapter-unused": (["--mode", "receiver", "--adapter", LCFX], "would have no effect"),
    "adapter-unused-2": (["--mode", "t2t,sharer", "--adapter", LCFX], "would have no effect"),
    "adapter-unknown": (
        ["--mode", "receiver", "--adapter", "nosuch"],
        "nosuch holds no adapter, and none of that name ships",
    ),
    "adapter-near": (["--mode", "lcf", "--adapter", LCFX[:-1]], "Did you mean"),
    "device-cpu": (["--device", "cpu:9"], "device"),
    "device-cuda": (["--device", "cuda:99"], "device"),
    "device-other": (["--device", "tpu"], "device"),
    "dtype": (["--dtype", "float8"], "dtype"),
    "bytes": (["--mode", "t2t", "-o", "bytes=0"], "bytes=0 of t2t"),
    "budget": (["--mode", "t2t", "-o", "budget=0"], "budget=0 of t2t"),
    "budget-large": (["--mode", "t2t", "-o", "budget=99999999"], "4,096 at most"),
    "excerpt": (["--mode", "excerpt", "-o", "bytes=0"], "bytes=0 of excerpt"),
    "windows": (["--mode", "lcf", "-o", "windows=0"], "windows=0"),
    "stride": (["--mode", "lcf", "-o", "stride=-3"], "stride=-3"),
    "spans": (["--mode", "lcf", "-o", "spans=word"], "spans=word"),
    "alpha": (["--mode", "kvcomm", "-o", "alpha=2"], "alpha=2"),
    "width": (["--mode", "kvcomm", "-o", "prior_width=0"], "prior_width=0"),
    "last": (["--mode", "kvcomm", "-o", "last=-1"], "last=-1"),
    "layers": (
        ["--mode", "kvcomm", "--pair", "smollm2-135m:smollm2-135m", "-o", "layers=3,99"],
        "the model's layers are 0..29",
    ),
    "layers-share": (["--mode", "kvcomm", "-o", "layers=1.5"], "no share of the layers"),
    "lead": (["--mode", "dense", "-o", "lead=-1"], "lead=-1"),
    "seed": (["--seed", "9223372036854775808"], "seed"),
    "seed-negative": (["--seed", "-1"], "seed"),
    "seeds": (["--seeds", "0,-1"], "seeds"),
    "seeds-empty": (["--seeds", ","], "seeds"),
    "adapter-empty": (["--mode", "lcf", "--adapter", ","], "adapter"),
    "limit": (["--limit", "0"], "limit"),
    "limit-negative": (["--limit", "-1"], "limit"),
    "batch": (["--batch-size", "0"], "batch"),
    "latency": (["--latency-documents", "-1"], "latency"),
    "modes": (["--mode", ","], "nothing to run"),
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(capsys, monkeypatch, tmp_path, name, dry):
    if dry and name.startswith("lcf-untrained"):
        pytest.skip("its prompts are shown, with a note")
    monkeypatch.setattr(load_pair, "find_model", lambda *a, **k: pytest.fail("a model was looked for"))
    given, said = REFUSED[name]
    more = ["--dry-run"] if dry else []
    code, _, err = invoke(capsys, monkeypatch, "run", "--out", tmp_path / "out", *given, *more)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_other_shapes_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    pair, out = save_pair(tmp_path / "models"), tmp_path / "out"
    save(tmp_path / "models" / "other", layers=5)
    save_adapter(random_adapter("lcf", two_models()), tmp_path / "adapter", "")
    monkeypatch.setattr(session, "load_pair", lambda *args, **more: pytest.fail("a model was loaded"))
    other = pair.replace("receiver", "other", 1)
    with pytest.raises(UserError, match="does not fit this pair: receiver layers 5, not 4"):
        run_recipe(other, out, mode=["lcf"], task=["openbookqa"], adapter=[tmp_path / "adapter"], limit=2)
