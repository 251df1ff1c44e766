"""Files as torch.save writes them, also hostile ones, made without torch."""

import collections
import io
import pickle
import struct
import zipfile
from typing import Any

from infinity_jax.files.torch_reader import LEGACY_MAGIC


class Named:
    """Pickles as a global of torch, which is not installed here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    def __init__(self, kind, key, length):
        self.pid = ("storage", Named("torch", kind), key, "cpu", length)


class Call:
    """Pickles as a call of something that need not exist."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


_Pickler: Any = pickle._Pickler  # the one in Python, whose `save` can be changed


class _TorchPickler(_Pickler):
    """Writes pickles as torch would; `view` is the sixth part of a storage in the legacy layout."""

    view = ()

    def persistent_id(self, obj):
        return (*obj.pid, *self.view) if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class _LegacyPickler(_TorchPickler):
    view = (None,)


def tensor(kind, key, length, offset, shape, strides, rebuild="_rebuild_tensor_v2"):
    storage = Storage(kind, key, length)
    arguments = (storage, offset, shape, strides, False, collections.OrderedDict())
    return Call(Named("torch._utils", rebuild), *arguments)


def pickled(obj, pickler=_TorchPickler):
    content = io.BytesIO()
    pickler(content, protocol=2).dump(obj)
    return content.getvalue()


def zip_file(path, obj, storages, compression=zipfile.ZIP_STORED, byteorder="little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("some name/data.pkl", pickled(obj))
        archive.writestr("some name/byteorder", byteorder)
        for key, values in storages.items():
            archive.writestr(f"some name/data/{key}", values.tobytes())
    return path


def legacy_file(path, obj, storages):
    heads = [LEGACY_MAGIC, 1001, {"little_endian": True}, obj, list(storages)]
    content = b"".join(pickled(head, _LegacyPickler) for head in heads)
    content += b"".join(struct.pack("<q", v.size) + v.tobytes() for v in storages.values())
    path.write_bytes(content)
    return path
