"""Originals by name: `jsonl:DIR`, `folder:DIR`, `tfds:NAME`, `tar:GLOB`."""

from collections.abc import Sequence
from pathlib import Path

from infinity_jax.data.originals.rows import Part
from infinity_jax.errors import UserError

FORMS = "jsonl:DIR, folder:DIR, tfds:NAME or tar:GLOB"
# What training cannot read before it is prepared into shards.
ONLY_SHARDS = ("jsonl", "tfds", "tar")


def find_parts(name: str) -> Sequence[Part]:
    """Finds the parts of the original called `name`, always the same in the same order.

    Raises:
      UserError: a name of another form, or nothing is there.
    """
    kind, _, place = name.partition(":")
    # Imported on demand: tensorflow-datasets takes seconds.
    if kind == "jsonl":
        from infinity_jax.data.originals import json_lines

        return json_lines.find_parts(Path(place).expanduser())
    if kind == "folder":
        from infinity_jax.data.originals import captioned_folder

        return captioned_folder.find_parts(Path(place).expanduser())
    if kind == "tar":
        from infinity_jax.data.originals import tar_shards

        return tar_shards.find_parts(str(Path(place).expanduser()))
    if kind == "tfds":
        from infinity_jax.data.originals import tfds_set

        return tfds_set.find_parts(place)
    raise UserError(f"cannot prepare {name!r} into shards; give --source as {FORMS}")
