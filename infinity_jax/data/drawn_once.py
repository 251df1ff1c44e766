"""Data sets whose pictures are drawn once from what packages hold, kept by TFDS and read without TensorFlow."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from infinity_jax.data.records import Record
from infinity_jax.errors import UserError
from infinity_jax.files import checksums, locks

Builder = type[tfds.core.GeneratorBasedBuilder]


def describe(
    builder: tfds.core.GeneratorBasedBuilder, side: int, description: str, homepage: str, license: str
) -> tfds.core.DatasetInfo:
    """Describes a builder of (picture, caption, codepoint, split), its pictures PNGs of `side` x `side` pixels."""
    picture = tfds.features.Image(shape=(side, side, 3), encoding_format="png")
    texts = {name: tfds.features.Text() for name in ("caption", "codepoint", "split")}
    return builder.dataset_info_from_configs(
        description=description,
        features=tfds.features.FeaturesDict({"picture": picture, **texts}),
        homepage=homepage,
        license=license,
        disable_shuffling=True,
    )


def prepare(kind: Builder, root: Path) -> Path:
    """Prepares a data set once under `root` and returns its folder.

    A second call returns at once. TFDS writes into a folder of another name and renames it at the end,
    so an interrupted preparation leaves nothing that looks finished; a lock keeps processes apart.
    """
    name = kind.name
    with _explained(kind, root):
        builder = open_builder(kind, root)
    if builder.is_prepared():  # Without the lock, so that a folder that cannot be written can be read.
        return Path(builder.data_dir)
    with locks.alone(root / f".{name}.lock", f"prepares {name} in {root}"):
        if not builder.is_prepared():
            logging.info("Preparing %s in %s", name, builder.data_dir)
            for leftover in (root / name).glob("*incomplete*"):
                shutil.rmtree(leftover)
            tfds.disable_progress_bar()
            # TFDS prints that it downloads and prepares data of "Unknown size": nothing is downloaded.
            with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_dir=downloads)
            folder = Path(builder.data_dir)
            checksums.write(folder, checksums.compute(folder, [file.name for file in folder.iterdir()]))
    return Path(builder.data_dir)


def open_builder(kind: Builder, root: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set under `root`, prepared or not."""
    return kind(data_dir=str(root), file_format="array_record")


def _remedy(kind: Builder, root: Path) -> str:
    return f"remove {root / kind.name}: the pictures are prepared again"


@contextlib.contextmanager
def _explained(kind: Builder, root: Path) -> Iterator[None]:
    """Turns whatever is raised while prepared pictures are read into UserError."""
    try:
        yield
    except (UserError, IndexError):
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the prepared pictures in {root / kind.name} cannot be read ({words[:300]}); {_remedy(kind, root)}"
        ) from error


class DrawnSource:
    """One split as a sequence of {image (PNG bytes), caption, id (`codepoint`)}; prepared when it is not yet there."""

    def __init__(self, kind: Builder, split: str, root: Path):
        self._kind, self._root, folder = kind, root, prepare(kind, root)
        # The records have their own checksums.
        checksums.check(folder, [file.name for file in folder.glob("*.json")], _remedy(kind, root))
        raw = {"picture": tfds.decode.SkipDecoding()}
        with _explained(kind, root):
            builder = open_builder(kind, root)
            # The decorator of TFDS hides the parameters from the type checker.
            self._records = builder.as_data_source(split, decoders=raw)  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Record:
        with _explained(self._kind, self._root):
            record = self._records[index]
        caption, codepoint = record["caption"].decode(), record["codepoint"].decode()
        return {"image": record["picture"], "caption": caption, "id": codepoint}
