"""Published weights as named tensors, from one file or a folder of shards, of torch or of safetensors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infinity_jax.errors import UserError, shortened
from infinity_jax.files import reading
from infinity_jax.files.lazy_tensor import SAFETENSORS_DTYPES, LazyTensor
from infinity_jax.files.torch_reader import TorchFile, follow

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SAFETENSORS = ".safetensors"
_INDEX = ".index.json"
# The header of a model with 100,000 tensors has 10 MB.
_MOST_HEADER = 1 << 24
# Where torch files keep the state dict of a kind, the first that exists; after these, the file's own keys.
_OF_TRANSFORMERS = (
    ("trainer", "gpt_fsdp"),
    ("trainer", "gpt_wo_ddp"),
    ("trainer", "gpt_ema_fsdp"),
    ("trainer", "var_wo_ddp"),
)
_NESTINGS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "transformer": _OF_TRANSFORMERS,
    "upscaler": _OF_TRANSFORMERS,  # beside which it lies
    # BSQ-ViT's averaged parameters first, as its release loads them.
    "tokenizer": (("vae",), ("ema",), ("trainer", "vae_local"), ("ema_state_dict",), ("state_dict",)),
}
_PREFIX = "module."


class TensorFiles(dict[str, LazyTensor]):
    """Tensors by name, in the order in which they lie in their files.

    Attributes:
      nesting: the keys under which a single torch file keeps them; None where there are no such keys.
      prefix: "module.", once or several times, if that stood before every name, else ""; the names here are without it.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], nesting: tuple[str, ...] | None = None) -> None:
        self.nesting = nesting
        self.prefix = ""
        while tensors and all(name.startswith(self.prefix + _PREFIX) for name in tensors):
            self.prefix += _PREFIX
        super().__init__({name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()})

    def only(self, chosen: Callable[[str], bool]) -> "TensorFiles":
        """Picks some of the tensors by name."""
        picked = TensorFiles({name: tensor for name, tensor in self.items() if chosen(name)}, self.nesting)
        picked.prefix = self.prefix
        return picked


def open_tensors(path: Path, kind: str) -> TensorFiles:
    """Opens published weights as named tensors; nothing but names, shapes and places is read yet.

    Args:
      path: a .pth, .pt, .bin or .safetensors file; an index (*.index.json); or a folder with an index and the shards
        that it lists, or with weight files alone.
      kind: "transformer", "tokenizer", "upscaler" or "t5": says where in a torch file to look.
    Raises:
      UserError: a file is missing, damaged or of another format, a tensor is given twice, or index and shards differ.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, kind)
    if not path.is_file():
        raise UserError(f"no file or folder {path}; give the published weights")
    if path.name.endswith(_INDEX):
        return _open_index(path, kind)
    return _open_file(path, kind)


def _open_file(path: Path, kind: str) -> TensorFiles:
    if path.suffix == SAFETENSORS:
        return TensorFiles(_open_safetensors(path))
    if path.suffix not in TORCH_SUFFIXES:
        known = ", ".join((*TORCH_SUFFIXES, SAFETENSORS))
        raise UserError(f"{path} has an unknown suffix; files of weights end in {known}")
    file = TorchFile(path)
    nestings = (n for n in _NESTINGS.get(kind, ()) if isinstance(follow(file.content, n), dict))
    nesting = next(nestings, ())
    return TensorFiles(file.tensors(nesting), nesting)


def _open_folder(folder: Path, kind: str) -> TensorFiles:
    """Opens a folder; where it has the same weights in both formats, the safetensors are taken."""
    for suffixes in ((SAFETENSORS,), TORCH_SUFFIXES):
        indices = sorted(f for s in suffixes for f in folder.glob(f"*{s}{_INDEX}"))
        if len(indices) > 1:
            raise UserError(f"{folder} has several indices: {', '.join(f.name for f in indices)}; give one")
        if indices:
            return _open_index(indices[0], kind)
        files = sorted(f for s in suffixes for f in folder.glob(f"*{s}"))
        if len(files) == 1:
            return _open_file(files[0], kind)
        if files:
            return TensorFiles(_together([(f, _open_file(f, kind)) for f in files]))
    raise UserError(f"{folder} has no weights: no {', '.join(TORCH_SUFFIXES)} or {SAFETENSORS} file")


def _open_index(index: Path, kind: str) -> TensorFiles:
    """Opens the shards that an index lists, each with just the tensors that it is listed for."""
    shard_of = _weight_map(index)
    shards = []
    for name in sorted(set(shard_of.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise UserError(f"{index} lists the shard {name!r}, which is missing; download it as well")
        shards.append((shard, _open_file(shard, kind)))
    tensors = _together(shards)
    for name, shard in shard_of.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise UserError(f"{index} lists the tensor {name!r} in {shard}, which does not have it")
    if unlisted := [name for name in tensors if name not in shard_of]:
        raise UserError(
            f"{index} does not list the tensor {unlisted[0]!r} of {tensors[unlisted[0]].path.name}; "
            "is it the index of other shards?"
        )
    return TensorFiles(tensors)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = reading.read_json(index)["weight_map"]
        return {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is no index of shards with a weight_map ({shortened(str(error), 200, quoted=False)}); "
            "download it again"
        ) from error


def _together(files: Sequence[tuple[Path, TensorFiles]]) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for path, file in files:
        for name in file:
            if file.prefix + name in tensors:
                other = tensors[file.prefix + name].path.name
                raise UserError(
                    f"the tensor {name!r} is given twice, in {other} and in {path.name}; "
                    "if the folder holds several models, give one file"
                )
            tensors[file.prefix + name] = file[name]
    return tensors


def check_safetensors(path: Path) -> tuple[dict[str, Any], int]:
    """Checks header and length of a .safetensors file, so that loading it takes no more memory than its values.

    Returns:
      the header's entries, by name, and the byte at which the values begin.
    Raises:
      UserError: the file is damaged, has values of a dtype that is not read here, or a header of more than
        `_MOST_HEADER` bytes (the package takes 100 MB, and a gigabyte of memory to read them).
    """
    with reading.opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise UserError(
                f"{path} is no whole .safetensors file (its header would have {length} bytes); download it again"
            )
        try:
            header = reading.parse_json(file.read(length))
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            said = shortened(str(error), 200, quoted=False)
            raise UserError(f"{path} is no whole .safetensors file ({said}); download it again") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(
                f"{path}: {shortened(name)} has dtype {entry['dtype']}, which is not read here; "
                f"convert it to one of {', '.join(SAFETENSORS_DTYPES)}"
            )
    return header, 8 + length


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Reads names and places from the header."""
    header, begin = check_safetensors(path)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start = begin + entry["data_offsets"][0]
        tensors[name] = LazyTensor(path, start, SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return tensors
