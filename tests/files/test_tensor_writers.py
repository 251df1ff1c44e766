"""The streaming writers: what they write is what torch and safetensors read."""

import struct
import zipfile

import numpy as np
import pytest
from helpers.published import assert_same, state_of_all_dtypes, write_pth
from safetensors.numpy import load_file

from infinity_jax.files.safetensors_writer import SafetensorsWriter
from infinity_jax.files.torch_reader import TorchFile
from infinity_jax.files.torch_writer import write_torch_file


def test_safetensors_are_written_in_any_order(tmp_path):
    random = np.random.default_rng(0)
    stacked = random.standard_normal((3, 4, 5)).astype(np.float32)
    single = random.standard_normal(7).astype(np.float16)
    arrays = {"stacked": (stacked.dtype, stacked.shape), "single": (single.dtype, single.shape)}
    with SafetensorsWriter(tmp_path / "a.safetensors", arrays) as writer:
        writer.write("stacked", stacked[2], row=2)
        writer.write("single", single)
        writer.write("stacked", stacked[0], row=0)
        with pytest.raises(ValueError, match="written already"):
            writer.write("stacked", stacked[0], row=0)
        with pytest.raises(ValueError, match="single is"):
            writer.write("single", single.astype(np.float32))
        writer.write("stacked", stacked[1], row=1)
    assert_same(load_file(tmp_path / "a.safetensors"), {"stacked": stacked, "single": single}, ordered=False)
    with (
        pytest.raises(ValueError, match="never written: stacked"),
        SafetensorsWriter(tmp_path / "b.safetensors", arrays) as writer,
    ):
        writer.write("stacked", stacked[2], row=2)
        writer.write("single", single)


def test_torch_files_are_as_torch_writes_them(tmp_path):
    state = state_of_all_dtypes()
    path = write_pth(tmp_path / "a.pth", state, ("outer", "inner"))
    assert list(TorchFile(path).content) == ["outer"]
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert [i.filename for i in archive.infolist()][:3] == [
            "archive/data.pkl",
            "archive/byteorder",
            "archive/data/0",
        ]
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
    for wrong in ([], [np.zeros(3)], [np.ones(2, np.float32)] * 2):
        with pytest.raises(ValueError):
            write_torch_file(tmp_path / "b.pth", {"a": (np.dtype("float32"), (2,))}, wrong)
