"""The five sizes of Table 6 on TPU v5p-128 (64 chips of 95 GiB), as configs/t2i.py with a mesh that fits.

    infinity-jax train --config configs/pods/v5p_128.py:2.2b,0.06M --coordinator auto --platform tpu \\
        --config.tokenizer=DIR --config.text.path=DIR/text_encoder --config.data.source=folder:PATH --workdir RUN

The argument is a size and a stage, as in configs/t2i.py. `python experiments/pods.py v5p_128` compiles all of them.
"""

from pathlib import Path

from infinity_jax import config_files

TOPOLOGY = "v5p:4x4x4"
# Stage -> size -> (mesh, microbatches, remat).
MESHES = {
    "0.06M": {
        "125m": ("fsdp=64", 2, "none"),
        "361m": ("fsdp=64", 1, "block"),
        "940m": ("fsdp=64", 1, "block"),
        "2.2b": ("fsdp=64", 1, "block"),
        "4.7b": ("fsdp=64", 1, "block"),
    },
    "0.25M": {
        "125m": ("fsdp=64", 1, "block"),
        "361m": ("fsdp=64", 1, "block"),
        "940m": ("fsdp=64", 2, "block"),
        "2.2b": ("fsdp=64", 4, "block"),
        "4.7b": ("fsdp=64", 4, "block"),
    },
    "1M": {
        "125m": ("fsdp=64", 4, "block"),
        "361m": ("fsdp=64", 4, "block"),
        "940m": ("fsdp=64", 8, "block"),
        "2.2b": ("fsdp=64", 8, "block"),
        "4.7b": ("fsdp=64", 16, "block"),
    },
}


def get_config(argument: str = "2.2b,0.06M"):
    """The config of the size and stage `argument`."""
    return config_files.load_module(Path(__file__).with_name("common.py")).load_for_pod(MESHES, argument)
