"""A real server on this machine, and replies as servers spoil them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from vera_lite.cli import main
from vera_lite.conditioning.vision_language import TOY_VLM
from vera_lite.errors import UserError
from vera_lite.evaluation import judging
from vera_lite.evaluation.judges import PROTOCOLS, Case, answer_text
from vera_lite.evaluation.toy.vqa import TOY_VQA
from vera_lite.media.clip import to_uint8
from vera_lite.media.video_writer import write_video
from vera_lite.toy.world import WorldConfig

pytest.importorskip("openai", reason="a judge behind a server needs the extra `judge`")


@pytest.fixture(scope="module")
def cases():
    world = WorldConfig(9, 32, 32, tasks=("add",), behind=0.0, shadow=0.0)
    batch = world.render(2_000_000, range(2))
    return [
        Case(str(i), "add", batch.instruction[i], batch.source[i], batch.composite[i])
        for i in range(len(batch))
    ]


# --- transformers serve --------------------------------------------------------------------------


#: In the precision in which the model is loaded here.
ON_THE_CPU = "--device", "cpu", "--dtype", "float32"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed, reason="`transformers serve` needs the extra `judge`")
    program = Path(sys.executable).with_name("transformers")
    if not program.is_file():
        pytest.skip("there is no `transformers` command beside this Python")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port), *ON_THE_CPU],
            stdout=output,
            stderr=output,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        for _ in range(240):
            if process.poll() is not None:
                pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_transformers_serve_answers_as_the_model_here_does(served, cases, tmp_path):
    remote, here = judging.ServerJudge(served, str(TOY_VLM)), judging.LocalJudge()
    assert remote.name == here.name and remote.name.startswith("vlm_toy@")
    toy = TOY_VQA
    for case in cases:
        messages = toy.messages(case, "all")
        theirs, ours = remote.ask(messages, toy), here.ask(messages, toy)
        assert answer_text(theirs.text).strip() == ours.text and ours.text
        assert theirs.finish_reason == ours.finish_reason == "stop"
    # A rubric is beyond the toy model: every attempt is kept, and none becomes a score.
    log, case = judging.Log(tmp_path / "records.jsonl"), cases[0]
    short = replace(PROTOCOLS["rvedit"], options={"max_tokens": 12})
    case = Case("0", "local add", case.instruction, case.source, case.edited)
    judging.judge_clip(case, "truth", short, remote, log)
    assert [r.outcome for r in log.records] == ["parse_fail"] * 3 and all(r.reply for r in log.records)


# --- a server that misbehaves ----------------------------------------------------------------------


class Spoilt(BaseHTTPRequestHandler):
    """Answers with what ``server.answers`` holds: a status and a body, or None for silence."""

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.server.quiet.wait(5)
            return
        status, body = answer
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def spoilt():
    server = HTTPServer(("127.0.0.1", 0), Spoilt)
    server.answers, server.bodies, server.quiet = [], [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.quiet.set()
    server.shutdown()
    thread.join()
    server.server_close()


GOOD = "Instruction Compliance: 80\nConsistency & Detail Fidelity: 70\nVisual Quality & Stability: 60"


def completion(content, finish="stop", **message):
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": content} | message,
    }
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def judge_at(server, **options):
    return judging.ServerJudge(f"http://127.0.0.1:{server.server_port}/v1", "m", **{"retries": 0} | options)


@pytest.mark.parametrize(
    "answer, outcome",
    [
        (completion("hello"), "answered"),
        (completion(""), "blocked"),
        (completion(None, refusal="I must not"), "blocked"),
        (completion("half a", "content_filter"), "blocked"),
        (
            (200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []}),
            "blocked",
        ),
        ((500, {"error": {"message": "out of memory"}}), "transport"),
        ((429, {"error": {"message": "slower"}}), "transport"),
        (None, "timeout"),
    ],
    ids=str,
)
def test_what_a_server_may_do_instead_of_answering(spoilt, cases, answer, outcome):
    spoilt.answers = [answer]
    toy = TOY_VQA
    reply = judge_at(spoilt, timeout=0.5).ask(toy.messages(cases[0], "all"), toy)
    assert reply.outcome == outcome
    sent = spoilt.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in sent] == ["image_url", "image_url", "text"]
    assert sent[0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_busy_server_is_asked_again_by_the_client(spoilt, cases):
    spoilt.answers = [(429, {"error": {"message": "slower"}}), completion("hello")]
    reply = judge_at(spoilt, retries=1).ask(TOY_VQA.messages(cases[0], "all"), TOY_VQA)
    assert reply.text == "hello" and len(spoilt.bodies) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_whole_run_ends_it(spoilt, cases, status):
    spoilt.answers = [(status, {"error": {"message": "no"}})]
    with pytest.raises(UserError, match=f"refuses 'm'.*{status}"):
        judge_at(spoilt).ask(TOY_VQA.messages(cases[0], "all"), TOY_VQA)


def test_no_server_is_one_sentence(cases):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="start its server"):
        judging.ServerJudge(url, "m").ask(TOY_VQA.messages(cases[0], "all"), TOY_VQA)


def test_a_reply_is_asked_for_again_until_it_parses_and_never_twice(spoilt, cases, tmp_path):
    case = Case("0", "local add", "add a ring", cases[0].source, cases[0].edited)
    spoilt.answers = [completion("no"), completion(GOOD, "length"), completion(GOOD)]
    log, rvedit = judging.Log(tmp_path / "records.jsonl"), PROTOCOLS["rvedit"]
    judging.judge_clip(case, "a", rvedit, judge_at(spoilt), log)
    assert [r.outcome for r in log.records] == ["parse_fail", "parse_fail", "ok"]
    assert log.records[1].reason == "the reply was cut off"
    assert log.records[2].scores == {"IC": 80, "CF": 70, "VQ": 60}
    # Another run has the file, and sends nothing.
    judging.judge_clip(case, "a", rvedit, judge_at(spoilt), judging.Log(tmp_path / "records.jsonl"))
    assert len(spoilt.bodies) == 3
    # Another frame, method or instruction is another question.
    changed = case.edited.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    spoilt.answers = [completion(GOOD)] * 3
    judging.judge_clip(
        Case("0", "local add", "add a ring", case.source, changed), "a", rvedit, judge_at(spoilt), log
    )
    judging.judge_clip(case, "b", rvedit, judge_at(spoilt), log)
    judging.judge_clip(
        Case("0", "local add", "add a dot", case.source, case.edited), "a", rvedit, judge_at(spoilt), log
    )
    assert len(spoilt.bodies) == 6 and len({r.request for r in log.records}) == 4


def test_the_command_asks_a_server(spoilt, cases, tmp_path, capsys):
    for folder, video in (("sources", cases[0].source), ("a", cases[0].edited)):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "0.mkv", to_uint8(video.clone()), 8.0, "lossless")
    clip = {"id": "0", "category": "local add", "instruction": "add a ring", "source": "sources/0.mkv"}
    (tmp_path / "clips.json").write_text(json.dumps([clip]))
    arguments = [str(tmp_path / "clips.json"), f"--method=a={tmp_path / 'a'}", "--protocol=rvedit"]
    server = ["--server", f"http://127.0.0.1:{spoilt.server_port}/v1", "--model", "m"]
    spoilt.answers = [completion("no"), completion(GOOD)]
    assert main(["judge", *arguments, *server, "--out", str(tmp_path / "out")]) == 0
    assert "| m | a | 70.00 (1/1) |" in capsys.readouterr().out
    system, user = spoilt.bodies[0]["messages"]
    assert "add a ring" in system["content"][0]["text"] and spoilt.bodies[0]["max_tokens"] == 2048
    assert sum(part["type"] == "image_url" for part in user["content"]) == 10
    # A server that is gone ends the run in one sentence, and what was answered is kept.
    (tmp_path / "clips.json").write_text(json.dumps([clip, clip | {"id": "1"}]))
    for folder in ("sources", "a"):
        shutil.copy(tmp_path / folder / "0.mkv", tmp_path / folder / "1.mkv")
    server[1] = "http://127.0.0.1:1/v1"
    assert main(["judge", *arguments, *server, "--out", str(tmp_path / "out")]) == 2
    assert "start its server" in capsys.readouterr().err
    assert len(judging.read_records(tmp_path / "out" / "records.jsonl")) == 2


def test_what_the_line_lost_is_asked_again_by_the_next_run(spoilt, cases, tmp_path):
    toy, path = TOY_VQA, tmp_path / "records.jsonl"
    spoilt.answers = [(500, {}), completion("a ring")]
    for _ in range(2):
        judging.judge_clip(cases[0], "a", toy, judge_at(spoilt), judging.Log(path))
    assert [r.outcome for r in judging.read_records(path)] == ["transport", "ok"]


# --- frames and names ------------------------------------------------------------------------------


def test_frames_are_shrunk_and_never_enlarged():
    from io import BytesIO

    from PIL import Image

    frame = torch.rand(3, 300, 900)
    for quality, kind in ((85, "jpeg"), (None, "png")):
        data, found = judging.encoded(frame, 512, quality)
        assert found == kind and Image.open(BytesIO(data)).size == (512, 171)
    data, _ = judging.encoded(frame[:, :20, :30], 512, None)
    assert Image.open(BytesIO(data)).size == (30, 20)


def test_a_models_name_holds_its_weights_and_no_path(tmp_path):
    copy = tmp_path / "vlm_toy"
    shutil.copytree(TOY_VLM, copy)
    assert judging.revision(str(copy)) == judging.revision(str(TOY_VLM))
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert judging.revision(str(copy)) != judging.revision(str(TOY_VLM))
    assert judging.revision("owner/model") == "owner/model"
