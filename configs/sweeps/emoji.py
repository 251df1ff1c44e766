"""Five sizes from 0.3M to 7M parameters x five lengths, on the bundled pictures: 25 cells.

    infinity-jax sweep --config configs/sweeps/emoji.py --dry-run
    infinity-jax sweep --config configs/sweeps/emoji.py --workdir runs/sweep
    infinity-jax scaling --table runs/sweep/runs.csv --out runs/sweep/report

The same command again goes on; `--cell N` runs one cell. What it gave here, 21 cells with 47 minutes of training on
one core, is in results/emoji/. `:debug` is four cells of one or two steps.

The rate falls as 1 / width, which keeps small models from learning too slowly to be compared; all else is the same.
"""

from ml_collections import ConfigDict

from infinity_jax.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    """The grid; `argument` "debug" makes it tiny."""
    if argument not in ("", "debug"):
        raise UserError(f"configs/sweeps/emoji.py has no {argument!r}; known: debug, or nothing")
    config = ConfigDict(sort_keys=False)
    # What a run of `infinity-jax train` has that is not changed below.
    config.base = "emoji"
    # For all cells. No moving average: a short run's would still remember the start.
    config.changes = (
        "optim.warmup_steps=20 optim.ema_decay=0.0 train.log_every=10 train.evaluate_every=50 "
        "train.checkpoint_every=200 train.keep_checkpoints=1 train.sample_every=0"
    )
    # Every combination of labels is a cell; the last axis runs fastest.
    config.axes = ConfigDict(
        dict(
            length=(
                "100: train.steps=100",
                "200: train.steps=200",
                "400: train.steps=400",
                "800: train.steps=800",
                "1600: train.steps=1600",
            ),
            size=(
                "270k: model.layers=2 model.width=64 model.heads=2 optim.learning_rate=4e-3",
                "750k: model.layers=3 model.width=96 model.heads=2 optim.learning_rate=2.7e-3",
                "1.4M: model.layers=4 model.width=128 model.heads=2 optim.learning_rate=2e-3",
                "3.6M: model.layers=5 model.width=192 model.heads=3 optim.learning_rate=1.3e-3",
                "7.3M: model.layers=6 model.width=256 model.heads=4 optim.learning_rate=1e-3",
            ),
            seed=("0: train.seed=0",),
        ),
        sort_keys=False,
    )
    # Pictures drawn after each cell with its config.sample, for EffNet-KID and retrieval; 0 draws none.
    config.pictures = 512
    # Where it runs, for the estimates: a chip of infinity_jax/runtime/chips.py ("" is this machine), how many,
    # and the share of their peak rate that training reaches.
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    if argument == "debug":
        config.changes += " train.batch_size=4"
        config.axes.length = ("1: train.steps=1", "2: train.steps=2")
        config.axes.size = (
            "200k: model.layers=1 model.width=64 model.heads=2",
            "270k: model.layers=2 model.width=64 model.heads=2",
        )
        config.pictures = 0
    return config
