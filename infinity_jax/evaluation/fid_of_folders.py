"""`infinity-jax fid`: FID and KID between generated and real pictures in folders, as JSON."""

import time
from pathlib import Path
from typing import Any

from absl import logging

from infinity_jax.errors import UserError
from infinity_jax.evaluation import inception_statistics
from infinity_jax.evaluation.inception_statistics import Statistics
from infinity_jax.files import atomic
from infinity_jax.metrics.fid import frechet_distance, warn_of_few
from infinity_jax.metrics.inception import load_inception
from infinity_jax.metrics.kid import FEWEST, kid


def main(
    generated: str | Path, real: str | Path, inception: str | Path, json_file: str | Path
) -> dict[str, Any]:
    """Measures FID and KID and writes the numbers.

    Args:
      generated: a folder of pictures; folders in it are read too.
      real: another one, or an .npz with statistics: those that this command keeps, or pytorch-fid's (then there is no
        KID, which needs the features of single pictures).
      inception: see `load_inception`.
      json_file: gets fid, kid (the unbiased estimate over all pictures) with its standard error, and what they are of.
    Raises:
      UserError: a folder or file is missing, damaged, or has too few pictures.
    """
    started = time.monotonic()
    generated, real, json_file = Path(generated).expanduser(), Path(real).expanduser(), Path(json_file)
    atomic.check_target(json_file, "--json", generated, real, inception)
    weights = inception_statistics.Network(inception, load_inception(inception))
    of_real = _statistics(real, weights)
    of_generated = _of_folder(generated, weights)
    if of_real.pictures is not None:
        warn_of_few(of_generated.pictures or 0, of_real.pictures)
    value, error = None, None
    if of_real.features is not None and of_generated.features is not None:
        value, error = kid(of_generated.features, of_real.features)
    numbers = {
        "fid": frechet_distance(of_generated.mean, of_generated.covariance, of_real.mean, of_real.covariance),
        "kid": value,
        "kid_error": error,
        "generated": {"path": str(generated), "pictures": of_generated.pictures},
        "real": {"path": str(real), "pictures": of_real.pictures},
        "inception": {"path": str(inception), "sha256": weights.sha256},
        "resized": "bilinearly, without antialiasing, as pytorch-fid does",
        "seconds": round(time.monotonic() - started, 1),
    }
    atomic.write_json(json_file, numbers)
    logging.info("FID %.4f, KID %s: wrote %s", numbers["fid"], value, json_file)
    return numbers


def _statistics(real: Path, weights: inception_statistics.Network) -> Statistics:
    if real.is_dir():
        return _of_folder(real, weights, keep=True)
    statistics = inception_statistics.read(real, weights)
    if statistics.features is None:
        logging.warning("%s holds no features of single pictures, so there is no KID", real)
    return statistics


def _of_folder(folder: Path, weights: inception_statistics.Network, keep: bool = False) -> Statistics:
    files = inception_statistics.picture_files(folder)
    if len(files) < FEWEST:
        raise UserError(
            f"{folder} has {len(files)} pictures (PNG, JPEG, WebP); KID takes {FEWEST} or more: check the path"
        )
    if keep:
        return inception_statistics.cached(folder, files, weights)
    return inception_statistics.compute(files, weights)
