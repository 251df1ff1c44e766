"""Ways of decoding with the bundled checkpoint (paper Table 9), and the checkpoint's own setting.

    infinity-jax ablate decoding --workdir runs/decoding

24 evaluations, 20 minutes on one busy core; what they gave here is in results/ablations/decoding/. Another
checkpoint: --config.checkpoint=DIR.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The grid; its keys are documented in infinity_jax/tools/scaling/grid.py."""
    config = ConfigDict(sort_keys=False)
    config.base = "emoji"
    config.changes = ""
    config.checkpoint = "bundled"
    config.axes = ConfigDict(
        dict(
            decoding=(
                "greedy: sample.tau=0.01 sample.guidance=none",
                "plain: sample.tau=1.0 sample.guidance=none",
                "pyramid-1-3: sample.tau=1.0 sample.guidance=pyramid sample.cfg=3.0",
                "pyramid-1-5: sample.tau=1.0 sample.guidance=pyramid sample.cfg=5.0",
                "features-3: sample.tau=1.0 sample.guidance=features sample.cfg=3.0",
                "logits-3: sample.tau=1.0 sample.guidance=logits sample.cfg=3.0",
                "logits-4: sample.tau=1.0 sample.guidance=logits sample.cfg=4.0",
                "logits-4-cool: sample.tau=0.2 sample.guidance=logits sample.cfg=4.0",
            ),
            seed=("0: train.seed=0", "1: train.seed=1", "2: train.seed=2"),
        ),
        sort_keys=False,
    )
    config.pictures = 512
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    config.compare = "decoding"
    config.columns = ("kid", "retrieval_top1", "retrieval_top5", "retrieval_compositions_top1")
    config.paper = (
        "9.97, 0.397, 30.98",
        "4.84, 0.706, 31.59",
        "3.48, 0.872, 32.48",
        "2.98, 0.929, 32.32",
        "3.00, 0.953, 32.13",
        "2.91, 0.952, 32.31",
        "2.82, 0.962, 32.25",
    )
    config.source = "Table 9: FID, ImageReward, HPSv2.1"
    return config
