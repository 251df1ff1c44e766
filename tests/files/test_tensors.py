"""Files of published weights: what torch.save and safetensors write is read, and nothing in it is run."""

import argparse
import collections
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from helpers.published import (
    assert_file_holds,
    assert_same,
    save_safetensors,
    state_of_all_dtypes,
    write_pth,
    write_shards,
)
from helpers.torch_pickles import Call, Named, Storage, legacy_file, tensor, zip_file

from infinity_jax.errors import UserError
from infinity_jax.files.tensors import open_tensors
from infinity_jax.files.torch_reader import read_torch_file


@pytest.fixture(params=[zip_file, legacy_file])
def save(request):
    return request.param


def test_every_dtype_comes_back(tmp_path):
    state = state_of_all_dtypes()
    assert_file_holds(write_pth(tmp_path / "a.pth", state), state, "t5")
    save_safetensors(state, tmp_path / "a.safetensors")
    assert_file_holds(tmp_path / "a.safetensors", state, "t5", ordered=False)


def test_views_strides_and_shared_storages(save, tmp_path):
    values = np.arange(24, dtype=np.float32)
    halves = np.arange(6, dtype=np.float16)
    brains = np.linspace(-1, 1, 4).astype(ml_dtypes.bfloat16)
    state = collections.OrderedDict(
        whole=tensor("FloatStorage", "0", 24, 0, (4, 6), (6, 1)),
        transposed=tensor("FloatStorage", "0", 24, 0, (6, 4), (1, 6)),
        part=tensor("FloatStorage", "0", 24, 7, (2, 2), (12, 3)),
        repeated=tensor("FloatStorage", "0", 24, 3, (3, 2), (0, 1)),
        half=tensor("HalfStorage", "1", 6, 2, (3,), (1,), rebuild="_rebuild_tensor"),
        parameter=Call(
            Named("torch._utils", "_rebuild_parameter"),
            tensor("BFloat16Storage", "2", 4, 0, (2, 2), (2, 1)),
            True,
            collections.OrderedDict(),
        ),
    )
    path = save(tmp_path / "a.pth", state, {"0": values, "1": halves, "2": brains})
    table = values.reshape(4, 6)
    expected = {
        "whole": table,
        "transposed": table.T,
        "part": np.array([[7, 10], [19, 22]], np.float32),
        "repeated": np.array([[3, 4]] * 3, np.float32),
        "half": halves[2:5],
        "parameter": brains.reshape(2, 2),
    }
    assert_same(read_torch_file(path), expected)


def test_other_things_in_the_file_do_nothing(save, tmp_path):
    """What a trainer leaves beside the weights: its arguments, numbers of NumPy, optimizers."""
    numpy_number = Call(Named("numpy.core.multiarray", "scalar"), Named("numpy", "float64"), b"12345678")
    junk = {
        "arguments": argparse.Namespace(rate=1.0),
        "number": numpy_number,
        "attack": Call(Named("os", "system"), "touch " + str(tmp_path / "attacked")),
        "chain": Call(Call(Named("builtins", "getattr"), Named("os", "system")), "touch x"),
        "module": Call(Named("builtins", "eval"), "1 / 0"),
        "unknown dtype": Storage("QInt8Storage", "q", 0) if save is zip_file else None,
    }
    state = {"a": tensor("FloatStorage", "0", 2, 0, (2,), (1,))}
    content = {"trainer": {"gpt_fsdp": state, **junk}, **junk}
    values = np.array([1, 2], np.float32)
    path = save(tmp_path / "a.pth", content, {"0": values})
    tensors = open_tensors(path, "transformer")
    assert tensors.nesting == ("trainer", "gpt_fsdp")
    assert_same(tensors, {"a": values})
    assert not (tmp_path / "attacked").exists()


class _Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    "entry",
    [
        _Attack(),
        Call(Named(os.system.__module__, "system"), "touch attacked"),
        Named("posix", "system"),
        Call(Named("torch._utils", "_rebuild_parameter"), Named("posix", "system")),
    ],
)
def test_code_in_the_place_of_a_tensor_is_refused_by_name(save, entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "evil.pth", {"vae": {"a": entry}}, {})
    with pytest.raises(UserError, match=r"evil\.pth: 'a' asks for posix\.system, which is not a tensor"):
        open_tensors(path, "tokenizer")
    assert not (tmp_path / "attacked").exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD gives state to whatever is on the stack, also to the stand-ins themselves."""
    for module, name in (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch", "FloatStorage"),
        ("collections", "OrderedDict"),
        ("os", "system"),
    ):
        evil = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(N}X\x01\x00\x00\x00aK\x01stb."
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("a/data.pkl", evil)
        with pytest.raises(UserError, match="no dictionary of tensors"):
            open_tensors(tmp_path / "a.pth", "t5")
    state = state_of_all_dtypes()
    assert_file_holds(write_pth(tmp_path / "b.pth", state), state, "t5")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (1,)),
        (2, (2,), (-1,)),
        (0, (2.0,), (1,)),
    ],
)
def test_a_tensor_must_stay_in_its_storage(save, offset, shape, strides, tmp_path):
    state = {"a": tensor("FloatStorage", "0", 4, offset, shape, strides)}
    path = save(tmp_path / "a.pth", state, {"0": np.zeros(4, np.float32)})
    with pytest.raises(UserError, match="'a'"):
        open_tensors(path, "t5")


def test_damaged_files_are_clear_errors(save, tmp_path):
    state = {"a": tensor("FloatStorage", "0", 1000, 0, (1000,), (1,))}
    path = save(tmp_path / "whole.pth", state, {"0": np.zeros(1000, np.float32)})
    whole = path.read_bytes()
    for length in (0, 1, 10, 40, 200, 1000, len(whole) - 100):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pth"):
            open_tensors(tmp_path / "cut.pth", "t5")
    (tmp_path / "other.bin").write_bytes(pickle.dumps(3, protocol=2))
    with pytest.raises(UserError, match=r"other\.bin is no file of torch\.save"):
        open_tensors(tmp_path / "other.bin", "t5")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="git lfs pull"):
        open_tensors(tmp_path / "pointer.pth", "t5")


def test_zip_files_of_other_forms_are_clear_errors(tmp_path):
    state = {"a": tensor("FloatStorage", "0", 100, 0, (100,), (1,))}
    zeros = {"0": np.zeros(100, np.float32)}
    with pytest.raises(UserError, match="compressed"):
        open_tensors(zip_file(tmp_path / "a.pth", state, zeros, zipfile.ZIP_DEFLATED), "t5")
    with pytest.raises(UserError, match="byte order"):
        open_tensors(zip_file(tmp_path / "a.pth", state, zeros, byteorder="big"), "t5")
    with pytest.raises(UserError, match="storage '0' is missing"):
        open_tensors(zip_file(tmp_path / "a.pth", state, {}), "t5")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"none of torch\.save"):
        open_tensors(tmp_path / "a.pth", "t5")


def test_a_state_dict_is_found_where_its_kind_keeps_it(tmp_path):
    state = {"a": np.ones(3, np.float32)}
    for kind, nesting in [
        ("transformer", ()),
        ("transformer", ("trainer", "gpt_fsdp")),
        ("transformer", ("trainer", "gpt_wo_ddp")),
        ("tokenizer", ("vae",)),
        ("tokenizer", ("ema",)),
        ("tokenizer", ()),
    ]:
        tensors = open_tensors(write_pth(tmp_path / "a.pth", state, nesting), kind)
        assert tensors.nesting == nesting
        assert_same(tensors, state)
    with pytest.raises(UserError, match="'model' is a dictionary of 'a', which is not a tensor"):
        open_tensors(write_pth(tmp_path / "a.pth", state, ("model",)), "tokenizer")
    wrapped = open_tensors(write_pth(tmp_path / "a.pth", {"module.a": state["a"]}), "tokenizer")
    assert wrapped.prefix == "module." and list(wrapped) == ["a"]


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_shards_with_an_index(tmp_path, suffix):
    state = {f"t{i}": np.full((2, i + 1), i, np.float16) for i in range(10)}
    save = save_safetensors if suffix == ".safetensors" else lambda part, path: write_pth(path, part)
    folder = write_shards(tmp_path / "shards", state, save, suffix)
    index = folder / f"model{suffix}.index.json"
    assert_file_holds(folder, state, "transformer", ordered=False)
    assert_file_holds(index, state, "transformer", ordered=False)
    listed = json.loads(index.read_text())["weight_map"]
    shard = listed["t3"]

    def refused(weight_map, message):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=message):
            open_tensors(folder, "transformer")

    refused(listed | {"more": shard}, "'more' in .*, which does not have it")
    refused({name: file for name, file in listed.items() if name != "t3"}, "does not list the tensor 't3'")
    refused(listed | {"t3": listed["t4"]}, "'t3' in .*, which does not have it")
    refused(listed | {"t3": f"../{shard}"}, "missing")
    refused([1], "no index of shards")
    (folder / shard).rename(folder / "elsewhere")
    refused(listed, f"lists the shard '{shard}', which is missing")


def test_folders_without_an_index(tmp_path):
    state = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    with pytest.raises(UserError, match="no weights"):
        open_tensors(tmp_path, "tokenizer")
    write_pth(tmp_path / "one.pth", {"a": state["a"]})
    assert_file_holds(tmp_path, {"a": state["a"]}, "tokenizer")
    write_pth(tmp_path / "two.pth", {"b": state["b"]})
    assert_file_holds(tmp_path, state, "tokenizer")
    write_pth(tmp_path / "three.pth", state)
    with pytest.raises(UserError, match=r"'a' is given twice, in one\.pth and in three\.pth"):
        open_tensors(tmp_path, "tokenizer")
    save_safetensors(
        state, tmp_path / "model.safetensors"
    )  # the same weights once more, in the better format
    assert_file_holds(tmp_path, state, "tokenizer", ordered=False)


def test_other_paths_are_clear_errors(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        open_tensors(tmp_path / "none.pth", "tokenizer")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="unknown suffix"):
        open_tensors(tmp_path / "a.onnx", "tokenizer")
    save_safetensors({"a": np.zeros(100, np.float32)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for length in (0, 7, 20, len(whole) - 1):
        (tmp_path / "a.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"no whole \.safetensors file"):
            open_tensors(tmp_path / "a.safetensors", "tokenizer")
