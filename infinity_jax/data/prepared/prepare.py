"""`infinity-jax prepare`: makes a data set ready and says what is in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infinity_jax import config_files
from infinity_jax.data.originals import by_name
from infinity_jax.data.prepared.config import DataConfig, parse_sets
from infinity_jax.data.records import SPLITS
from infinity_jax.data.sources import open_source
from infinity_jax.errors import UserError
from infinity_jax.files.paths import check_not_read, data_dir


def main(source: str, out: str | None = None, workers: int = 1) -> None:
    """Prepares a data set and prints the sizes of what is in it.

    Args:
      source: without `out` a name that `open_source` knows, else one of `data.originals.by_name`.
      out: a folder for shards by aspect ratio with an index, see `data.preparation`.
      workers: processes that write them.
    Raises:
      UserError: an unknown name, nothing usable, or a folder that cannot be written.
    """
    if out is None:
        kind = source.partition(":")[0]
        if kind in by_name.ONLY_SHARDS:
            raise UserError(f"{kind}: needs --out DIR, a folder to write shards into; got --source {source}")
        sizes = {split: len(open_source(source, split)) for split in SPLITS}
        counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
        print(f"{source}: {counts} pictures, in {data_dir()}")
        return
    check_not_read(out, "--out", source.partition(":")[2])
    from infinity_jax.data.prepared import writer

    print(_summary(writer.prepare(source, Path(out), workers), out))


def features(config_path: str, overrides: Sequence[str], source: str, out: str | None) -> None:
    """Writes the features of prepared shards into `out`, see `data.feature_preparation`.

    Args:
      config_path, overrides: a training config, of which tokenizer, text and data.scales are read.
      source: "records:DIR".
    Raises:
      UserError: no `out`, a config or a source that cannot be read, a folder that cannot be written.
    """
    if out is None:
        raise UserError("--features needs --out, a folder to write them into")
    check_not_read(out, "--out", *(folder for folder, _ in parse_sets(source)))
    config = config_files.load(config_path, overrides)
    from infinity_jax.data.prepared import feature_writer

    data = DataConfig(source, config.data.scales)
    count = feature_writer.prepare_features(data, config.tokenizer, config.text.to_dict(), Path(out))
    print(f"features of {count} pictures in {out}")


def _summary(report: dict[str, Any], out: str) -> str:
    ratios = ", ".join(f"{ratio} {count}" for ratio, count in report["by_ratio"].items())
    lines = [f"{report['pictures']} pictures in {out}: {ratios or 'none'}"]
    if skipped := report["skipped"]["count"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report["skipped"]["by_reason"].items())
        lines.append(f"{skipped} rows skipped: {reasons}; each is named in {out}/report.json")
    if unread := report["columns"]["unread"]:
        lines.append(f"columns that were not read: {', '.join(unread)}")
    return "\n".join(lines)
