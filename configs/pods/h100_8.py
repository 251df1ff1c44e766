"""The five sizes of Table 6 on one machine with 8 x H100 (80 GB), as configs/t2i.py with a mesh that fits by formula.

    infinity-jax train --config configs/pods/h100_8.py:2.2b,0.06M --platform gpu \\
        --config.tokenizer=DIR --config.text.path=DIR/text_encoder --config.data.source=folder:PATH --workdir RUN

The argument is a size and a stage, as in configs/t2i.py. `python experiments/pods.py h100_8` prints the memory by
formula (`infinity_jax/tools/planning/memory.py`): nothing is compiled.
"""

from pathlib import Path

from infinity_jax import config_files

CHIP, DEVICES = "h100", 8
# Stage -> size -> (mesh, microbatches, remat).
MESHES = {
    "0.06M": {
        "125m": ("fsdp=8", 8, "block"),
        "361m": ("fsdp=8", 8, "block"),
        "940m": ("fsdp=8", 8, "block"),
        "2.2b": ("fsdp=8", 8, "block"),
        "4.7b": ("fsdp=8", 16, "block"),
    },
    "0.25M": {
        "125m": ("fsdp=8", 8, "block"),
        "361m": ("fsdp=8", 16, "block"),
        "940m": ("fsdp=8", 32, "block"),
        "2.2b": ("fsdp=8", 32, "block"),
        "4.7b": ("fsdp=8", 64, "block"),
    },
    "1M": {
        "125m": ("fsdp=8", 32, "block"),
        "361m": ("fsdp=8", 64, "block"),
        "940m": ("fsdp=8", 64, "block"),
        "2.2b": ("fsdp=8", 128, "block"),
        "4.7b": ("fsdp=8", 256, "block"),
    },
}


def get_config(argument: str = "2.2b,0.06M"):
    """The config of the size and stage `argument`."""
    return config_files.load_module(Path(__file__).with_name("common.py")).load_for_pod(MESHES, argument)
