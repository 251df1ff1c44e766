#!/usr/bin/env bash
# Makes the bundled checkpoint again, from nothing: tokenizer, transformer, export, evaluation.
# Sets: RUNS, where the runs lie (default runs/). Started again, it goes on where it stopped.
set -euo pipefail
RUNS=${RUNS:-runs}
infinity-jax prepare
infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir "$RUNS/emoji_tokenizer"
infinity-jax export --checkpoint "$RUNS/emoji_tokenizer" --out "$RUNS/emoji_tokenizer_exported"
infinity-jax train --config configs/emoji.py --config.tokenizer="$RUNS/emoji_tokenizer_exported" --workdir "$RUNS/emoji"
infinity-jax export --checkpoint "$RUNS/emoji" --out "$RUNS/emoji_exported"
infinity-jax evaluate --checkpoint "$RUNS/emoji_exported" --json "$RUNS/emoji_exported/evaluation.json" \
    --sheet "$RUNS/emoji_exported/evaluation.png"
