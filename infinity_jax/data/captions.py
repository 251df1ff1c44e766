"""Which caption of a picture a step sees, and how it is cleaned."""

import random
import re
from collections.abc import Mapping, Sequence

# The end of a sentence: its mark, perhaps a quote or bracket, then white space.
_SENTENCE_END = re.compile(r"(?<=[.!?。!?])[\"')\]]*\s+")
# Options that some people write behind a prompt, like "--ar 16:9 --v 5": a word behind two hyphens, to the end.
_OPTIONS = re.compile(r"(?:^|\s)--[A-Za-z].*$", re.DOTALL)
KINDS = ("long", "short")


def plain(text: str) -> str:
    """Makes a text that can be written as UTF-8: "?" for each half of a pair of surrogates that stands alone."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean(caption: str) -> str:
    """Cleans a caption: no `--` options, single spaces, `plain` text; returns "" if nothing is left."""
    return " ".join(_OPTIONS.sub("", plain(caption)).split())


def first_sentences(caption: str, count: int) -> str:
    """Returns the first `count` sentences of a caption."""
    ends = [end.end() for end in _SENTENCE_END.finditer(caption)]
    return caption[: ends[count - 1]].rstrip() if count <= len(ends) else caption


def sentences(caption: str) -> int:
    """Counts the sentences of a caption, at least 1."""
    return 1 + sum(1 for _ in _SENTENCE_END.finditer(caption.rstrip()))


def kind_of(captions: Mapping[str, Sequence], long_share: float, draw: random.Random) -> str:
    """Draws "long" or "short": "long" with probability `long_share` where a picture has both."""
    wanted = "long" if draw.random() < long_share else "short"
    return wanted if captions.get(wanted) else next(kind for kind in KINDS if captions.get(kind))


def choose(
    captions: Mapping[str, Sequence[str]], long_share: float, cut_share: float, draw: random.Random
) -> str:
    """Draws one caption of a picture.

    Args:
      captions: "long" and "short", each a list of alternatives of which one is drawn; one kind may be absent.
      long_share: probability of the long one where there are both.
      cut_share: probability that of a long caption only the first sentences are kept, a number drawn evenly from one
        to all.
      draw: random numbers; the same state gives the same caption.
    """
    kind = kind_of(captions, long_share, draw)
    caption = draw.choice(captions[kind])
    if kind == "long" and draw.random() < cut_share:
        caption = first_sentences(caption, draw.randint(1, sentences(caption)))
    return caption
