"""Pickles of arrays: read as they are, and nothing in them runs."""

import pickle

import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.files.array_pickle import read_arrays


class Harmful:
    def __reduce__(self):
        return eval, ("1 / 0",)


def written(path, value, protocol=3):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_nested_arrays_come_back(tmp_path, protocol):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "c": np.zeros(0),
        "d": np.array(3, np.int64),
    }
    arrays["e"] = np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4))
    if protocol == 2:  # bytes are made by a call there, which is not taken for an array's
        with pytest.raises(UserError, match="not a set of arrays"):
            read_arrays(written(tmp_path / "a", {"a": arrays}, protocol), "a set of arrays")
        return
    found = read_arrays(written(tmp_path / "a", {"a": arrays}, protocol), "a set of arrays")
    assert found.keys() == {f"a/{name}" for name in arrays}
    for name, array in arrays.items():
        assert found[f"a/{name}"].dtype == array.dtype
        np.testing.assert_array_equal(found[f"a/{name}"], array)


@pytest.mark.parametrize(
    "value",
    [
        {"a": Harmful()},
        Harmful(),
        {"a": "text"},
        [np.zeros(2)],
        {"a": np.array([Harmful()], object)},
        {"a": np.zeros(2, ">f4")},
        {"a": np.zeros(2, complex)},
        {"a": np.zeros(2, "M8[s]")},
    ],
)
def test_anything_but_arrays_of_numbers_is_refused_and_not_run(tmp_path, value):
    with pytest.raises(UserError, match=r"is not a set of arrays: .*fetch it again"):
        read_arrays(written(tmp_path / "a", value), "a set of arrays")


def test_damaged_and_missing_files_are_named(tmp_path):
    path = written(tmp_path / "a", {"a": np.zeros(100, np.float32)})
    content = path.read_bytes()
    for broken in (content[:-50], content.replace(b"Kd", b"Ke"), b"", b"PK"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="is not a set of arrays"):
            read_arrays(path, "a set of arrays")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_arrays(tmp_path / "b", "a set of arrays")
