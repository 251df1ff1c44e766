"""Originals by name: `jsonl:DIR`, `folder:DIR`, `tfds:NAME`, `tar:GLOB`, `scenes:COUNT`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from infinity_jax.data.originals import captioned_folder, json_lines, scenes_set, tar_shards, tfds_set
from infinity_jax.data.originals.rows import Part
from infinity_jax.errors import UserError

FORMS = f"jsonl:DIR, folder:DIR, tfds:NAME, tar:GLOB or {scenes_set.FORM}"
# What training cannot read before it is prepared into shards.
ONLY_SHARDS = ("jsonl", "tfds", "tar")
_FINDERS: dict[str, Callable[[str], Sequence[Part]]] = {
    "jsonl": lambda place: json_lines.find_parts(Path(place).expanduser()),
    "folder": lambda place: captioned_folder.find_parts(Path(place).expanduser()),
    "tar": lambda place: tar_shards.find_parts(str(Path(place).expanduser())),
    "tfds": tfds_set.find_parts,
    "scenes": scenes_set.find_parts,
}


def find_parts(name: str) -> Sequence[Part]:
    """Finds the parts of the original called `name`, always in the same order. UserError if there are none."""
    kind, _, place = name.partition(":")
    if kind not in _FINDERS:
        raise UserError(f"cannot prepare {name!r} into shards; give --source as {FORMS}")
    return _FINDERS[kind](place)
