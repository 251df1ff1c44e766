"""Prepared emoji pictures that a disk, a copy or a kill has damaged."""

import random
import shutil

import pytest
from helpers.damage import MUTATIONS

from infinity_jax.data import emoji_captions
from infinity_jax.data.records import SPLITS
from infinity_jax.data.sources import open_source
from infinity_jax.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A prepared set of one picture a split."""
    folder, named = tmp_path_factory.mktemp("whole"), emoji_captions.named_pictures()
    split = [
        emoji_captions.split_of(caption, emoji_captions.is_composition(chars)) for _, chars, caption in named
    ]
    with pytest.MonkeyPatch.context() as patch:
        few = [named[split.index(name)] for name in SPLITS]
        patch.setattr(emoji_captions, "named_pictures", lambda: few)
        emoji_captions.prepare_emoji(folder)
        yield folder


def read(root) -> dict:
    sources = {split: open_source("emoji_captions", split, root) for split in SPLITS}
    return {split: [source[i] for i in range(len(source))] for split, source in sources.items()}


@pytest.mark.parametrize("name", MUTATIONS)
def test_damage_is_named_with_its_remedy_or_changes_nothing(whole, tmp_path, name):
    expected, draw = read(whole), random.Random(name)
    files = sorted((whole / "emoji_captions").rglob("*"))
    for number, place in enumerate(file.relative_to(whole) for file in files if file.is_file()):
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        MUTATIONS[name](root / place, draw)
        try:
            assert read(root) == expected, place
        except UserError as error:
            assert str(root) in str(error) and "remove" in str(error) and "\n" not in str(error)
