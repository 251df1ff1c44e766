"""Emoji drawn in six styles, 128x128 pixels; captions are the name and the style ("castle, 3D style").

What only npm has is fetched by the ordinary npm client, by name and pinned hash. The split `compositions` holds out a
tenth of the pairs of an emoji and a style, whole: both occur in training, the emoji in other styles.
"""

import dataclasses
import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import emoji
import tensorflow_datasets as tfds
from PIL import Image

from infinity_jax.data import drawn_once
from infinity_jax.data.emoji_captions import is_variant, named_pictures, plain_caption, rasterise
from infinity_jax.data.records import SPLITS, fraction
from infinity_jax.errors import UserError
from infinity_jax.files import npm, paths, pictures
from infinity_jax.files.npm import NpmPackage
from infinity_jax.files.progress import counted

SIDE = 128
HELD_OUT_PAIRS = 0.1
HELD_OUT_VALIDATION = 0.03
# A pair is held out only of emoji that have at least so many styles.
FEWEST_STYLES = 4

NOTO = NpmPackage(
    "@iconify-json/noto",
    "1.2.9",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
)
TWEMOJI = NpmPackage(
    "@iconify-json/twemoji",
    "1.2.5",
    "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
)
FLAT = NpmPackage(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)
GRADIENT = NpmPackage(
    "@iconify-json/fluent-emoji",
    "1.2.7",
    "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
)
SOLID = NpmPackage(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)

DESCRIPTION = """\
Emoji in six styles (128x128 RGB, on white) with name and style as captions.
Pictures: OpenMoji 17.0.0 (openmoji.org, CC BY-SA 4.0); Noto Emoji (Google, Apache-2.0); Twemoji (Twitter and other
contributors, CC BY 4.0); Fluent Emoji flat, gradient and 3D (Microsoft, MIT). Here rasterised; each stays under its
licence. Captions: the package `emoji`.
"""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An emoji in a style; `draw` makes its PNG."""

    code: str
    style: str
    caption: str
    draw: Callable[[], bytes]


class EmojiStyles(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of (picture, caption, codepoint, split); a codepoint here is "3D/1f3f0"."""

    name = "emoji_styles"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "OpenMoji, Noto, Twemoji, Fluent flat, gradient and 3D."
    }

    def _info(self) -> tfds.core.DatasetInfo:
        licences = "CC BY-SA 4.0, Apache-2.0, CC BY 4.0, MIT"
        return drawn_once.describe(self, SIDE, DESCRIPTION, "https://openmoji.org", licences)

    def _split_generators(self, dl_manager):
        del dl_manager  # npm fetches.
        drawings = all_drawings(paths.data_dir() / "npm")
        splits = splits_of(drawings)
        return {
            split: self._generate_examples(
                split, [d for d, own in zip(drawings, splits, strict=True) if own == split]
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, split: str, drawings: list[Drawing]
    ) -> Iterator[tuple[int, dict[str, str | bytes]]]:
        for number, drawing in enumerate(
            counted(drawings, f"drawing the split {split}", len(drawings), "pictures")
        ):
            yield (
                number,
                {
                    "picture": drawing.draw(),
                    "caption": drawing.caption,
                    "codepoint": f"{drawing.style}/{drawing.code}",
                    "split": split,
                },
            )


def all_drawings(folder: Path) -> list[Drawing]:
    """Lists all emoji in all styles, without skin tones, by style and code point.

    Args:
      folder: where files of npm packages are, or are fetched into.
    Raises:
      UserError: one cannot be fetched, or is not as it was.
    """
    names = names_by_code()
    found: dict[tuple[str, str], Callable[[], bytes]] = {}
    for svg, characters, _ in named_pictures():
        found["outlined", code_of(characters)] = functools.partial(_drawn, svg)
    codes: dict[str, str] = {}
    for style, package in {"Noto": NOTO, "Twemoji": TWEMOJI, "flat": FLAT, "gradient": GRADIENT}.items():
        icons, codes_here = _icons(npm.fetch(package, folder))
        codes = codes_here or codes  # that of gradients lists none, and has the keys of the flat ones
        for code, key in codes.items():
            if key in icons:
                found[style, _plain_code(code)] = functools.partial(rasterise, icons[key], SIDE)
    for code, content in _pictures(npm.fetch(SOLID, folder)).items():
        found["3D", _plain_code(code)] = functools.partial(_from_webp, content)
    return [
        Drawing(code, style, f"{names[code]}, {style} style", draw)
        for (style, code), draw in sorted(found.items(), key=lambda entry: entry[0])
        if code in names and not is_variant(names[code])
    ]


def splits_of(drawings: list[Drawing]) -> list[str]:
    """Chooses the split of each drawing by hashes of its emoji and style."""
    styles: dict[str, int] = {}
    for drawing in drawings:
        styles[drawing.code] = styles.get(drawing.code, 0) + 1

    def split(drawing: Drawing) -> str:
        pair = f"{drawing.code}/{drawing.style}"
        if styles[drawing.code] >= FEWEST_STYLES and fraction(f"styles/{pair}") < HELD_OUT_PAIRS:
            return "compositions"
        return "validation" if fraction(f"styles/validation/{pair}") < HELD_OUT_VALIDATION else "train"

    return [split(drawing) for drawing in drawings]


@functools.cache
def names_by_code() -> dict[str, str]:
    """Maps code points ("1f468-200d-1f680") to plain English names."""
    return {
        code_of(characters): plain_caption(names["en"], characters)
        for characters, names in sorted(emoji.EMOJI_DATA.items(), reverse=True)
        if "en" in names
    }


def code_of(characters: str) -> str:
    """Writes an emoji's code points, without the variation selector that some sets leave out."""
    return _plain_code("-".join(f"{ord(character):x}" for character in characters))


def _plain_code(code: str) -> str:
    return "-".join(part.lower().lstrip("0") for part in code.split("-") if part.lower() != "fe0f")


def _drawn(svg: Path) -> bytes:
    return rasterise(svg.read_text(), SIDE)


def _icons(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Reads a package of icons: key -> SVG, and code point -> key."""
    icons, codes = (_json(file, f"package/{name}.json") for name in ("icons", "chars"))
    width, height = icons.get("width", 16), icons.get("height", 16)

    def svg(icon: dict[str, Any]) -> str:
        box = f"0 0 {icon.get('width', width)} {icon.get('height', height)}"
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {names} viewBox="{box}">{icon["body"]}</svg>'

    return {key: svg(icon) for key, icon in icons["icons"].items()}, codes


def _json(file: Path, name: str) -> Any:
    with tarfile.open(file) as archive:
        member = archive.extractfile(name) if name in archive.getnames() else None
        if member is None:
            raise UserError(f"{file} has no {name}; remove it: it is fetched again")
        return json.load(member)


def _pictures(file: Path) -> dict[str, bytes]:
    """Reads a package of WebP pictures by code point."""
    found = {}
    with tarfile.open(file) as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix == ".webp" and (content := archive.extractfile(member)) is not None:
                found[path.stem] = content.read()
    return found


def _from_webp(content: bytes) -> bytes:
    out = io.BytesIO()
    with pictures.opened(content) as picture:
        layer = picture.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB").save(out, "PNG")
    return out.getvalue()
