"""The paper's three stages, 256x256, 512x512 and 1024x1024, from one config: configs/t2i.py stage by stage.

    infinity-jax train --config configs/t2i_progressive.py:2b --config.tokenizer=DIR \
        --config.text.path=DIR/text_encoder --config.data.source=records:shards --workdir runs/2b

Each stage has a folder of its own in the workdir and starts from the averaged weights of the one before, with a new
optimiser and its own warm-up. Steps, batch and rate are those of configs/t2i.py; any key may be changed for one stage,
like `--config.stages.px1024.data.source=records:large@3,records:synthetic@1`, or without `stages` for all.

The argument is a size as in configs/t2i.py, or a size and a pod: "2.2b,v5e_256" has the mesh of configs/pods/v5e_256.py
for each stage. `:debug` runs two steps of a tiny model on the emoji pictures in each of three small stages.
"""

from pathlib import Path

from ml_collections import ConfigDict

from infinity_jax import config_files

STAGES = {"px256": "0.06M", "px512": "0.25M", "px1024": "1M"}
HERE = Path(__file__).parent


def get_config(argument: str = "2b") -> ConfigDict:
    """The config of the size, or the size and the pod, `argument`."""
    size, _, pod = argument.partition(",")
    file = HERE / "pods" / f"{pod}.py" if pod else HERE / "t2i.py"
    if size == "debug":
        # All at the smallest budget: what is tried out is the way through the stages.
        return config_files.with_stages(config_files.load(f"{file}:debug"), {name: {} for name in STAGES})
    stages = {name: config_files.load(f"{file}:{size},{budget}") for name, budget in STAGES.items()}
    return config_files.with_stages(stages["px256"], stages)
