"""Trains the judge of scenes on the tracer's pictures, and measures how often it is right on others.

python experiments/scene_judge.py train --pictures-file pictures.npy \
  --out infinity_jax/evaluation/scenes/judge.safetensors
python experiments/scene_judge.py check --pictures 4096 --json results/scene_judge/check.json

`train` draws 36,000 pictures of 64x64 first (6 minutes on two cores), into --pictures-file, where a second run finds
them. A quarter of them shows pairs of words that are held out of training sets: the judge must know no difference.
They are mirrored, blurred, made noisy, darker and lighter at random, since it will judge what came out of tokenizers.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from infinity_jax.checkpoints import folder
from infinity_jax.data.scenes.description import MOST_OBJECTS, Scene, describe
from infinity_jax.data.scenes.tracer import render
from infinity_jax.data.scenes.vocabulary import COLOURS, FLOORS, MATERIALS, OBJECTS
from infinity_jax.evaluation.scenes import accuracy, judge, places
from infinity_jax.evaluation.scenes.network import GRID, SIDE, JudgeNetwork, Maps, seen
from infinity_jax.files import atomic
from infinity_jax.files.progress import counted
from infinity_jax.metrics import bootstrap

# No scene of a data set or an evaluation comes from this seed.
SEED = 20412
BATCH, CHUNK = 32, 256


def main() -> None:
    """Runs `train` or `check`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    train_command = commands.add_parser("train")
    train_command.add_argument("--pictures", type=int, default=36_000)
    train_command.add_argument("--pictures-file", type=Path, required=True)
    train_command.add_argument("--steps", type=int, default=3_400)
    train_command.add_argument("--learning-rate", type=float, default=2e-3)
    train_command.add_argument("--out", type=Path, required=True)
    train_command.set_defaults(run=train)
    check_command = commands.add_parser("check")
    check_command.add_argument("--pictures", type=int, default=4096)
    check_command.add_argument("--side", type=int, default=128)
    check_command.add_argument("--json", type=Path, required=True)
    check_command.set_defaults(run=check)
    arguments = parser.parse_args()
    arguments.run(arguments)


def scene(number: int, seed: int = SEED) -> Scene:
    """Describes scene `number`; every fourth shows a held-out pair."""
    return describe(seed, "compositions" if number % 4 == 0 else "train", number)


def draw(scenes: list[Scene], side: int) -> np.ndarray:
    """Draws scenes, uint8 [N,side,side,3]."""
    drawing = jax.jit(lambda numbers: render(numbers, side, side))
    starts = range(0, len(scenes), CHUNK)
    parts = []
    for start in counted(starts, "drawing", len(scenes), "pictures", lambda _: CHUNK):
        part = np.stack([one.numbers() for one in scenes[start : start + CHUNK]])
        filled = np.concatenate([part, np.repeat(part[-1:], CHUNK - len(part), 0)])
        parts.append(np.asarray(drawing(filled))[: len(part)])
    return np.concatenate(parts)


def truth(one: Scene) -> dict[str, Any]:
    """Writes down a scene as the network should say it; objects that are not there have the kind -1."""
    colours = tuple(COLOURS)
    words = np.full((MOST_OBJECTS, 3), -1, np.int32)
    where = np.zeros((MOST_OBJECTS, 4), np.float32)
    for row, (thing, middle) in enumerate(zip(one.things, places.middles(one), strict=True)):
        words[row] = OBJECTS.index(thing.kind), colours.index(thing.colour), MATERIALS.index(thing.material)
        where[row] = *middle, thing.x, thing.z
    return {"words": words, "where": where, "floor": np.int32(FLOORS.index(one.floor))}


def augmented(key: Array, image: Array, where: Array) -> tuple[Array, Array]:
    """Mirrors, blurs and disturbs pictures float [B,H,W,3] in [-1, 1], and mirrors the places."""
    keys = jax.random.split(key, 5)
    mirrored = jax.random.bernoulli(keys[0], 0.5, (len(image),))
    image = jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
    turned = where * jnp.array([-1.0, 1.0, -1.0, 1.0]) + jnp.array([1.0, 0.0, 0.0, 0.0])
    where = jnp.where(mirrored[:, None, None], turned, where)
    sigma = jnp.maximum(jax.random.uniform(keys[1], (len(image), 1), minval=-0.6, maxval=1.2), 0.05)
    taps = jnp.exp(-jnp.square(jnp.arange(-2, 3) / sigma) / 2)
    taps /= taps.sum(-1, keepdims=True)
    for axis in (1, 2):
        moved = jnp.stack([jnp.roll(image, by, axis) for by in range(-2, 3)], 1)
        image = jnp.einsum("bk,bkhwc->bhwc", taps, moved)
    noise = jnp.maximum(jax.random.uniform(keys[2], (len(image), 1, 1, 1), minval=-0.08, maxval=0.12), 0.0)
    image += noise * jax.random.normal(keys[3], image.shape)
    gain = 1 + 0.08 * jax.random.normal(keys[4], (len(image), 1, 1, 3))
    return jnp.clip((image + 1) * gain - 1, -1.0, 1.0), where


def loss_of(maps: Maps, batch: dict[str, Array]) -> Array:
    """Computes the loss: that of presence as in the source of the network, cross-entropies around the middles."""
    cells = (jnp.arange(GRID) + 0.5) / GRID
    across = GRID * (cells - batch["where"][..., 0:1])  # [B,N,G], in cells
    down = GRID * (cells - batch["where"][..., 1:2])
    there = (batch["words"][..., 0] >= 0)[..., None, None]
    squared = jnp.square(down)[..., :, None] + jnp.square(across)[..., None, :]  # [B,N,G,G]
    near = jnp.where(there, jnp.exp(-squared / (2 * 0.7**2)), 0.0)
    own = there & (jnp.abs(down)[..., :, None] <= 0.5) & (jnp.abs(across)[..., None, :] <= 0.5)
    at_middle, soft = own.any(1), near.max(1)
    p = jax.nn.sigmoid(maps.presence)
    objects = jnp.maximum(at_middle.sum(), 1)
    presence = -jnp.where(
        at_middle,
        jnp.square(1 - p) * jax.nn.log_sigmoid(maps.presence),
        (1 - soft) ** 4 * jnp.square(p) * jax.nn.log_sigmoid(-maps.presence),
    )
    # A cell belongs to the nearest object, if that is within a cell.
    squared = jnp.where(there, squared, jnp.inf)
    counts, nearest = (squared.min(1) < 1.0).astype(jnp.float32), squared.argmin(1)

    def of_nearest(x: Array) -> Array:
        return jax.vmap(lambda rows, index: rows[index])(x, nearest)

    words, where = of_nearest(batch["words"]), of_nearest(batch["where"])
    wrong = sum(
        optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(words[..., i], 0))
        for i, logits in enumerate((maps.kind, maps.colour, maps.material))
    )
    wrong += 2 * optax.huber_loss(maps.place, where[..., 2:], delta=0.2).sum(-1)
    floor = optax.softmax_cross_entropy_with_integer_labels(maps.floor, batch["floor"])
    return presence.sum() / objects + (counts * wrong).sum() / counts.sum() + 0.3 * floor.mean()


def train(arguments: argparse.Namespace) -> None:
    """Trains and writes the weights, float16."""
    scenes = [scene(number) for number in range(arguments.pictures)]
    if not arguments.pictures_file.exists():
        with atomic.writing(arguments.pictures_file) as temporary, open(temporary, "wb") as file:
            np.save(file, draw(scenes, SIDE))
    images = np.load(arguments.pictures_file)
    truths = jax.tree.map(lambda *x: np.stack(x), *map(truth, scenes))
    network = JudgeNetwork()
    params = network.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    print(f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters")
    rate = optax.warmup_cosine_decay_schedule(0.0, arguments.learning_rate, 200, arguments.steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-2))

    @jax.jit
    def step(params: Any, state: Any, batch: dict[str, Array], key: Array) -> tuple[Any, Any, Array]:
        image, where = augmented(key, batch["image"].astype(jnp.float32) / 127.5 - 1, batch["where"])

        def loss_fn(params: Any) -> Array:
            return loss_of(network.apply({"params": params}, seen(image)), {**batch, "where": where})  # pyright: ignore[reportArgumentType]

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, random, losses = optimiser.init(params), np.random.default_rng(0), []
    started = time.perf_counter()
    for number in range(1, arguments.steps + 1):
        rows = random.integers(len(images), size=BATCH)
        batch = {"image": images[rows], **{name: x[rows] for name, x in truths.items()}}
        params, state, loss = step(params, state, batch, jax.random.key(number))
        losses.append(loss)
        if number % 100 == 0:
            seconds = (time.perf_counter() - started) / number
            print(
                f"step {number}: loss {np.mean(jax.device_get(losses[-100:])):.4f}, {seconds:.2f} s a step",
                flush=True,
            )
        if number % 1000 == 0 or number == arguments.steps:
            folder.write_arrays(arguments.out, params, "float16")


def check(arguments: argparse.Namespace) -> None:
    """Measures the judge on pictures that it was not trained on, of both kinds of pairs."""
    report: dict[str, Any] = {"side": arguments.side}
    for name, split in (("seen", "train"), ("unseen", "compositions")):
        scenes = [describe(SEED + 1, split, number) for number in range(arguments.pictures)]
        sights = judge.look(draw(scenes, arguments.side))
        report[name] = accuracy.summary(scenes, sights) | {"objects": _by_object(scenes, sights)}
    atomic.write_json(arguments.json, report)
    print(json.dumps(report, indent=1))


def _by_object(scenes: list[Scene], sights: list[judge.Sight]) -> dict[str, Any]:
    """Counts how often the number of objects, and each object's words, are right, and how far its place is off."""
    marks: dict[str, list[float]] = {
        name: [] for name in ("count", "kind", "colour", "material", "floor", "place")
    }
    for one, sight in zip(scenes, sights, strict=True):
        marks["count"].append(len(sight.objects) == len(one.things))
        marks["floor"].append(sight.floor == one.floor)
        for thing in one.things:
            found = min(
                sight.objects, key=lambda f: (f.x - thing.x) ** 2 + (f.z - thing.z) ** 2, default=None
            )
            for word in ("kind", "colour", "material"):
                marks[word].append(getattr(found, word, None) == getattr(thing, word))
            off = np.hypot(found.x - thing.x, found.z - thing.z) if found else np.inf
            marks["place"].append(off < 0.3)
    return {
        name: {"share": float(np.mean(x)), "interval": bootstrap.mean_interval(np.array(x, np.float64))}
        for name, x in marks.items()
    }


if __name__ == "__main__":
    main()
