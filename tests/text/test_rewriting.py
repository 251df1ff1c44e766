"""Prompts through an endpoint of chat completions: a real server with real failures, and what is kept of answers."""

import contextlib
import http.server
import json
import threading

import pytest

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
