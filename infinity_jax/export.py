"""`infinity-jax export`: a training workdir as one small folder to share, with averaged weights."""

from pathlib import Path

from absl import logging

from infinity_jax import pretrained


def main(checkpoint: str, out: str | Path, dtype: str = "float16") -> None:
    """Writes `out` in the form that `--checkpoint`, `config.tokenizer` and `train.init_from` read.

    Args:
      checkpoint: a workdir of `train` (the whole system) or of `train-tokenizer` (a tokenizer alone).
      out: the folder to write; files there of the same names are replaced.
      dtype: of the weights on disk: "float32", "bfloat16" or "float16".
    """
    folder, out = pretrained.resolve(checkpoint), Path(out)
    if pretrained.has_transformer(folder):
        pretrained.save_model(out, pretrained.load_model(folder), dtype)
    else:
        pretrained.save_tokenizer(out, pretrained.load_tokenizer(folder), dtype)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    logging.info("wrote %s, %.1f MB", out, size / 1e6)
