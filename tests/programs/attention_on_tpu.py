"""Train steps and a sampler compiled ahead of time for a TPU topology: `attention_on_tpu.py TOPOLOGY`.

Prints a line of JSON for each case: its name, the kernels of splash attention in it, MiB of temporaries, and compiled
over model FLOP.
"""

import dataclasses
import json
import os
import re
import sys
from typing import Any

from infinity_jax.cli.compile import LIBTPU

if __name__ == "__main__":
    os.environ.update(LIBTPU)

from ml_collections import ConfigDict

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.scales import make_schedule
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.tools.planning.chips import find_target
from infinity_jax.tools.planning.compile_ahead import QUICK
from infinity_jax.tools.planning.lowering import lower_sampler, lower_train_step

# heads of 96, 104 and 112 channels; a mesh splits the heads, or the tokens outside of the self-attention
CASES = (
    ("fsdp=4", 96, "none", False),
    ("fsdp=2,tensor=2", 104, "dots", False),
    ("fsdp=2,sequence=2", 112, "block", False),
    ("fsdp=4", 96, "none", True),
)


def main(topology: str) -> None:
    target, schedule = find_target(topology), make_schedule("0.25M")
    for mesh, head, remat, sampler in CASES:
        model = TransformerConfig(2, 2 * head, 2, bits=4, text_channels=128, remat=remat)
        config = ConfigDict(
            {
                "text": {"max_length": 512},
                "correction": {},
                "loss": {},
                "optim": {},
                "train": {"steps": 2},
                "sample": {"guidance": "logits"},
            }
        )
        layout = layout_of(parse_mesh(mesh), "", model, target.devices)
        if sampler:
            program = lower_sampler(config, "tiny", model, schedule, 4, layout)
        else:
            program = lower_train_step(config, "tiny", model, schedule, 4, 1, layout)
        compiled = program.lowered.compile(QUICK)
        memory: Any = compiled.memory_analysis()
        text = compiled.as_text() or ""
        case = {
            "name": f"{mesh} {dataclasses.astuple(model)} {'sampler' if sampler else 'train step'}",
            "kernels": sorted(set(re.findall(r"%(splash_\w+?)(?:\.\d+)? =", text))),
            "temporaries": memory.temp_size_in_bytes / 2**20,
            "ratio": hlo_costs.costs(text).flops * len(target.devices) / program.model_flops,
        }
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
