"""Reading, cleaning and checking of prompts, before any encoder sees them."""

import codecs
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from infinity_jax.errors import UserError, shortened

# Characters of a prompt. The text encoders read at most 512 tokens of it, about 2,500 characters of English; the memory
# that they take for the rest grows with it, 650 bytes a character.
LONGEST = 10_000
_WARNINGS_SHOWN = 5
_MOST_BYTES = 1 << 28  # of a file of prompts


def clean_prompts(texts: Sequence[str], cut: bool = False) -> list[str]:
    """Checks prompts and makes every run of white space in them one space, with none at the ends.

    Args:
      cut: keeps the first `LONGEST` characters of a longer text, as is done with captions of a data set.
    Raises:
      UserError: naming the prompt, for one that is empty, not a string, not valid Unicode or longer than `LONGEST`
        characters; also for an empty list and for a bare string in place of a list.
    """
    if isinstance(texts, str):
        raise UserError(f"expected a list of prompts, got one string {_start(texts)}; put it in a list")
    if len(texts) == 0:
        raise UserError("no prompts were given; give at least one")
    if cut:
        texts = [text.strip()[:LONGEST] if isinstance(text, str) else text for text in texts]
    return [_clean(text, f"prompt {i + 1} of {len(texts)}") for i, text in enumerate(texts)]


def read_prompts(path: str | Path) -> list[str]:
    """Reads the prompts of a UTF-8 file with one a line; empty lines are skipped, and their number is logged.

    Raises UserError for a file that cannot be read or has no prompts, and for a bad line, by its number.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file:  # a pipe is welcome
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the prompts {path}: {error.strerror}; check the path") from error
    if len(content) > _MOST_BYTES:
        raise UserError(
            f"the prompts {path} have more than {_MOST_BYTES >> 20} MiB; give them in several files"
        )
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            if text := line.decode().strip():
                prompts.append(_clean(text, "the prompt"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: byte {line[error.start]:#x} is not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not prompts:
        raise UserError(f"{path} holds no prompts; write one a line")
    empty = len(lines) - (not lines[-1]) - len(prompts)
    logging.info("%s: %d prompts, %d empty lines skipped", path, len(prompts), empty)
    return prompts


def _clean(text: object, which: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{which} is {shortened(text)}, a {type(text).__name__}; a prompt must be a string")
    if len(text) > LONGEST:
        raise UserError(
            f"{which} has {len(text)} characters, more than {LONGEST}: {_start(text)}; shorten it, the text encoder "
            "reads at most 512 tokens"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{which} ({text[:80]!a}) is not valid Unicode: {error.reason}; pass it as UTF-8"
        ) from error
    cleaned = " ".join(text.split())
    # Zero-width and control characters alone would give the encoder nothing to read.
    if not any(char.isprintable() and char != " " for char in cleaned):
        raise UserError(
            f"{which} is empty ({shortened(text)}); write what the picture shows, for example 'red heart'"
        )
    return cleaned


def truncate_tokens(token_ids: Sequence[list[int]], texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Cuts the token ids of each text to at most `max_length`; the last (end) token is always kept.

    What is cut is logged, with the prompt's start and both counts.
    """
    too_long = [(ids, text) for ids, text in zip(token_ids, texts, strict=True) if len(ids) > max_length]
    for ids, text in too_long[:_WARNINGS_SHOWN]:
        logging.warning(
            "prompt %s has %d tokens, the text encoder takes %d: the last %d words or pieces are ignored;"
            " shorten the prompt",
            _start(text), len(ids), max_length, len(ids) - max_length,
        )  # fmt: skip
    if len(too_long) > _WARNINGS_SHOWN:
        logging.warning("%d more prompts were cut to %d tokens", len(too_long) - _WARNINGS_SHOWN, max_length)
    return [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in token_ids]


def _start(text: str, characters: int = 40) -> str:
    return repr(text if len(text) <= characters else text[:characters] + "...")
