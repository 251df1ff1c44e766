"""Data sets by name: each is a random-access sequence of {image, caption, id}."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from infinity_jax.data.prepared.config import RECORDS
from infinity_jax.data.records import SPLITS, Source
from infinity_jax.errors import UserError
from infinity_jax.files import paths

_FOLDER = "folder:"


def open_source(name: str, split: str, data_dir: Path | str | None = None) -> Source:
    """Opens one split of a data set.

    `name` is "emoji_captions" or "emoji_styles" (prepared under `data_dir` when they are not yet there), "scenes"
    (drawn when they are asked for), "folder:PATH" (see `infinity_jax.data.folder`) or "records:DIR" (see
    `infinity_jax.data.prepared.record_set`); `split` is one of train,
    validation, compositions. A folder has no compositions, and no validation below 20 pictures; records are all
    train: those sources are empty. Raises UserError for an unknown name or split and for a set without a usable
    picture.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    # The data sets are imported on demand: each needs `Record` from here, and TFDS takes a while to import.
    root = Path(data_dir) if data_dir is not None else paths.data_dir()
    if name == _FOLDER:
        raise UserError(f"data.source {name!r} names no folder; give one, like {_FOLDER}my_pictures")
    if name.startswith(_FOLDER):
        from infinity_jax.data.folder import FolderSource

        return FolderSource(Path(name.removeprefix(_FOLDER)).expanduser(), split, root)
    if name == "emoji_captions":
        from infinity_jax.data.drawn_once import DrawnSource
        from infinity_jax.data.emoji_captions import EmojiCaptions

        return DrawnSource(EmojiCaptions, split, root)
    if name == "emoji_styles":
        from infinity_jax.data.drawn_once import DrawnSource
        from infinity_jax.data.emoji_styles import EmojiStyles

        return DrawnSource(EmojiStyles, split, root)
    if name == "scenes":
        from infinity_jax.data.scenes.source import SceneSource

        return SceneSource(split)
    if name.startswith(RECORDS):
        from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource

        return RecordSource(MixedRecords(name)) if split == "train" else ()
    near = difflib.get_close_matches(
        name, ["emoji_captions", "emoji_styles", "scenes", _FOLDER, RECORDS], n=1
    )
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(
        f"unknown data source {name!r}{hint}; use 'emoji_captions', 'emoji_styles', 'scenes', 'folder:PATH' or "
        "'records:DIR'"
    )


def fit_of(origin: Mapping[str, Any]) -> str:
    """Returns the `data.fit` of the run that a checkpoint's origin tells of; "crop" where it tells nothing."""
    return origin.get("data", {}).get("fit", "crop")


def attribution(sources: Collection[str]) -> str:
    """Returns what a sheet must say about the data that drew it, "" if nothing is known."""
    if "emoji_styles" in sources:
        return (
            "Trained on OpenMoji (openmoji.org, CC BY-SA 4.0), Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0) and Fluent "
            "Emoji (MIT) pictures."
        )
    return "Trained on OpenMoji pictures (openmoji.org, CC BY-SA 4.0)." if "emoji_captions" in sources else ""
