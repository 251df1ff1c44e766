"""`infinity-jax prepare`: makes a data set ready and says what is in it."""

from infinity_jax.data.sources import SPLITS, open_source
from infinity_jax.paths import data_dir


def main(source: str) -> None:
    """Prepares the data set named `source` (see `open_source`) and prints the size of its splits.

    Raises:
      UserError: an unknown name, or a folder without a usable picture.
    """
    sizes = {split: len(open_source(source, split)) for split in SPLITS}
    print(
        f"{source}: "
        + ", ".join(f"{split} {size}" for split, size in sizes.items())
        + f" pictures, in {data_dir()}"
    )
