"""Transformer of the bundled checkpoint: captions -> 64x64 pictures.

    infinity-jax train --config configs/emoji.py --workdir runs/emoji

`:index` has the conventional classifier of the paper's Table 5, one among 2^16 classes for a token, for comparison
with `--config.model.bits=16` of the bitwise one. Both need a tokenizer of 16 bits:

    infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --config.model.bits=16 --workdir runs/tokenizer_16
    infinity-jax train --config configs/emoji.py:index --config.tokenizer=runs/tokenizer_16 --workdir runs/emoji_index

`:debug` runs two steps of a tiny model.
"""

from ml_collections import ConfigDict

from infinity_jax.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` "index" makes it the conventional classifier, "debug" makes it tiny."""
    if argument not in ("", "index", "debug"):
        raise UserError(f"configs/emoji.py has no {argument!r}; known: index, debug, or nothing")
    config = ConfigDict()
    # A folder with a tokenizer: "bundled", a folder of `infinity-jax export`, or a workdir of train-tokenizer.
    config.tokenizer = "bundled"
    config.model = ConfigDict(
        dict(
            layers=6,
            width=256,
            heads=4,
            bits=32,
            head="bits",
            positions="rope2d",
            text_channels=384,
            text_length=32,
            drop_path=0.0,
            compute_dtype="bfloat16",
            remat="none",
            scan_layers=False,
        )
    )
    config.text = ConfigDict(dict(encoder="minilm", max_length=32, path=""))
    config.data = ConfigDict(dict(source="emoji_captions", scales="64px"))
    config.correction = ConfigDict(dict(p=0.15, scales=13, requantise=True))
    config.loss = ConfigDict(dict(token_weights="by_scale", label_smoothing=0.0, caption_drop=0.1))
    config.optim = ConfigDict(
        dict(
            learning_rate=1e-3,
            warmup_steps=100,
            schedule="cosine",
            final_fraction=0.02,
            b1=0.9,
            b2=0.97,
            weight_decay=0.02,
            clip=5.0,
            ema_decay=0.997,
        )
    )
    config.train = ConfigDict(
        dict(
            steps=6000,
            batch_size=32,
            seed=0,
            log_every=50,
            checkpoint_every=1000,
            keep_checkpoints=2,
            keep_every=0,
            keep_best="",
            microbatches=1,
            sample_every=1000,
            evaluate_every=1000,
            restore_from="",
            init_from="",
        )
    )
    config.mesh = ConfigDict(dict(shape="", slices=1, rules=""))
    config.sample = ConfigDict(dict(cfg=4.0, tau=0.2, top_p=1.0, guidance="logits"))
    if argument == "index":
        config.model.update(dict(bits=16, head="index"))
        # 2^16 logits for each of a picture's 130 tokens: 1 GB for the whole batch at once.
        config.train.microbatches = 4
    if argument == "debug":
        config.model.update(dict(layers=2, width=64, heads=2))
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
