"""A pair within Inspect: answers, messages in the log, refusals in one line, and the log in its viewer."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

import lcfbench
from tests import helpers

inspect_ai = pytest.importorskip("inspect_ai", reason='needs pip install "lcfbench[inspect]"')

from inspect_ai import Task, eval  # noqa: E402
from inspect_ai._util.error import PrerequisiteError  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import read_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate, use_tools  # noqa: E402
from inspect_ai.tool import tool  # noqa: E402

import lcfbench.doors.inspect_model  # noqa: E402  (registers the provider)
from lcfbench.methods.create import create  # noqa: E402

SAME = {"dtype": "float32", "device": "cpu"}
QUESTIONS = ["Which of these conducts heat?", "In which city is the key of Kafi?", "Where is the fox?"]


def logged(tmp_path, task, model, **settings):
    (log,) = eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **settings)
    return read_eval_log(log.location)


def asked(samples, **settings):
    return Task(
        dataset=samples,
        solver=generate(),
        scorer=includes(),
        config=GenerateConfig(**{"max_tokens": 8, **settings}),
    )


@pytest.fixture
def samples():
    return [Sample(input=q, target="the", id=i) for i, q in enumerate(QUESTIONS)]


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize("mode", ["receiver", "sharer", "t2t", "full_context"])
def test_answers_are_those_of_the_method(tmp_path, request, samples, kind, mode):
    pair = request.getfixturevalue(f"{kind}_pair")
    more = {"budget": 4} if mode == "t2t" else {}
    log = logged(
        tmp_path, asked(samples), get_model(f"lcfbench/{pair}", mode=mode, memoize=False, **SAME, **more)
    )
    assert log.status == "success"
    loaded = lcfbench.load_pair(pair, **SAME)
    from lcfbench.doors.documents import document_of
    from lcfbench.methods.base import Batch
    from lcfbench.models.timing import Clock
    from lcfbench.tasks.document import View

    kind_of = lcfbench.methods.create.method_class(mode)
    method = create(mode, *loaded.models_for(kind_of.roles), None, {k: str(v) for k, v in more.items()})
    for sample, text in zip(log.samples, QUESTIONS, strict=True):
        document = document_of("x", "0", View(text), None)
        state = method.respond(Batch([document], [document], Clock()))
        texts, _ = lcfbench.models.thinking.speak(state.lm.open(state), 8)
        assert sample.output.completion == texts[0]
        crossed = sample.output.metadata["lcfbench"]
        assert crossed["mode"] == mode and crossed["control"] == "matched"
        assert crossed["receiver_prompt"] == state.prompts[0].text
        assert ("<|im_start|>" in crossed["receiver_prompt"]) == (kind == "chat")
        assert crossed["message_text"] == (state.message.texts[0] if mode == "t2t" else None)
        assert crossed["message_bytes"] == state.message.wire_bytes[0]
        usage = sample.output.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 8


@pytest.mark.parametrize("control", ["zero", "noise", "silent"])
def test_controls_change_the_message(tmp_path, plain_pair, adapters, samples, control):
    found = {}
    for name in ("matched", control):
        given = {"mode": "lcf", "adapter": str(adapters["lcf"]), "control": name, **SAME}
        log = logged(
            tmp_path / name, asked(samples), get_model(f"lcfbench/{plain_pair}", memoize=False, **given)
        )
        assert log.status == "success"
        found[name] = [s.output.completion for s in log.samples]
        assert {s.output.metadata["lcfbench"]["control"] for s in log.samples} == {name}
        assert len(log.samples[0].output.metadata["lcfbench"]["adapter_sha256"]) == 64
    assert found["matched"] != found[control]


def test_messages_cross_as_bytes_in_a_form(tmp_path, plain_pair, adapters, samples):
    """The form is that of each sample's message, its size is theirs; without one it is counted."""
    sizes = {}
    for form in (None, "native", "int8"):
        given = {"mode": "lcf", "adapter": str(adapters["lcf"]), **SAME, **({"wire": form} if form else {})}
        model = get_model(f"lcfbench/{plain_pair}", memoize=False, **given)
        log = logged(tmp_path / str(form), asked(samples), model)
        assert log.status == "success"
        crossed = [s.output.metadata["lcfbench"] for s in log.samples]
        assert {message.get("wire") for message in crossed} == {form}
        assert log.eval.model_args.get("wire") == form
        sizes[form] = [message["message_bytes"] for message in crossed]
    both = zip(sizes["int8"], sizes["native"], sizes[None], strict=True)
    assert all(0 < small < whole != counted for small, whole, counted in both)


def test_samples_that_wait_are_answered_together_as_alone(tmp_path, plain_pair):
    many = [Sample(input=f"{q} {i}", target="the", id=i) for i, q in enumerate(QUESTIONS * 4)]
    found = []
    for size in (1, 4):
        given = {"mode": "t2t", "budget": 4, "batch_size": size, **SAME}
        model = get_model(f"lcfbench/{plain_pair}", memoize=False, **given)
        assert model.api.max_connections() == size
        log = logged(tmp_path / str(size), asked(many), model)
        assert log.status == "success" and len(log.samples) == 12
        found.append(
            {s.id: (s.output.completion, s.output.metadata["lcfbench"]["message_text"]) for s in log.samples}
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("where", ["message", "sample"])
def test_the_sharer_reads_its_own_text(tmp_path, plain_pair, where):
    text = "Notes: The key of Kafi is in the orange box."
    mine = "The orange box is in Seoul. Where is the key of Kafi?"
    sample = Sample(input=mine, target="the", metadata={"sharer": text})
    if where == "message":
        sample = Sample(input=[ChatMessageUser(content=mine, metadata={"sharer": text})], target="the")
    for mode, more in (("t2t", {"budget": 4}), ("sharer", {}), ("full_context", {})):
        model = get_model(f"lcfbench/{plain_pair}", memoize=False, mode=mode, **SAME, **more)
        log = logged(tmp_path / mode, asked([sample]), model)
        crossed = log.samples[0].output.metadata["lcfbench"]
        assert (crossed["sharer_prompt"] or crossed["receiver_prompt"]).startswith(text)
        assert (text in crossed["receiver_prompt"]) == (mode != "t2t")
        assert (mine in crossed["receiver_prompt"]) == (mode != "sharer")


def test_chats_keep_their_turns(tmp_path, chat_pair):
    turns = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content="Who is Zona?"),
        ChatMessageAssistant(content="A farmer."),
        ChatMessageUser(content=[ContentText(text="Where is the fox?")]),
    ]
    model = get_model(f"lcfbench/{chat_pair}", memoize=False, mode="receiver", **SAME)
    log = logged(tmp_path, asked([Sample(input=turns, target="the")]), model)
    prompt = log.samples[0].output.metadata["lcfbench"]["receiver_prompt"]
    assert re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|$)", prompt) == [
        ("system", "Be brief."),
        ("user", "Who is Zona?"),
        ("assistant", "A farmer."),
        ("user", "Where is the fox?"),
        ("assistant", ""),
    ]


def test_stop_sequences_end_an_answer(tmp_path, plain_pair, samples):
    model = get_model(f"lcfbench/{plain_pair}", memoize=False, mode="receiver", **SAME)
    whole = logged(tmp_path / "a", asked(samples), model).samples
    first = whole[0].output.completion
    log = logged(tmp_path / "b", asked(samples, stop_seqs=[first[2]]), model)
    assert log.samples[0].output.completion == first.split(first[2])[0]
    assert whole[0].output.stop_reason == "max_tokens"


# -- refusals ----------------------------------------------------------------------------------------

WRONG = [
    ({}, "needs mode="),
    ({"mode": "t2"}, "unknown method 't2'. Did you mean t2t"),
    ({"mode": "receiver,t2t"}, "takes one mode"),
    ({"mode": "lcf"}, "lcf needs an adapter"),
    ({"mode": "receiver", "adapter": "x"}, "x holds no adapter"),
    ({"mode": "t2t", "control": "deranged"}, "one sample at a time"),
    ({"mode": "t2t", "control": "nois"}, "unknown control"),
    ({"mode": "receiver", "control": "noise"}, "sends no"),
    ({"mode": "t2t", "budgt": 4}, "unknown argument of the model lcfbench with mode t2t 'budgt'"),
    ({"mode": "t2t", "budget": "many"}, "budget=many"),
    ({"mode": "t2t", "budget": "4,8"}, "one value of each option"),
    ({"mode": "t2t", "batch_size": 0}, "batch-size"),
    ({"mode": "t2t", "dtype": "float3"}, "dtype"),
    ({"mode": "t2t", "device": "cpu:9"}, "device"),
    ({"mode": "t2t", "pair": "a:b"}, "-M pair="),
    ({"mode": "t2t", "thinking": True}, "thoughts are on"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[str(g) for g, _ in WRONG])
def test_wrong_arguments_are_one_line(tmp_path, plain_pair, samples, given, said):
    with pytest.raises(PrerequisiteError) as caught:
        model = get_model(f"lcfbench/{plain_pair}", memoize=False, **given)
        log = logged(tmp_path, asked(samples), model)
        raise PrerequisiteError(log.error.message)
    assert said in str(caught.value.message) and "\n" not in str(caught.value.message)


@tool
def look():
    async def execute(place: str) -> str:
        """Looks at a place.

        Args:
            place: Where to look.
        """
        return place

    return execute


IMAGE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("settings", "content", "said"),
    [
        ({"temperature": 0.7}, "Who?", "temperature=0.7 draws answers at random"),
        ({"num_choices": 2}, "Who?", "num_choices=2"),
        ({"logprobs": True}, "Who?", "logprobs=True"),
        ({"frequency_penalty": 0.5}, "Who?", "frequency_penalty=0.5"),
        ({"reasoning_effort": "high"}, "Who?", "reasoning_effort=high"),
        ({"cache": True}, "Who?", "Inspect's cache"),
        ({}, [ContentImage(image=IMAGE), ContentText(text="What is it?")], "holds image"),
        ({}, "fox " * 3000, "have no room"),
    ],
)
def test_what_a_pair_cannot_do_is_refused(tmp_path, plain_pair, settings, content, said):
    model = get_model(f"lcfbench/{plain_pair}", memoize=False, mode="receiver", **SAME)
    sample = Sample(input=[ChatMessageUser(content=content)], target="the")
    log = logged(tmp_path, asked([sample], **settings), model)
    assert log.status == "error" and said in log.error.message


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"num_choices": 1}, {"logprobs": False}, {"top_p": 0.9}]
)
def test_settings_that_change_nothing_are_taken(tmp_path, plain_pair, samples, settings):
    model = get_model(f"lcfbench/{plain_pair}", memoize=False, mode="receiver", **SAME)
    assert logged(tmp_path, asked(samples[:1], **settings), model).status == "success"


def test_tools_are_refused(tmp_path, plain_pair, samples):
    model = get_model(f"lcfbench/{plain_pair}", memoize=False, mode="receiver", **SAME)
    task = Task(dataset=samples, solver=[use_tools(look()), generate()], scorer=includes())
    log = logged(tmp_path, task, model)
    assert log.status == "error" and "a pair calls no tools" in log.error.message


# -- the command line and the viewer -----------------------------------------------------------------

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def boxes():
    samples = [Sample(input="Where is the fox?", target="the")]
    return Task(dataset=samples, solver=generate(), scorer=includes())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package's entry points, as pip writes them."""
    import tomllib

    site = tmp_path_factory.mktemp("site")
    points = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = site / "lcfbench_doors-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lcfbench_doors\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


def inspect(cwd, site, *args, **settings):
    env = helpers.environment()
    env = {
        **env,
        "PYTHONPATH": f"{site}:{env['PYTHONPATH']}",
        "INSPECT_LOG_DIR": str(cwd / "logs"),
        **settings,
    }
    command = [sys.executable, "-m", "inspect_ai", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_the_command_line_finds_the_provider_and_the_viewer_opens_the_log(tmp_path, installed, plain_pair):
    (tmp_path / "boxes.py").write_text(TASK)
    given = ["-M", "mode=t2t", "-M", "budget=4", "-M", "thinking=off", "-M", "device=cpu"]
    done = inspect(
        tmp_path, installed, "eval", "boxes.py", "--model", f"lcfbench/{plain_pair}", *given,
        "--max-tokens", 8, "--display", "plain",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "logs").glob("*.eval")
    assert read_eval_log(str(file)).samples[0].output.metadata["lcfbench"]["mode"] == "t2t"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = f"http://127.0.0.1:{port}/api/logs/{quote(str(file), safe='')}"
    env = {**helpers.environment(), "INSPECT_LOG_DIR": str(tmp_path / "logs")}
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--port", str(port)]
    viewer = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(where) as found:
                    log = json.loads(found.read())
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError("the viewer does not answer")
    finally:
        viewer.send_signal(signal.SIGINT)
        viewer.wait(30)
    assert log["samples"][0]["output"]["metadata"]["lcfbench"]["message_bytes"] > 0
    assert log["eval"]["model"] == f"lcfbench/{plain_pair}"


def test_a_mistake_on_the_command_line_is_one_line(tmp_path, installed, plain_pair):
    (tmp_path / "boxes.py").write_text(TASK)
    done = inspect(
        tmp_path, installed, "eval", "boxes.py", "--model", f"lcfbench/{plain_pair}", "-M", "mode=lcf"
    )
    text = done.stdout + done.stderr
    assert done.returncode and "lcf needs an adapter" in text and "Traceback" not in text
