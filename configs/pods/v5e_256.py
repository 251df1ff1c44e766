"""The five sizes of Table 6 on TPU v5e-256 (16x16 chips of 16 GiB), as configs/t2i.py with a mesh that fits.

    infinity-jax train --config configs/pods/v5e_256.py:2.2b,0.06M --coordinator auto --platform tpu \\
        --config.tokenizer=DIR --config.text.path=DIR/text_encoder --config.data.source=folder:PATH --workdir RUN

The argument is a size and a stage, as in configs/t2i.py. `python experiments/pods.py v5e_256` compiles all of them.
"""

from pathlib import Path

from infinity_jax import config_files

TOPOLOGY = "v5e:16x16"
# Stage -> size -> (mesh, microbatches, remat).
MESHES = {
    "0.06M": {
        "125m": ("fsdp=256", 4, "none"),
        "361m": ("fsdp=256", 1, "block"),
        "940m": ("fsdp=256", 1, "block"),
        "2.2b": ("fsdp=256", 1, "block"),
        "4.7b": ("fsdp=256", 1, "block"),
    },
    "0.25M": {
        "125m": ("fsdp=256", 1, "block"),
        "361m": ("fsdp=256", 2, "block"),
        "940m": ("fsdp=256", 4, "block"),
        "2.2b": ("fsdp=256", 4, "block"),
        "4.7b": ("fsdp=256", 8, "block"),
    },
    "1M": {
        "125m": ("fsdp=256", 4, "block"),
        "361m": ("fsdp=256", 8, "block"),
        "940m": ("fsdp=256", 8, "block"),
        "2.2b": ("fsdp=128,sequence=2", 16, "block"),
        "4.7b": ("fsdp=128,sequence=2", 16, "block"),
    },
}


def get_config(argument: str = "2.2b,0.06M"):
    """The config of the size and stage `argument`."""
    return config_files.load_module(Path(__file__).with_name("common.py")).load_for_pod(MESHES, argument)
