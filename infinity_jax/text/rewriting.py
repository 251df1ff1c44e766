"""Short prompts made long by a language model, through any endpoint that speaks OpenAI's chat completions.

The paper's best GenEval result is with rewritten prompts (Infinity, arXiv 2412.04431, Table 1). Answers are kept on
disk, so that a prompt is asked for once and a run that resumes draws from the same text.
"""

import functools
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from infinity_jax.errors import UserError, shortened
from infinity_jax.files import atomic, paths, reading
from infinity_jax.runtime import daemon_threads
from infinity_jax.text.prompt import clean_prompts

KEY = "OPENAI_API_KEY"
TEMPLATE = """You prepare prompts for a model that draws pictures from text. Write the user's prompt as one English \
paragraph of at most 80 words that says what the picture shows. Keep every object, number, colour, place and relation \
exactly as it is, and texts in quotation marks letter by letter. Add no object that changes what is asked for; you may \
add surroundings, light, material and style. Answer with the paragraph alone."""
LONGEST = 2000  # characters of an answer; five times what is asked for
_LONGEST_REPLY = 1 << 20  # bytes, with all that a server says about it
_TRIES, _TIMEOUT_S, _LONGEST_PAUSE_S, _AT_ONCE = 4, 120.0, 60.0, 8  # the timeout is of a whole exchange
_BUSY = (408, 429)


class Rewriter:
    """Rewrites prompts.

    Attributes:
      endpoint: its address without the query, for the record.
      model: the name that the endpoint knows it by.
    """

    def __init__(self, url: str, model: str, cache_dir: Path | None = None):
        """Asks nothing yet.

        Args:
          url: like "https://api.openai.com/v1"; "/chat/completions" is added where it is missing.
          model: the name of the language model there.
          cache_dir: where answers are kept; None is `rewritten` in `paths.data_dir()`.
        Raises:
          UserError: the address is none, or holds a name and password.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise UserError(f"--rewrite {url!r} is no address; give one like https://api.openai.com/v1")
        if "@" in parts.netloc:
            raise UserError(f"--rewrite: take the password out of the address and set {KEY} to it")
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path += "/chat/completions"
        self._url = parts._replace(path=path, fragment="").geturl()
        self.endpoint = parts._replace(path=path, query="", fragment="").geturl()
        self.model = model
        self._cache_dir = cache_dir or paths.data_dir() / "rewritten"
        self._opener = urllib.request.build_opener(_NoRedirect)

    def describe(self) -> dict[str, str]:
        """Returns {"model", "endpoint", "template_sha256"}, for the record."""
        return {
            "model": self.model,
            "endpoint": self.endpoint,
            "template_sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        }

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Rewrites prompts, in order; equal ones are asked for once, known ones not at all.

        Raises:
          UserError: the endpoint gave no usable answer, after some tries; the message names the prompt. Answers to
            others are kept.
        """
        different = list(dict.fromkeys(clean_prompts(prompts)))
        known = {prompt: self._kept(prompt) for prompt in different}
        missing = [prompt for prompt in different if known[prompt] is None]
        if missing:
            logging.info("rewriting %d of %d prompts with %s", len(missing), len(different), self.model)
        answers = daemon_threads.in_order(self._ask, missing, _AT_ONCE)
        rewritten = {**known, **dict(zip(missing, answers, strict=True))}
        return [str(rewritten[prompt]) for prompt in clean_prompts(prompts)]

    def _file(self, prompt: str) -> Path:
        key = hashlib.sha256(json.dumps([self.model, TEMPLATE, prompt]).encode()).hexdigest()
        return self._cache_dir / f"{key[:32]}.json"

    def _kept(self, prompt: str) -> str | None:
        file = self._file(prompt)
        try:
            kept = reading.read_json(file)
            if kept["prompt"] == prompt:
                return clean_prompts([kept["rewritten"]])[0]
            raise ValueError("it is of another prompt")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logging.warning("the rewritten prompt in %s cannot be read (%s): asking again", file, error)
            return None

    def _ask(self, prompt: str) -> str:
        answer = _checked(self._content(prompt), prompt)
        file = self._file(prompt)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(file, {"model": self.model, "prompt": prompt, "rewritten": answer})
        return answer

    def _content(self, prompt: str) -> Any:
        """Returns what the endpoint answers; tries again where that may help."""
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                logging.info("prompt %r: %s; trying again", prompt[:40], problem)
            pause = 2.0**attempt
            try:
                reply = daemon_threads.within(_TIMEOUT_S, functools.partial(self._reply, prompt))
                return reading.parse_json(reply)["choices"][0]["message"]["content"]
            except urllib.error.HTTPError as error:
                problem = f"it answers {error.code} {shortened(error.reason, quoted=False)}"
                pause = _pause_asked_for(error) or pause
                error.close()
                if error.code < 500 and error.code not in _BUSY:
                    break
            except (OSError, http.client.HTTPException) as error:
                problem = f"no connection ({shortened(str(error), 200, quoted=False)})"
            except (ValueError, KeyError, IndexError, TypeError):
                problem = "its answer is no JSON of a chat completion"
            if attempt + 1 < _TRIES:
                time.sleep(min(pause, _LONGEST_PAUSE_S))
        raise UserError(
            f"cannot rewrite the prompt {prompt[:80]!r} with {self.endpoint}: {problem}; check the address, "
            f"--rewrite-model {self.model} and the key in {KEY}. What was answered before is kept"
        )

    def _reply(self, prompt: str) -> bytes:
        messages = [{"role": "system", "content": TEMPLATE}, {"role": "user", "content": prompt}]
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key.strip()}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        # The deadline of the whole exchange comes first, and tells what it was; this one ends the thread.
        with self._opener.open(request, timeout=2 * _TIMEOUT_S) as reply:
            answer = reply.read(_LONGEST_REPLY + 1)
        if len(answer) > _LONGEST_REPLY:
            raise ValueError(f"more than {_LONGEST_REPLY} bytes")
        return answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key would be sent to whatever it leads to."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


def _checked(content: Any, prompt: str) -> str:
    which = f"the rewritten prompt of {prompt[:80]!r}"
    if not isinstance(content, str) or not content.strip():
        raise UserError(
            f"{which} is empty ({shortened(content)}); take another --rewrite-model, or none for this one"
        )
    if len(content) > LONGEST:
        raise UserError(
            f"{which} has {len(content)} characters, more than {LONGEST}: {content[:80]!r}...; "
            "take another --rewrite-model"
        )
    # What is not printable is of no use to the text encoder, and would reach the terminal and the pictures' notes.
    return clean_prompts(["".join(c if c.isprintable() else " " for c in content)])[0]


def _pause_asked_for(error: urllib.error.HTTPError) -> float | None:
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None
