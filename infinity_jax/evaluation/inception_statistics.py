"""Statistics of a folder's pictures in the features of Inception-v3, kept on disk for real pictures."""

import functools
import hashlib
import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from infinity_jax.data import pictures
from infinity_jax.errors import UserError
from infinity_jax.files import caches, paths, reading
from infinity_jax.files.pictures import read as read_picture
from infinity_jax.files.progress import counted
from infinity_jax.metrics import fid
from infinity_jax.metrics.inception import FEATURES, SIDE, inception_features
from infinity_jax.tokenizer import resize

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_MOST_PACKED = 20  # numbers of pictures can hardly be packed
_CHUNK, _READERS, _FORMAT = 64, 4, "1"


@dataclass(frozen=True)
class Network:
    """The weights: their file, and the variables of `InceptionV3`."""

    file: str | Path
    variables: dict[str, Any]

    @functools.cached_property
    def sha256(self) -> str:
        """Hashes the file, in hexadecimal."""
        with open(self.file, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Statistics:
    """A set of pictures, as FID and KID see it.

    Attributes:
      mean, covariance: float64 [D] and [D,D] of the features.
      features: float32 [N,D], or None where only the others are known.
      pictures: N, or None where it is not known.
    """

    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]
    features: Float[np.ndarray, "N D"] | None = None
    pictures: int | None = None


def picture_files(folder: Path) -> list[Path]:
    """Lists all pictures in a folder and below it, sorted; names that begin with a dot are left out."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; name one with pictures")
    files = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
    return sorted(file for file in files if file.is_file())


def compute(files: Sequence[Path], network: Network) -> Statistics:
    """Computes the statistics of pictures, and shows the progress. UserError names a file that is no whole picture."""
    parts = []
    with ThreadPoolExecutor(_READERS) as threads:
        chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
        for chunk in counted(chunks, "comparing", len(files), "pictures", len):
            parts.append(inception_features(network.variables, np.stack(list(threads.map(_resized, chunk)))))
    features = np.concatenate(parts)
    return Statistics(*fid.mean_and_covariance(features), features, len(files))


def cached(folder: Path, files: Sequence[Path], network: Network) -> Statistics:
    """Returns `compute`, from an .npz in `paths.data_dir()` where the same files were seen before, else kept there."""
    digest = hashlib.sha256(f"{_FORMAT} {network.sha256} {FEATURES}".encode())
    for file in files:
        about = file.stat()
        digest.update(f"\n{file.relative_to(folder)} {about.st_size} {about.st_mtime_ns}".encode())
    path = paths.data_dir() / "features" / f"inception-{digest.hexdigest()[:24]}.npz"
    if path.exists():
        try:
            stored = read(path, network)
        except UserError as error:
            logging.warning("%s; recomputing it", error)
        else:
            logging.info("statistics of %d pictures: read from %s", len(files), path)
            return stored
    statistics = compute(files, network)
    _write(path, statistics, network)
    logging.info("statistics of %d pictures: kept in %s", len(files), path)
    return statistics


def _write(path: Path, statistics: Statistics, network: Network) -> None:
    """Writes an .npz; mu and sigma have the names that pytorch-fid reads (mseitzer/pytorch-fid, fid_score.py)."""
    arrays: dict[str, Any] = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "features": statistics.features,
        "inception": np.array(network.sha256),
    }
    size = sum(array.nbytes for array in arrays.values())
    with caches.writing(path, size) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read(path: Path, network: Network) -> Statistics:
    """Reads an .npz of `cached` or of pytorch-fid; UserError if it is missing, damaged or of other weights."""
    try:
        with reading.opened(path) as stream:
            names = _array_names(stream)
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in names}
        mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
        features = arrays.get("features")
        sizes = mean.shape == (FEATURES,) and covariance.shape == (FEATURES, FEATURES)
        if not sizes or (features is not None and features.shape[1:] != (FEATURES,)):
            raise ValueError(
                f"mu is {mean.shape}, sigma {covariance.shape}; of Inception they have {FEATURES}"
            )
    except Exception as error:  # a damaged zip file raises many types
        raise UserError(
            f"cannot read the statistics {path}: {error}; name a folder of pictures, or an .npz with mu and sigma"
        ) from error
    if "inception" in arrays and str(arrays["inception"]) != network.sha256:
        raise UserError(
            f"{path} was made with other weights than {network.file}; name the folder of its pictures"
        )
    return Statistics(mean, covariance, features, None if features is None else len(features))


def _array_names(stream: io.BufferedReader) -> list[str]:
    """Lists what is of use in an .npz; ValueError where one of them would be unpacked to a multiple of any numbers."""
    with zipfile.ZipFile(stream) as archive:
        sizes = {info.filename: (info.file_size, info.compress_size) for info in archive.infolist()}
    stream.seek(0)
    names = [name for name in ("mu", "sigma", "features", "inception") if f"{name}.npy" in sizes]
    for name in names:
        size, packed = sizes[f"{name}.npy"]
        if size > _MOST_PACKED * packed + (1 << 26):
            raise ValueError(f"{name} has {packed} bytes that would be unpacked to {size}")
    return names


def _resized(file: Path) -> Float[np.ndarray, "299 299 3"]:
    """Reads a picture 0..255 as the network wants it; here, as pictures of many sizes would be compiled for each."""
    try:
        image = np.asarray(pictures.decode_rgb(read_picture(file)), np.float32)
    except pictures.BrokenPicture as error:
        raise UserError(f"{file}: {error.kind} ({error.detail}); draw or copy it again") from error
    rows, columns = (resize.bilinear_matrix(n, SIDE) for n in image.shape[:2])
    wide = np.einsum("hH,HWc->hWc", rows, image, optimize=True)
    return np.einsum("wW,hWc->hwc", columns, wide, optimize=True)
