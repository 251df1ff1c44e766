"""Search by a reward against best of N at equal cost, on prompts that were never trained on.

python experiments/search.py --out search

The reward is made of what is here: a linear map from EfficientNet's features of a picture to the caption's, fitted on
the training pictures as the tokenizer shows them; a picture's reward is the cosine between what the map says and the
caption asked for. It never saw the pictures that are searched for. Judged by the true picture: retrieval among all,
which reads the reward's features too, and PSNR, which does not.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax import scales
from infinity_jax.data import sources
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import generation
from infinity_jax.files import sheets
from infinity_jax.metrics import bootstrap
from infinity_jax.metrics.psnr import psnr_per_picture
from infinity_jax.metrics.retrieval import retrieval_ranks
from infinity_jax.runtime import start_up
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.search_plan import BY_CLUSTERS, Cut, SearchPlan

SHOWN = 12
# Of six scales with 1, 4, 9, 16, 36 and 64 tokens.
PLANS = {
    "plain sampling": SearchPlan(1),
    "best of 2": SearchPlan(2),
    "best of 4": SearchPlan(4),
    "10, from the fifth scale 2": SearchPlan(10, (Cut(3, 2),)),
    "6, for the last scale 1": SearchPlan(6, (Cut(4, 1),)),
    "8, then 1 drawn on twice": SearchPlan(8, (Cut(3, 1, copies=2),)),
    "16, then 8 groups, then 2": SearchPlan(16, (Cut(1, 8, by=BY_CLUSTERS), Cut(3, 2))),
}


class LinearReward:
    """How well a caption fits a picture, by ridge regression from picture features to text features."""

    def __init__(self, pipeline: InfinityPipeline, images: np.ndarray, captions: list[str], ridge: float):
        self.encoder, self.seconds, self.asked = pipeline.text_encoder, 0.0, 0
        features, text = generation.features_of(images).astype(np.float64), self.text(captions)
        self.mean, self.text_mean = features.mean(0), text.mean(0)
        x, y = features - self.mean, text - self.text_mean
        scale = ridge * np.trace(x.T @ x) / x.shape[1]
        self.map = np.linalg.solve(x.T @ x + scale * np.eye(x.shape[1]), x.T @ y)

    def text(self, captions: list[str]) -> np.ndarray:
        """The mean of a text's tokens, of unit length, float64 [N,C]."""
        rows = []
        for start in range(0, len(captions), 256):
            features, mask = self.encoder.encode(captions[start : start + 256])
            rows.append((features * mask[..., None]).sum(1) / mask.sum(1)[:, None])
        mean = np.concatenate(rows).astype(np.float64)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def said(self, images: np.ndarray) -> np.ndarray:
        """What pictures show, as text features of unit length."""
        said = (generation.features_of(images) - self.mean) @ self.map
        return said / np.linalg.norm(said, axis=1, keepdims=True)

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """The cosine between what pictures show and what was asked for."""
        start = time.perf_counter()
        wanted = self.text(list(prompts)) - self.text_mean
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        rewards = (self.said(images) * wanted).sum(1)
        self.seconds, self.asked = self.seconds + time.perf_counter() - start, self.asked + len(images)
        return rewards

    def accuracy(self, images: np.ndarray, captions: list[str]) -> float:
        """How often a picture's own caption is the one that fits it best."""
        wanted = self.text(captions) - self.text_mean
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        return float(((self.said(images) @ wanted.T).argmax(1) == np.arange(len(images))).mean())


def main() -> None:
    """Fits the reward, searches, and writes numbers and a sheet."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start_up.keep_freed_memory()
    pipeline = InfinityPipeline.from_pretrained("bundled")
    real = generation.real_pictures("emoji_captions", pipeline.picture_size()[0])
    through = ThroughBits(pipeline.model.tokenizer)
    reward = LinearReward(pipeline, through(real.train.images), real.train.captions, 1.0)
    held, captions = real.compositions.images, real.compositions.captions
    report: dict[str, Any] = {"reward": reward.accuracy(through(held), captions), "prompts": len(captions)}
    print(
        f"of {len(captions)} held-out pictures the reward finds {report['reward']:.1%} of the captions",
        flush=True,
    )
    gallery = np.concatenate([generation.gallery_features(s.images) for s in (real.train, real.compositions)])
    places = np.tile(np.arange(len(held)) + len(real.train.images), arguments.seeds)
    shown = {}
    for tau in arguments.tau:
        settings = pipeline.settings.changed(tau=tau)
        for name, plan in PLANS.items():
            reward.seconds, reward.asked, start = 0.0, 0, time.perf_counter()
            request = SampleRequest(
                captions * arguments.seeds, range(len(captions) * arguments.seeds), batch=64
            )
            found = pipeline.search(request, plan, reward, generation.features_of, settings)
            images = found.images
            ranks = retrieval_ranks(generation.features_of(images), gallery, places)
            psnr = psnr_per_picture(np.tile(held, (arguments.seeds, 1, 1, 1)), images)
            report[f"tau {tau}, {name}"] = row = {
                "cost": plan.cost(scales.make_schedule(pipeline.model.tokenizer.scales)),
                "judged": reward.asked / len(images),
                "seconds": time.perf_counter() - start,
                "reward_seconds": reward.seconds,
                "reward": float(found.rewards_N.mean()),
                **_with_intervals(top1=ranks < 1, top5=ranks < 5, psnr=psnr),
            }
            shown[tau, name] = images[:SHOWN]
            print(f"tau {tau}, {name:>28}: {_line(row)}", flush=True)
            (arguments.out / "search.json").write_text(json.dumps(report, indent=1) + "\n")
    rows = [(arguments.tau[-1], name) for name in ("plain sampling", "best of 4", *list(PLANS)[3:])]
    sheets.comparison_sheet(
        [*(shown[row] for row in rows), held[:SHOWN]],
        [*(name for _, name in rows), "the true one"],
        arguments.out / "search.png",
        captions=captions[:SHOWN],
        footer=sources.attribution(["emoji_captions"]),
    )


def _with_intervals(**values: np.ndarray) -> dict[str, Any]:
    """Means with 95% intervals."""
    out = {}
    for name, own in values.items():
        of_picture = np.asarray(own, np.float64)
        out |= {name: float(of_picture.mean()), f"{name}_interval": list(bootstrap.mean_interval(of_picture))}
    return out


def _line(row: dict[str, Any]) -> str:
    shares = ", ".join(
        f"{name} {row[name]:.1%} ({low:.1%} to {high:.1%})"
        for name, (low, high) in ((name, row[f"{name}_interval"]) for name in ("top1", "top5"))
    )
    return f"cost {row['cost']:.2f}, {row['judged']:.0f} judged, {row['seconds']:.0f} s, {shares}, {row['psnr']:.2f} dB"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tau", type=float, nargs="+", default=[0.2, 0.7])
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
