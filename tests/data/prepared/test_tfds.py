"""`infinity-jax prepare --source tfds:NAME`: prepared sets of tensorflow-datasets, read without TensorFlow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import paths

from infinity_jax import config_files
from infinity_jax.data.prepared import writer
from infinity_jax.data.prepared.config import parse_limits
from infinity_jax.data.prepared.record_set import MixedRecords
from infinity_jax.errors import UserError
from infinity_jax.training.run_config import with_labels

MADE = """
import sys
from pathlib import Path
import numpy as np
from helpers import pictures as synthetic_pictures
import tensorflow_datasets as tfds

class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014", version="1.1.0", description="small")]
    pkg_dir_path = Path(synthetic_pictures.__file__).parent  # where tfds looks for texts

    def _info(self):
        texts = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
        image = tfds.features.Image(encoding_format="jpeg")
        features = {"image": image, "image/id": np.int64, "captions": texts, "score": np.float32}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            texts = [{"id": k, "text": f"caption {i} {k}"} for k in range(2)]
            yield i, {"image": synthetic_pictures.jpeg(i), "image/id": i, "captions": texts, "score": i / 2}

class Labelled(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["tench", "cassette player", "church"])
        features = {"image": tfds.features.Image(encoding_format="jpeg"), "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            yield i, {"image": synthetic_pictures.jpeg(i), "label": 2 - i % 3}
        yield 4, {"image": synthetic_pictures.jpeg(4), "label": -1}  # as a test split's are

for set_ in (CocoCaptions, Labelled):
    builder = set_(data_dir=sys.argv[1], file_format="array_record")
    builder.download_and_prepare(download_dir=sys.argv[1] + "/downloads")
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three pictures prepared under a name that tfds has code for, by a process of its own: it would know that code."""
    folder = tmp_path_factory.mktemp("tfds")
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    subprocess.run([sys.executable, "-c", MADE, str(folder)], env=environment, check=True)
    return folder


def captions_in(out: Path) -> list[list[str]]:
    records = MixedRecords(f"records:{out}")
    found = [
        records.read(bucket.ratio, 0, i)["captions"]["short"]
        for bucket in records.buckets
        for i in range(bucket.sizes[0])
    ]
    return sorted(found)


def test_the_bundled_pictures_lie_in_its_format(tmp_path):
    from infinity_jax.data.emoji_captions import prepare_emoji

    prepared = prepare_emoji()
    summary = writer.prepare(f"tfds:{prepared}@compositions", tmp_path / "out", workers=1)
    assert summary["pictures"] > 50 and summary["by_ratio"] == {"1:1": summary["pictures"]}
    assert summary["columns"]["unread"].keys() == {"codepoint", "split"} and not summary["skipped"]["count"]
    with pytest.raises(UserError, match="has no split 'test'; it has"):
        writer.prepare(f"tfds:{prepared}@test", tmp_path / "other", workers=1)


@pytest.mark.parametrize("name", ["", "coco_captions", "coco_captions/2014", "coco_captions/2014:1.1.0"])
def test_several_captions_of_a_picture_in_a_folder_or_by_name(coco, name, tmp_path, monkeypatch):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(coco))  # $TFDS_DATA_DIR is read at the import
    source = name or coco / "coco_captions" / "2014" / "1.1.0"
    summary = writer.prepare(f"tfds:{source}", tmp_path / "out", workers=1)
    assert summary["pictures"] == 3 and summary["columns"]["scores"] == {"image/id": 3, "score": 3}
    assert captions_in(tmp_path / "out") == [[f"caption {i} 0", f"caption {i} 1"] for i in range(3)]
    assert "tensorflow" not in sys.modules
    filtered = MixedRecords(f"records:{tmp_path / 'out'}", parse_limits("image/id>=1,score<=0.5"))
    assert len(filtered) == 1


def test_the_names_of_classes_stand_for_captions(coco, tmp_path):
    """As imagenet2012 and imagenette have them; a model of labels takes its classes from there."""
    folder = coco / "labelled" / "1.0.0"
    summary = writer.prepare(f"tfds:{folder}", tmp_path / "out", workers=1)
    assert summary["pictures"] == 4 and summary["columns"]["scores"] == {"label": 4}
    assert summary["skipped"]["count"] == 1
    assert captions_in(tmp_path / "out") == [["cassette player"], ["church"], ["church"], ["tench"]]
    source = f"--config.data.source=records:{tmp_path / 'out'}"
    config = with_labels(config_files.load("var:debug", [source]))
    assert tuple(config.text.labels) == ("cassette player", "church", "tench") and config.model.classes == 3


def test_sets_that_are_not_prepared_or_of_another_format_are_explained(coco, tmp_path):
    folder = tmp_path / "coco_captions" / "2014" / "1.1.0"
    shutil.copytree(coco / "coco_captions" / "2014" / "1.1.0", folder)
    about = folder / "dataset_info.json"
    info = json.loads(about.read_text())
    about.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"format tfrecord.*file_format=array_record"):
        writer.prepare(f"tfds:{folder}", tmp_path / "out", workers=1)
    about.write_text(json.dumps({**info, "splits": []}))
    with pytest.raises(UserError, match="is not prepared"):
        writer.prepare(f"tfds:{folder}", tmp_path / "out", workers=1)
    for name in ("mnist", "no_such_set"):
        with pytest.raises(UserError, match=f"cannot open '{name}'.*prepare it first"):
            writer.prepare(f"tfds:{name}", tmp_path / "out", workers=1)
