"""Files of weights that were made to hang, to fill the memory or to print: refused in a moment, with one line."""

import collections
import json
import os
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
from helpers.torch_pickles import legacy_file, pickled, tensor, zip_file

from infinity_jax.errors import UserError
from infinity_jax.files import torch_pickle
from infinity_jax.files.tensors import open_tensors
from infinity_jax.files.torch_reader import LEGACY_MAGIC, read_torch_file


def refusal(path) -> str:
    """What is said of a file, within two seconds and 200 MiB."""
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        open_tensors(path, "t5")
    assert time.process_time() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    message = str(error.value)
    assert str(path) in message and "\n" not in message and message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message


def pth(path, pickle_bytes, layout, **entries):
    """A file of torch with this pickle in the place of the state dict."""
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle_bytes)
    else:
        heads = [pickled(head) for head in (LEGACY_MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(heads) + pickle_bytes + pickled([]))
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


NESTED_KEY = b"\x80\x02)" + b"2\x86" * 45 + b"q\x000}h\x00K\x01s."  # t = (t, t), 45 times, as a key
EMPTY = {
    "nested key": NESTED_KEY,
    "nested key in a set": b"\x80\x04)" + b"2\x86" * 45 + b"q\x000}X\x01\0\0\0a\x8f(h\x00\x90s0}.",
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
}
PICKLES = {
    "long text": b"\x80\x02" + text(b"\x1b[31m" + b"a" * 5_000_000) + b".",
    "a text that claims 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "2^60 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "long name": b"\x80\x02}" + text(b"k" * 5_000_000) + b"c" + b"m" * 5_000_000 + b"\nb\ns.",
    "deep list": b"\x80\x02" + b"(" * 20_000 + b"l" * 20_000 + b".",
    "deep tuple": b"\x80\x02)" + b"\x85" * 20_000 + b".",
    "huge number": b"\x80\x02\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "no end": b"\x80\x02" + b"}" * 10,
    "no mark": b"\x80\x02}K\x01K\x02u.",
    "extension": b"\x80\x02\x82\x01.",
    "stack": b"\x80\x02.",
}


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_within_their_budgets(name, layout, tmp_path):
    refusal(pth(tmp_path / "a.pth", PICKLES[name], layout))


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("name", EMPTY)
def test_steps_that_would_take_for_ever_do_nothing(name, layout, tmp_path):
    assert open_tensors(pth(tmp_path / "a.pth", EMPTY[name], layout), "t5") == {}


def test_budgets_of_steps_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST_STEPS", 1000)
    many = b"\x80\x02" + b"}0" * 1000 + b"}."
    assert "more than 1000 steps" in refusal(pth(tmp_path / "a.pth", many, "zip"))
    monkeypatch.setattr(torch_pickle, "MOST_BYTES", 1000)
    long = b"\x80\x02" + text(b"a" * 2000) + b"."
    assert "longer than 1000 bytes" in refusal(pth(tmp_path / "a.pth", long, "legacy"))
    assert "longer than 1000 bytes" in refusal(pth(tmp_path / "b.pth", long, "zip"))


def test_keys_that_are_no_plain_values_are_left_out(tmp_path):
    state = {"a": tensor("FloatStorage", "0", 2, 0, (2,), (1,))}
    content = {"vae": state, ("b", 1): 3, 7: "seven"}
    path = zip_file(tmp_path / "a.pth", content, {"0": np.ones(2, np.float32)})
    assert list(open_tensors(path, "tokenizer")) == ["a"]


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * (100 << 20))
    assert "compressed" in refusal(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), b"\x80\x02}.")
        archive.writestr("a/byteorder", b"l" * (100 << 20))
    assert "compressed" in refusal(tmp_path / "b.pth")


def test_a_list_of_a_million_entries_is_not_read(tmp_path):
    path = zip_file(tmp_path / "a.pth", {}, {})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\5\6")
    content[place + 12 : place + 16] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    assert "its list of entries has 1073741824 bytes" in refusal(path)


@pytest.mark.parametrize("save", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("length", "shape", "strides"),
    [
        (1 << 40, (1 << 40,), (1,)),  # of a storage that is not there
        (4, (1 << 40,), (0,)),  # one value repeated for 4 TiB
        (4, (1 << 62, 1 << 62), (0, 0)),
        (4, (1,) * 2000, (1,) * 2000),
    ],
)
def test_a_tensor_is_never_larger_than_its_storage(save, length, shape, strides, tmp_path):
    state = {"a" * 1_000_000: tensor("FloatStorage", "0", length, 0, shape, strides)}
    refusal(save(tmp_path / "a.pth", state, {"0": np.ones(4, np.float32)}))


def test_numbers_as_names_and_names_given_twice(tmp_path):
    entry = tensor("FloatStorage", "0", 1, 0, (1,), (1,))
    values = {"0": np.ones(1, np.float32)}
    assert list(read_torch_file(zip_file(tmp_path / "a.pth", {1: entry, "b": entry}, values))) == ["1", "b"]
    assert "have the same name" in refusal(zip_file(tmp_path / "b.pth", {1: entry, "1": entry}, values))


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    os.mkfifo(tmp_path / "a.safetensors")
    (tmp_path / "b.pth").symlink_to("/dev/zero")
    for name in ("a.pth", "a.safetensors", "b.pth"):
        refusal(tmp_path / name)


def test_a_storage_that_the_list_lacks_is_said(tmp_path):
    path = legacy_file(tmp_path / "a.pth", {"a": tensor("FloatStorage", "0", 1, 0, (1,), (1,))}, {})
    assert "storage '0' is missing" in refusal(path)


def safetensors(path, header: bytes, values: bytes = b"", length: int | None = None):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + values)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([4], 0, 16), "b": entry([4], 8, 24)},  # over each other
        {"a": entry([4], 0, 16), "b": entry([4], 24, 40)},  # a gap
        {"a": entry([1 << 62, 4], 0, 16)},
        {"a": entry([-1], 0, 4)},
        {"a": entry([4], 16, 0)},
        {"a": entry([4], 0, 16, "F8_E4M3")},
        {"a": entry([4], 0, 16, "\x1b[31m")},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        [1],
        3,
    ],
)
def test_safetensors_with_other_headers(header, tmp_path):
    refusal(safetensors(tmp_path / "a.safetensors", json.dumps(header).encode(), b"\0" * 40))


def test_safetensors_headers_within_their_budget(tmp_path):
    path = tmp_path / "a.safetensors"
    refusal(safetensors(path, b"[" * 1_000_000))
    refusal(safetensors(path, b'{"a":' * 1_000_000))
    refusal(safetensors(path, b"{}", length=10 << 30))
    refusal(safetensors(path, b"{}", length=(1 << 64) - 1))
    refusal(safetensors(path, b'{"__metadata__":{"a":"' + b"b" * (20 << 20) + b'"}}'))
    refusal(safetensors(path, b"\xff\xfe{}"))
    refusal(safetensors(path, b""))


def test_an_index_within_its_budget(tmp_path):
    path = tmp_path / "a.safetensors.index.json"
    for content in (
        b"[" * 1_000_000,
        b'{"weight_map": ' + b"9" * 10_000 + b"}",
        b'{"weight_map": {"a": []}}',
    ):
        path.write_bytes(content)
        refusal(path)
    with open(path, "wb") as file:
        file.truncate(10 << 30)
    refusal(path)


def test_what_pickle_writes_is_still_read(tmp_path):
    """All protocols, with what a trainer keeps beside its weights."""
    content = {"list": [1, [2.5, None]], "set": {1, 2}, "long": 1 << 80, "bytes": b"abc", "flag": True}
    content |= {
        "dict": collections.OrderedDict(a=1),
        "frozen": frozenset([1]),
        "array": bytearray(b"x"),
        "é": "ü",
    }
    for protocol in range(6):
        loaded = torch_pickle.load(pickle.dumps(content, protocol))
        for name in ("list", "long", "flag", "é"):
            assert loaded[name] == content[name]
