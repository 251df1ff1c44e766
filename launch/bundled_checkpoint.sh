#!/usr/bin/env bash
# Makes the bundled checkpoint again, from nothing: tokenizer, transformer in two stages, export, evaluation.
# Sets: RUNS, where the runs lie (default runs/). Started again, it goes on where it stopped.
set -euo pipefail
RUNS=${RUNS:-runs}
infinity-jax prepare
infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir "$RUNS/emoji_tokenizer"
infinity-jax export --checkpoint "$RUNS/emoji_tokenizer" --out "$RUNS/emoji_tokenizer_exported"
infinity-jax train --config configs/emoji.py --config.tokenizer="$RUNS/emoji_tokenizer_exported" --workdir "$RUNS/emoji"
# Second stage: fewer flips and all tokens alike, for the details of the last scales.
infinity-jax train --config configs/emoji.py --config.tokenizer="$RUNS/emoji_tokenizer_exported" \
    --config.train.init_from="$RUNS/emoji" --config.train.steps=1900 --config.optim.learning_rate=6e-4 \
    --config.optim.warmup_steps=50 --config.loss.token_weights=uniform --config.correction.p=0.05 \
    --workdir "$RUNS/emoji_fine"
infinity-jax export --checkpoint "$RUNS/emoji_fine" --out "$RUNS/emoji_exported"
infinity-jax evaluate --checkpoint "$RUNS/emoji_exported" --json "$RUNS/emoji_exported/evaluation.json" \
    --sheet "$RUNS/emoji_exported/evaluation.png"
