"""`lcfbench lm-eval …`: mistakes are one line and exit code 2, before lm-eval reads its tasks."""

from __future__ import annotations

import pytest

from tests import helpers

RUN = ["run", "--model", "lcfbench", "--tasks", "piqa", "--model_args"]
WRONG = [
    (["--modl", "x"], "unrecognized arguments"),
    (["run", "--model", "lcfbench", "--tasks", "piqa"], "needs pair="),
    ([*RUN, "pair={pair}"], "needs mode="),
    ([*RUN, "pair={pair},mode=receiver,t2t"], "expected `key=value`, got 't2t'"),
    ([*RUN, "pair={pair},mode=t2t,budgt=4"], "'budgt'"),
    ([*RUN, "pair={pair},mode=lcf"], "lcf needs an adapter"),
    ([*RUN, "pair={pair},mode=t2t", "--use_cache", "c"], "--use_cache"),
    ([*RUN, "pair={pair},mode=t2t", "--cache_requests"], "--cache_requests"),
    ([*RUN, "pair={pair},mode=t2t", "--batch_size", "auto"], "batch_size=auto"),
    ([*RUN, "pair={pair},mode=t2t,device=cpu", "--device", "cpu"], "are both given"),
    (["run", "--model", "lcfbench", "--model_args", "pair={pair},mode=t2t"], "no tasks are given"),
]


@pytest.mark.parametrize(("args", "said"), WRONG, ids=[" ".join(a[-2:]) for a, _ in WRONG])
def test_mistakes_are_one_line(capsys, monkeypatch, plain_pair, args, said):
    code, _, err = helpers.invoke(capsys, monkeypatch, "lm-eval", *(a.format(pair=plain_pair) for a in args))
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("lcfbench: ") and said in line and "Traceback" not in err


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_help_is_ours_and_fits(capsys, monkeypatch, args):
    _, out, err = helpers.invoke(capsys, monkeypatch, "lm-eval", *args)
    assert "Arguments of the model" in out + err
    assert max(map(len, (out + err).splitlines())) <= 80
