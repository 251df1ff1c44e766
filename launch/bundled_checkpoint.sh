#!/usr/bin/env bash
# Makes the bundled checkpoint again, from nothing: tokenizer, transformer in three stages, export, evaluation.
# Sets: RUNS, where the runs lie (default runs/). Started again, it goes on where it stopped.
set -euo pipefail
RUNS=${RUNS:-runs}
infinity-jax prepare
infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir "$RUNS/emoji_tokenizer"
infinity-jax export --checkpoint "$RUNS/emoji_tokenizer" --out "$RUNS/emoji_tokenizer_exported"
infinity-jax train --config configs/emoji.py --config.tokenizer="$RUNS/emoji_tokenizer_exported" --workdir "$RUNS/emoji"
# Fewer flips and all tokens alike, for the details of the last scales: a short stage, then a long one.
train_further() {  # FROM STEPS LEARNING_RATE WARMUP WORKDIR
    infinity-jax train --config configs/emoji.py --config.tokenizer="$RUNS/emoji_tokenizer_exported" \
        --config.train.init_from="$1" --config.train.steps="$2" --config.optim.learning_rate="$3" \
        --config.optim.warmup_steps="$4" --config.loss.token_weights=uniform --config.correction.p=0.05 --workdir "$5"
}
train_further "$RUNS/emoji" 1900 6e-4 50 "$RUNS/emoji_fine"
train_further "$RUNS/emoji_fine" 10500 1e-3 100 "$RUNS/emoji_long"
infinity-jax export --checkpoint "$RUNS/emoji_long" --out "$RUNS/emoji_exported"
infinity-jax evaluate --checkpoint "$RUNS/emoji_exported" --json "$RUNS/emoji_exported/evaluation.json" \
    --sheet "$RUNS/emoji_exported/evaluation.png"
