"""What a new run of a transformer finds out about its tokenizer before it trains: whether it suits the pictures."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from infinity_jax.checkpoints.opened import BUNDLED, open_checkpoint
from infinity_jax.checkpoints.pretrained import load_tokenizer
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.config import VECTOR
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.reconstruction import ENOUGH_DB, reconstruct_some
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule
from infinity_jax.training.run_config import RunConfig

# A share of equal bits; half of them agree by chance.
FOREIGN = 0.65


def check_tokenizer(run: RunConfig, tokenizer: TrainedTokenizer, workdir: Path) -> None:
    """Logs how well the tokenizer gives back some of the run's pictures; warns, with the remedy, if that is poor.

    Also warns where `train.init_from` was trained on the bits of another tokenizer, with the share of equal bits.
    Nothing is looked at where the records hold features only, nor what is known: the bundled tokenizer on its own data.
    """
    if jax.process_index() != 0 or (run.records is not None and run.records[0].features):
        return
    other = _tokenizer_before(run.train.init_from, tokenizer)
    if (run.tokenizer, run.data.source) == (BUNDLED, "emoji_captions") and other is None:
        return
    through_bits = ThroughBits(tokenizer)
    found = reconstruct_some(run.source, through_bits, run.data.fit)
    psnr, count = found.mean_psnr, len(found.places)
    logging.info("the tokenizer gives %d of the pictures back with a PSNR of %.1f dB", count, psnr)
    if psnr < ENOUGH_DB:
        logging.warning(
            "%.1f dB is below %.0f: no picture that is drawn can be better than that. %s",
            psnr,
            ENOUGH_DB,
            remedy(run.data, run.tokenizer, tokenizer, workdir),
        )
    if other is not None:
        _compare_bits(run, through_bits, ThroughBits(other), found.images)


def remedy(data: DataConfig, path: str, tokenizer: TrainedTokenizer, workdir: Path) -> str:
    """Says how to train a tokenizer further on these pictures, and what to do then."""
    ours, trained = load_tokenizer(BUNDLED).config, shlex.quote(f"{workdir}_tokenizer")
    changes = {"data.source": data.source} | _differences(
        "data", data, DataConfig(data.source, "64px"), "fit", "scales"
    )
    changes |= _differences(
        "model", tokenizer.config, ours, *(field.name for field in dataclasses.fields(ours))
    )
    n_scales = make_schedule(tokenizer.scales).n_scales
    if tokenizer.config.quantizer == VECTOR or n_scales == 1:  # no scale can be left out
        changes |= {"loss.scales": "short", "loss.short_scales": str(max(2, n_scales))}
    if path != BUNDLED:
        changes["train.init_from"] = path
    options = " ".join(f"--config.{key}={shlex.quote(value)}" for key, value in changes.items())
    return (
        "Train the tokenizer on your pictures first: infinity-jax train-tokenizer --config finetune:tokenizer "
        f"{options} --workdir {trained}; then give this command again with --config.tokenizer={trained}"
    )


def _differences(section: str, values: Any, usual: Any, *names: str) -> dict[str, str]:
    """Names the keys of a section whose values differ from the usual ones, as the command line has them."""
    pairs = ((name, getattr(values, name)) for name in names if getattr(values, name) != getattr(usual, name))
    return {
        f"{section}.{name}": ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in pairs
    }


def _tokenizer_before(init_from: str, tokenizer: TrainedTokenizer) -> TrainedTokenizer | None:
    """Loads the tokenizer on whose bits `train.init_from` was trained, if that is another one."""
    if not init_from:
        return None
    try:
        other = open_checkpoint(init_from).tokenizer()
    except UserError:  # a folder that holds none, as of converted weights
        return None
    return None if other.fingerprint == tokenizer.fingerprint else other


def _compare_bits(run: RunConfig, now: ThroughBits, before: ThroughBits, images: np.ndarray) -> None:
    agreement = "they cannot be compared"
    if now.schedule == before.schedule and now.bits == before.bits:
        share = np.mean(
            [np.mean(a == b) for a, b in zip(_bits(now, images), _bits(before, images), strict=True)]
        )
        agreement = f"{share:.0%} of the bits of {len(images)} pictures are the same, where 50% is chance"
        if share >= FOREIGN:
            agreement += "; the run has to learn the others"
        else:
            agreement += (
                "; that is hardly better than a start from nothing: use the tokenizer that it was trained with, one "
                "trained further from that, or leave --config.train.init_from out"
            )
    logging.warning(
        "train.init_from %s was trained on the bits of another tokenizer than %s: %s",
        run.train.init_from,
        run.tokenizer,
        agreement,
    )


def _bits(through_bits: ThroughBits, images: np.ndarray) -> list[np.ndarray]:
    """Returns the bits of pictures, one array [N,h,w,d] for each scale."""
    scales = zip(*(bits for _, bits in through_bits.batches(images)), strict=True)
    return [np.concatenate(parts) for parts in scales]
