"""A bit that flips in a torch file or in cached features is noticed."""

import random
import zipfile

import numpy as np
import pytest
from helpers.damage import flip_bit

from infinity_jax.data.prepared import shards
from infinity_jax.errors import UserError
from infinity_jax.files import caches
from infinity_jax.files.torch_reader import TorchFile, read_torch_file
from infinity_jax.files.torch_writer import write_torch_file

ARRAYS = {f"layer{i}": np.random.default_rng(i).normal(size=(5, 7)).astype(np.float32) for i in range(3)}


def write(path):
    write_torch_file(path, {name: (a.dtype, a.shape) for name, a in ARRAYS.items()}, ARRAYS.values())


def test_every_flipped_bit_of_a_torch_file_is_refused_or_changes_nothing(tmp_path):
    path, draw = tmp_path / "a.pth", random.Random(0)
    refused = 0
    for _ in range(600):
        write(path)
        flip_bit(path, draw)
        try:
            got = read_torch_file(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        # A name in the pickle is guarded by its CRC too; what is left are bytes between the entries.
        assert got.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(got[name], array)
    assert refused > 300


def test_values_are_compared_with_the_crc_of_their_entry(tmp_path):
    path = tmp_path / "a.pth"
    write(path)
    lazy = TorchFile(path).tensors()["layer1"]
    content = bytearray(path.read_bytes())
    content[lazy.start + 60] ^= 4
    path.write_bytes(content)
    expected = pytest.raises(
        UserError, match=r"a.pth is damaged at byte \d+: its CRC-32 is not .*download it"
    )
    with expected:
        TorchFile(path).tensors()["layer1"].read()
    part = TorchFile(path).tensors()["layer1"].row(2)  # the rest of the entry is read for the CRC alone
    with expected:
        part.read()
    np.testing.assert_array_equal(TorchFile(path).tensors()["layer0"].read(), ARRAYS["layer0"])


def test_an_archive_without_crcs_is_read(tmp_path):
    """torch.serialization.set_crc32_options(False) leaves them 0."""
    path = tmp_path / "a.pth"
    write(path)
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("archive/data/1").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, bytes(4)))
    np.testing.assert_array_equal(read_torch_file(path)["layer1"], ARRAYS["layer1"])


def test_a_flipped_bit_of_cached_features_is_noticed(tmp_path):
    path, draw = tmp_path / "features.npy", random.Random(0)
    for number in range(40):
        with caches.writing(path, 4000) as temporary:
            array = caches.reserve(temporary, (1000,), np.float32)
            array[:] = 1
            array.flush()
        flip_bit(path if number else path.with_name("features.npy.xxh3"), draw)
        with pytest.raises(ValueError, match="its checksum is not that of what was written"):
            caches.load(path)
    path.with_name("features.npy.xxh3").unlink()
    with caches.writing(path, 4000) as temporary:
        caches.reserve(temporary, (1000,), np.float32)
    path.with_name("features.npy.xxh3").unlink()  # of an earlier version
    np.testing.assert_array_equal(caches.load(path, mmap=False), np.zeros(1000, np.float32))


def test_a_flipped_bit_of_a_record_is_refused_or_changes_nothing(tmp_path):
    """ArrayRecord hashes its chunks itself."""
    draw = random.Random(0)
    records = [{"id": str(i), "image": draw.randbytes(2000)} for i in range(5)]
    writer = shards.ShardWriter(tmp_path)
    for record in records:
        writer.write("1:1", shards.pack(record))
    writer.close()
    [file] = tmp_path.iterdir()
    whole, refused = file.read_bytes(), 0
    for number in range(400):
        damaged = tmp_path / f"{number}.array_record"
        damaged.write_bytes(whole)
        flip_bit(damaged, draw)
        for i, record in enumerate(records):
            try:
                assert shards.read(damaged, i) == record
            except UserError as error:
                assert str(damaged) in str(error)
                refused += 1
        damaged.unlink()
    assert refused > 20  # the file is padded
