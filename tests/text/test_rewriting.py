"""Prompts through an endpoint of chat completions: a real server with real failures, and what is kept of answers."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import paths

from infinity_jax.cli.main import main
from infinity_jax.errors import UserError
from infinity_jax.text import rewriting
from infinity_jax.text.rewriting import Rewriter

SECRET = "sk-1234567890"


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers a prompt by the next of its planned replies, else with "PROMPT, in the sun"."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.planned: list = []  # codes, bytes, or texts of an answer
        self.asked: list[dict] = []
        self.headers: list = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked | {"path": self.path})
        self.server.headers.append(self.headers)
        reply = self.server.planned.pop(0) if self.server.planned else None
        if isinstance(reply, int):
            self.send_response(reply)
            self.send_header("Retry-After", "7")
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            return
        if reply == "hang up":
            self.close_connection = True
            return
        text = f"{asked['messages'][1]['content']}, in the sun" if reply is None else reply
        body = (
            text
            if isinstance(text, bytes)
            else json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(rewriting.time, "sleep", found.append)
    return found


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv(rewriting.KEY, SECRET)
    monkeypatch.setenv("INFINITY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def everything_in(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_prompts_are_asked_for_once_and_kept(endpoint, tmp_path):
    prompts = ["a cat", "a  dog ", "a cat"]
    wanted = ["a cat, in the sun", "a dog, in the sun", "a cat, in the sun"]
    assert Rewriter(endpoint.url, "m")(prompts) == wanted
    assert sorted(asked["messages"][1]["content"] for asked in endpoint.asked) == ["a cat", "a dog"]
    (asked, *_) = endpoint.asked
    assert asked["model"] == "m" and asked["path"] == "/v1/chat/completions"
    assert asked["messages"][0] == {"role": "system", "content": rewriting.TEMPLATE}
    assert endpoint.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET.encode() not in everything_in(tmp_path)
    assert Rewriter(endpoint.url, "m")(prompts) == wanted and len(endpoint.asked) == 2
    Rewriter(endpoint.url, "another")(["a cat"])
    assert len(endpoint.asked) == 3, "another model answers otherwise"


def test_another_template_asks_again(endpoint, monkeypatch):
    rewriter = Rewriter(endpoint.url, "m")
    before = rewriter.describe()
    rewriter(["a cat"])
    monkeypatch.setattr(rewriting, "TEMPLATE", "Write more.")
    rewriter(["a cat"])
    assert len(endpoint.asked) == 2
    assert rewriter.describe()["template_sha256"] != before["template_sha256"]


@pytest.mark.parametrize(
    "failure, pause",
    [(500, 7.0), (503, 7.0), (429, 7.0), (b"<html>busy", 1.0), (b'{"choices": []}', 1.0), ("hang up", 1.0)],
)
def test_what_may_pass_is_tried_again(endpoint, pauses, failure, pause):
    endpoint.planned = [failure]
    assert Rewriter(endpoint.url, "m")(["a cat"]) == ["a cat, in the sun"]
    assert pauses == [pause] and len(endpoint.asked) == 2


@pytest.mark.parametrize(
    "failures, tries, message",
    [
        ([500] * 4, 4, "it answers 500"),
        ([b"garbage"] * 4, 4, "no JSON of a chat completion"),
        ([401], 1, "it answers 401"),
        ([302], 1, "it answers 302"),
        ([""], 1, "is empty"),
        (["a" * 2001], 1, "has 2001 characters"),
        ([b'{"choices": [{"message": {"content": null}}]}'], 1, r"is empty \(None\)"),
    ],
)
def test_what_does_not_pass_is_named_with_the_prompt(endpoint, pauses, failures, tries, message):
    Rewriter(endpoint.url, "m")(["a dog"])
    endpoint.planned = failures
    with pytest.raises(UserError, match=message) as error:
        Rewriter(endpoint.url, "m")(["a dog", "a cat"])
    assert "'a cat'" in str(error.value) and SECRET not in str(error.value)
    assert len(endpoint.asked) == 1 + tries and len(pauses) == tries - 1
    assert Rewriter(endpoint.url, "m")(["a dog"]) == ["a dog, in the sun"]


def test_nobody_listens(pauses):
    with Endpoint() as closed:
        url = closed.url
    with pytest.raises(UserError, match=r"'a cat' .*no connection"):
        Rewriter(url, "m")(["a cat"])
    assert pauses == [1.0, 2.0, 4.0]


def test_a_damaged_answer_on_disk_is_asked_for_again(endpoint, tmp_path):
    Rewriter(endpoint.url, "m")(["a cat"])
    (file,) = (tmp_path / "data" / "rewritten").iterdir()
    file.write_text(file.read_text()[:20])
    assert Rewriter(endpoint.url, "m")(["a cat"]) == ["a cat, in the sun"] and len(endpoint.asked) == 2
    assert json.loads(file.read_text())["rewritten"] == "a cat, in the sun"


def test_addresses(endpoint):
    for url in ("localhost:8000", "file:///etc/passwd", "http://", "http://a:b", ""):
        with pytest.raises(UserError, match="no address"):
            Rewriter(url, "m")
    with pytest.raises(UserError, match=rewriting.KEY) as error:
        Rewriter("https://me:password@host/v1", "m")
    assert "password@" not in str(error.value)
    with_key = Rewriter(f"{endpoint.url}/chat/completions?key=secret", "m")
    assert with_key.describe()["endpoint"] == f"{endpoint.url}/chat/completions"
    with_key(["a cat"])
    assert endpoint.asked[0]["path"] == "/v1/chat/completions?key=secret"


def test_sample_draws_what_was_rewritten(endpoint, monkeypatch, capsys):
    from infinity_jax.sampling import prompts_to_files

    got: list = []
    monkeypatch.setattr("infinity_jax.cli.main._prepare_process", lambda: None)
    monkeypatch.setattr(prompts_to_files, "main", lambda request, *_: got.extend(request.prompts))
    options = ["sample", "a cat", "--out", "o", "--rewrite", endpoint.url]
    assert main([*options, "--rewrite-model", "m"]) == 0 and got == ["a cat, in the sun"]
    assert main(options) == 2
    assert "--rewrite needs --rewrite-model too" in capsys.readouterr().err
    with contextlib.suppress(SystemExit):
        main(["sample", "a cat", "--out", "o"])
    assert got == ["a cat, in the sun", "a cat"]


class Raw:
    """A server that answers each connection by a function of the socket, whatever was asked."""

    def __init__(self, answer):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._answer, self._ended = answer, threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                threading.Thread(target=self._one, args=(self._listener.accept()[0],), daemon=True).start()

    def _one(self, connection):
        with contextlib.suppress(OSError), connection:
            asked = b""
            while not asked.endswith(b"}]}"):
                asked += connection.recv(1 << 16)
            self._answer(connection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._listener.close()


HEAD = b"HTTP/1.0 200 OK\r\n\r\n"


def without_end(connection):
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"x" * (1 << 16))


def dripping(start):
    def answer(connection):
        connection.sendall(start)
        while True:
            connection.sendall(b"x")
            threading.Event().wait(0.02)

    return answer


def continuing(connection):
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        threading.Event().wait(0.02)


def silent(connection):
    connection.recv(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (without_end, "no JSON of a chat completion"),
        (dripping(HEAD), "no whole answer within 0.3 s"),
        (dripping(b"HTTP/1.0 200 OK\r\nA: "), "no whole answer within 0.3 s"),
        (dripping(b""), "no whole answer within 0.3 s"),
        (continuing, "no whole answer within 0.3 s"),
        (silent, "no whole answer within 0.3 s"),
        (lambda c: c.sendall(HEAD + b"[" * 500_000), "no JSON of a chat completion"),
        (lambda c: c.sendall(HEAD + b'{"choices": ' + b"9" * 5000 + b"}"), "no JSON of a chat completion"),
        (
            lambda c: c.sendall(b"HTTP/1.0 404 \x1b[31mred\x07 " + b"e" * 5000 + b"\r\n\r\n"),
            r"404 \\x1b\[31mred",
        ),
        (lambda c: c.sendall(b"\x1b[2J" + b"\0" * 100 + b"\r\n"), "no connection"),
    ],
    ids=["endless", "body", "header", "status", "continue", "silent", "deep", "digits", "reason", "no HTTP"],
)
def test_what_a_hostile_server_sends_is_bounded(answer, message, pauses, monkeypatch):
    monkeypatch.setattr(rewriting, "_TIMEOUT_S", 0.3)
    begin = time.monotonic()
    with Raw(answer) as server, pytest.raises(UserError, match=message) as error:
        Rewriter(server.url, "m")(["a cat"])
    assert time.monotonic() - begin < 4 * 0.3 + 2
    said = str(error.value)
    assert said.isprintable() and len(said) < 1000


def test_control_characters_of_an_answer_are_left_out(endpoint):
    endpoint.planned = ["a \x1b[31mred\x07 cat\u202e\u200b,\x9b2J asleep"]
    assert Rewriter(endpoint.url, "m")(["a cat"]) == ["a [31mred cat , 2J asleep"]


def test_a_kept_answer_that_is_nested_without_end_is_asked_for_again(endpoint, tmp_path):
    Rewriter(endpoint.url, "m")(["a cat"])
    (file,) = (tmp_path / "data" / "rewritten").iterdir()
    file.write_text("[" * 100_000)
    assert Rewriter(endpoint.url, "m")(["a cat"]) == ["a cat, in the sun"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_while_it_waits(number, tmp_path):
    asked = threading.Event()

    def answer(connection):
        asked.set()
        silent(connection)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Raw(answer) as server:
        command = ["sample", "a cat", "--rewrite", server.url, "--rewrite-model", "m", "--out", str(tmp_path)]
        process = subprocess.Popen(
            [sys.executable, "-m", "infinity_jax.cli", *command],
            env={**os.environ, "PYTHONPATH": paths.PYTHONPATH},
            stderr=subprocess.PIPE,
            text=True,
        )
        signal.signal(signal.SIGINT, handler)
        assert asked.wait(60)
        process.send_signal(number)
        begin = time.monotonic()
        _, words = process.communicate(timeout=30)
    assert process.returncode == 128 + number and time.monotonic() - begin < 3
    assert "Traceback" not in words and "infinity-jax: error: " in words
