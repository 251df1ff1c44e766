"""`infinity-jax convert`: published PyTorch weights -> a checkpoint of this project, and back.

The way back gives the published file again: every tensor with its name, shape, dtype and value, in the same order.
What it needs for that beside the weights is noted in config.json: origin -> transformer or tokenizer -> published.
Weights that were trained here have no such note; they get the names and the nesting of the release.
"""

import collections
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.checkpoints import rotary
from infinity_jax.checkpoints.opened import BUNDLED
from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import checksums, paths
from infinity_jax.files.lazy_tensor import LazyTensor, dtype_named
from infinity_jax.files.safetensors_writer import SafetensorsWriter
from infinity_jax.files.tensors import SAFETENSORS, TORCH_SUFFIXES, TensorFiles, open_tensors
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.tools.convert.configs import resolve_config
from infinity_jax.tools.convert.kinds import KINDS
from infinity_jax.tools.convert.links import (
    Buffer,
    Link,
    check_ours,
    in_published_order,
    published_arrays,
    size_of,
    write_ours,
)
from infinity_jax.tools.convert.transformer_names import CAPTION_TABLE


@dataclasses.dataclass(frozen=True)
class Published:
    """What config.json notes about the published file that weights were converted from.

    Attributes:
      file: its name, without the folder.
      layout: of its names: arguments of `transformer_links` or `tokenizer_links`.
      nesting: keys under which it keeps the state dict; None if it cannot have any: the release's are used.
      prefix: stands before every name.
      dtype: of most tensors; "" means that of our arrays.
      other_dtypes: name -> dtype of the others.
      order: places of its tensors in the release's order, with spaces between; "" if that is its order.
    """

    file: str
    layout: Mapping[str, Any]
    nesting: tuple[str, ...] | None = None
    prefix: str = ""
    dtype: str = ""
    other_dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    order: str = ""


def main(source: str, kind: str, config: str, out: str) -> None:
    """Converts published weights into the folder `out`, which may hold the other parts already.

    Args:
      source: a file or a folder of shards, as `tensors.open_tensors` reads.
      kind: "transformer", "tokenizer", "upscaler" or "t5".
      config: a name or a file, as `configs.resolve_config` reads; for "t5" the Hugging Face config.json.
      out: gets the weights and config.json.
    Raises:
      UserError: weights and config do not fit, or not what `out` holds; nothing was changed then.
    """
    if kind == "t5":
        from infinity_jax.tools.convert.t5 import convert_t5

        convert_t5(source, config, out)
        return
    started, its = time.monotonic(), KINDS[kind]
    resolved = resolve_config(config, kind)
    tensors = open_tensors(Path(source), kind).only(its.chosen)
    if not tensors:
        raise UserError(
            f"{source} holds no {kind}: none of its tensors is named like one of it; give another file"
        )
    links, layout = its.fitting_links(tensors, resolved.model, config)
    if isinstance(resolved.model, TransformerConfig) and resolved.model.condition == "text":
        layout["caption_rows"] = _note_rows(layout["caption_rows"], resolved.model.text_length)
    origin = {"published": dataclasses.asdict(_note(Path(source).name, layout, tensors, links))}
    folder = Path(out)
    read = {tensor.path for tensor in tensors.values()}
    paths.check_not_read(folder / checkpoint_folder.WEIGHTS[kind], "the weights in --out", *read)
    with checkpoint_folder.changing(folder):
        checkpoint_folder.add_part(
            folder, kind, resolved.sections, origin, lambda path: write_ours(path, tensors, links)
        )
    logging.info(
        "converted %d tensors, %.2f GB, into %s in %.0f s",
        *(len(tensors), size_of(tensors) / 1e9, folder, time.monotonic() - started),
    )


def _note_rows(rows: int, wanted: int) -> int:
    """Warns where the table of the empty caption is cut or filled; how many of its rows the way back can give."""
    if rows > wanted:
        logging.warning("%s: its %d rows are cut to text_length %d", CAPTION_TABLE, rows, wanted)
    if rows < wanted:
        logging.warning("%s: its %d rows are filled up to text_length %d", CAPTION_TABLE, rows, wanted)
    return min(rows, wanted)


def _note(
    file: str, layout: Mapping[str, Any], tensors: TensorFiles, links: Sequence[Link | Buffer]
) -> Published:
    place = {link.published: i for i, link in enumerate(links)}
    order = [place[name] for name in tensors]
    dtypes = {name: tensor.dtype.name for name, tensor in tensors.items()}
    dtype = collections.Counter(dtypes.values()).most_common(1)[0][0]
    return Published(
        file=file,
        layout=layout,
        nesting=tensors.nesting,
        prefix=tensors.prefix,
        dtype=dtype,
        other_dtypes={name: other for name, other in dtypes.items() if other != dtype},
        order="" if order == sorted(order) else " ".join(map(str, order)),
    )


def to_torch(file: str, folder: str, kind: str) -> None:
    """Writes the transformer, the tokenizer or the upscaler of a checkpoint as one published file.

    Args:
      file: the file to write: .pth, .pt or .bin for torch, or .safetensors.
      folder: an exported or converted checkpoint, or "bundled".
      kind: "transformer", "tokenizer" or "upscaler".
    Raises:
      UserError: the folder is no such checkpoint, or the file has another suffix.
    """
    started, path, its = time.monotonic(), Path(file), KINDS[kind]
    if path.suffix not in (*TORCH_SUFFIXES, SAFETENSORS):
        known = ", ".join((*TORCH_SUFFIXES, SAFETENSORS))
        raise UserError(f"--to-torch {file} has an unknown suffix; use one of {known}")
    where, values = _open_checkpoint(folder, kind)
    config = from_dict(its.config_class, values[kind], kind)
    record = values.get("origin", {}).get(kind, {}).get("published")
    nesting, prefix = its.nesting_of(config)
    note = (
        from_dict(Published, record, f"origin.{kind}.published")
        if record
        else Published(path.name, its.usual_layout(config), prefix=prefix)
    )
    links = its.links(config, **note.layout)
    if rotary.order_of(values) == rotary.NEIGHBOURS:
        links = in_published_order(links)
    weights = where / checkpoint_folder.WEIGHTS[kind]
    if not weights.is_file():
        raise UserError(
            f"{where} lacks {weights.name}, which its config.json promises; convert or export it again"
        )
    if path.is_dir():
        raise UserError(f"--to-torch {file} is a folder; name another file")
    paths.check_not_read(path, "--to-torch", where)
    checksums.check(where, [weights.name], checkpoint_folder.DAMAGED)
    ours = open_tensors(weights, kind)
    check_ours(weights, ours, links)
    if note.order:
        links = [links[int(place)] for place in note.order.split()]
    shapes = {link.published: (_dtype(link, note, ours), link.published_shape) for link in links}
    arrays = published_arrays(ours, links, shapes)
    named = {note.prefix + name: shape for name, shape in shapes.items()}
    nesting = nesting if note.nesting is None else note.nesting
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint_folder.replace(path, lambda temporary: _write(temporary, path.suffix, named, arrays, nesting))
    size = path.stat().st_size / 1e9
    logging.info("wrote %s, %.2f GB, in %.0f s", path, size, time.monotonic() - started)


def _open_checkpoint(folder: str, kind: str) -> tuple[Path, dict[str, Any]]:
    where = paths.bundled_checkpoint() if folder == BUNDLED else Path(folder).expanduser()
    if not where.is_dir():
        raise UserError(f"no checkpoint folder {where}; give a converted or exported folder")
    if not (where / checkpoint_folder.CONFIG).is_file():
        if (where / "checkpoints").is_dir():
            raise UserError(
                f"{where} is a training workdir; first write its weights as a folder: "
                f"infinity-jax export --checkpoint {where} --out DIR --dtype float32, then --from DIR"
            )
        raise UserError(f"{where} has no {checkpoint_folder.CONFIG}; give a converted or exported folder")
    values = checkpoint_folder.read_config(where)
    if kind not in values:
        raise UserError(f"{where} holds no {kind}; give a folder that has one")
    return where, values


def _dtype(link: Link | Buffer, note: Published, ours: Mapping[str, LazyTensor]) -> np.dtype:
    """Finds the dtype of the published tensor."""
    if link.published in note.other_dtypes:
        return dtype_named(note.other_dtypes[link.published])
    if note.dtype:
        return dtype_named(note.dtype)
    if isinstance(link, Link):
        return ours[link.ours[0]].dtype
    values = link.values.dtype
    return values if values.kind == "i" else next(iter(ours.values())).dtype


def _write(
    path: Path,
    suffix: str,
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    nesting: Sequence[str],
) -> None:
    if suffix != SAFETENSORS:
        write_torch_file(path, shapes, arrays, nesting)
        return
    with SafetensorsWriter(path, shapes) as writer:
        for name, array in zip(shapes, arrays, strict=True):
            writer.write(name, array)
