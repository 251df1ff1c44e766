"""A data set of tensorflow-datasets that lies prepared on disk, read through `data_source` without TensorFlow."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax.data.originals.rows import Row, Skipped, captions_of, part_size, scores_of
from infinity_jax.errors import UserError

_PICTURES = ("image", "picture", "img")
_CAPTIONS = ("long_caption", "captions", "caption", "text")
_LABEL = "label"  # of sets for classifiers, whose names of classes stand for captions
_PREPARE = "prepare it first with tfds, file_format=array_record, and set TFDS_DATA_DIR or give its folder"


@dataclasses.dataclass(frozen=True)
class TfdsPart:
    """Some records of a split."""

    dataset: str
    split: str
    first: int
    count: int

    def name(self) -> str:
        return f"{self.dataset}@{self.split}[{self.first}:{self.first + self.count}]"

    def rows(self) -> Iterator[Row | Skipped]:
        import tensorflow_datasets as tfds

        builder = _builder(self.dataset)
        picture = _feature(builder, _PICTURES)
        records = builder.as_data_source(self.split, decoders={picture: tfds.decode.SkipDecoding()})
        classes = _classes(builder)
        for index in range(self.first, self.first + self.count):
            name = f"{self.split}:{index}"
            record = records[index]
            texts = {key: _texts(record[key]) for key in _CAPTIONS if key in record}
            if classes and not texts and int(record[_LABEL]) >= 0:  # -1 is of a split whose labels are secret
                texts = {"caption": [classes[int(record[_LABEL])]]}
            captions = captions_of(texts)
            if not captions:
                yield Skipped(name, "no caption", f"the record has {', '.join(record)}")
                continue
            columns = {key: value for key, value in record.items() if key not in (picture, *_CAPTIONS)}
            numbers = {k: float(v) for k, v in columns.items() if isinstance(v, (int, float, np.number))}
            unread = tuple(sorted(map(str, columns.keys() - numbers.keys())))
            yield Row(name, bytes(record[picture]), captions, scores_of(numbers), unread)


def find_parts(name: str) -> list[TfdsPart]:
    """Finds the parts of "NAME" (its split train) or "NAME@SPLIT"; NAME may be the folder of a prepared data set.

    Raises:
      UserError: it is not prepared, or in a format without random access; it has no such split, pictures, or captions.
    """
    dataset, _, split = name.partition("@")
    split = split or "train"
    builder = _builder(dataset)
    if not builder.info.splits:
        raise UserError(f"{dataset} is not prepared: it has no splits; {_PREPARE}")
    if split not in builder.info.splits:
        raise UserError(f"{dataset} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    _feature(builder, _PICTURES)
    if not _classes(builder):
        _feature(builder, _CAPTIONS)
    try:
        builder.as_data_source(split)
    except NotImplementedError as error:
        kind = builder.info.file_format.value
        raise UserError(
            f"{dataset} lies in the format {kind}, which is not read record by record; {_PREPARE}"
        ) from error
    count = builder.info.splits[split].num_examples
    size = part_size(count)
    return [TfdsPart(dataset, split, i, min(size, count - i)) for i in range(0, count, size)]


def _builder(dataset: str) -> Any:
    # Imported here: it takes seconds.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        if (Path(dataset).expanduser() / "dataset_info.json").is_file():
            return tfds.builder_from_directory(str(Path(dataset).expanduser()))
        # Not tfds.builder: it runs the set's own code where there is some, and that wants TensorFlow.
        return read_only_builder.builder_from_files(dataset)
    except Exception as error:  # what it raises depends on what of the name is wrong
        raise UserError(
            f"tensorflow-datasets cannot open {dataset!r}: {str(error).splitlines()[0] if str(error) else error!r}; "
            f"{_PREPARE}"
        ) from error


def _feature(builder: Any, names: Sequence[str]) -> str:
    feature = next((name for name in names if name in builder.info.features), None)
    if feature is None:
        raise UserError(
            f"{builder.info.full_name} has the features {', '.join(builder.info.features)}; "
            f"one of them must be {', '.join(names)}"
        )
    return feature


def _classes(builder: Any) -> Sequence[str]:
    """Lists the names of a set's classes in the order of their numbers, or these; () where it has no single labels."""
    features = builder.info.features
    feature = dict(features).get(_LABEL)
    # Not isinstance: tensorflow_datasets takes seconds to import, and a sequence of labels is none.
    is_one = type(feature).__name__ == "ClassLabel" and getattr(feature, "num_classes", None)
    return feature.names if feature is not None and is_one else ()


def _texts(value: Any) -> list[str]:
    """Returns the texts of a feature: one, a sequence, or a sequence of {"text"} as coco_captions has it."""
    if isinstance(value, bytes):
        return [value.decode("utf-8", "replace")]
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key in ("text", "caption") if key in value for text in _texts(value[key])]
    try:
        return [text for item in value for text in _texts(item)]
    except TypeError:
        return []
