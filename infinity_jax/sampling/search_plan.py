"""What a search is told: how many candidates each prompt has at each scale, and what chooses among them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, UInt8

from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range
from infinity_jax.scales import ScaleSchedule

# (pictures uint8 [n,H,W,3], their n prompts) -> n finite numbers, the higher the better.
Reward = Callable[[UInt8[np.ndarray, "n H W 3"], Sequence[str]], Any]
# pictures -> features [n,C]; pictures that are alike have near ones.
Features = Callable[[UInt8[np.ndarray, "n H W 3"]], Any]
BY_REWARD, BY_CLUSTERS = "reward", "clusters"
_MOST = 1024


@dataclasses.dataclass(frozen=True)
class Cut(Checked):
    """After one scale some of a prompt's candidates are kept.

    Attributes:
      after: number of the scale, from 0.
      keep: so many.
      copies: each is drawn on so many times, with other random numbers.
      by: "reward" keeps those with the highest one; "clusters" one of each group of candidates that are alike.
    """

    after: Annotated[int, Range(0, 63)]
    keep: Annotated[int, Range(1, _MOST)]
    copies: Annotated[int, Range(1, _MOST)] = 1
    by: Annotated[str, OneOf((BY_REWARD, BY_CLUSTERS))] = BY_REWARD

    def chosen(self, values_n: np.ndarray) -> list[int]:
        """Chooses among one prompt's candidates by their rewards [n] or features [n,C]: which are kept, in order."""
        if self.by == BY_CLUSTERS:
            return one_of_each(values_n, self.keep)
        return sorted(np.argsort(-values_n, kind="stable")[: self.keep].tolist())


@dataclasses.dataclass(frozen=True)
class SearchPlan(Checked):
    """How many candidates of each prompt are drawn, and when there are fewer. Without cuts it is best of N.

    Attributes:
      candidates: at the first scale.
      cuts: in the order of their scales.
    """

    candidates: Annotated[int, Range(1, _MOST)]
    cuts: tuple[Cut, ...] = ()

    def counts(self, n_scales: int) -> tuple[int, ...]:
        """Counts the candidates of a prompt at each scale.

        Raises:
          UserError: a cut after no scale or after the last, two after one, or one that keeps more than there are.
        """
        counts = [self.candidates]
        cuts = {cut.after: cut for cut in self.cuts}
        if list(cuts) != sorted(cut.after for cut in self.cuts):
            raise UserError("cuts must be in the order of their scales, at most one after each")
        if cuts and max(cuts) >= n_scales - 1:
            raise UserError(
                f"cut after scale {max(cuts)}: the last scale is {n_scales - 1}, and the reward chooses after it; "
                "cut earlier"
            )
        for k in range(n_scales - 1):
            cut = cuts.get(k)
            if cut is not None and cut.keep > counts[-1]:
                raise UserError(
                    f"cut after scale {k}: keep is {cut.keep}, and there are {counts[-1]} candidates"
                )
            counts.append(counts[-1] if cut is None else cut.keep * cut.copies)
        return tuple(counts)

    def cost(self, schedule: ScaleSchedule) -> float:
        """Returns how many pictures the transformer could draw instead, by their tokens."""
        counts = self.counts(schedule.n_scales)
        return float(np.dot(counts, schedule.tokens) / sum(schedule.tokens))


@dataclasses.dataclass(frozen=True)
class Judges:
    """What candidates are chosen by.

    Attributes:
      reward: of pictures and their prompts.
      features: of pictures; None where no cut is by clusters.
    """

    reward: Reward
    features: Features | None = None

    def check(self, plan: SearchPlan) -> None:
        """Raises UserError where the plan needs features that are not there."""
        if self.features is None and any(cut.by == BY_CLUSTERS for cut in plan.cuts):
            raise UserError("a cut by clusters needs features: a function from pictures to [n,C]")

    def rewards(self, images: np.ndarray, prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Asks the reward; raises UserError where it fails or does not give a finite number for each."""
        try:
            rewards_n = np.asarray(self.reward(images, prompts), np.float64)
        except Exception as error:
            raise UserError(
                f"the reward failed on {len(images)} pictures {images.shape[1:]}: {error!r}; it takes (uint8 "
                "[n,H,W,3], n prompts) and returns n numbers"
            ) from error
        if rewards_n.shape != (len(images),):
            raise UserError(
                f"the reward of {len(images)} pictures has the shape {rewards_n.shape}; give a number each"
            )
        if not np.isfinite(rewards_n).all():
            wrong = int(np.flatnonzero(~np.isfinite(rewards_n))[0])
            raise UserError(
                f"the reward of a picture of {prompts[wrong]!r} is {rewards_n[wrong]}; give finite numbers"
            )
        return rewards_n

    def values(self, cut: Cut, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Computes what a cut chooses by, of all prompts' candidates: rewards [n], or features [n,C].

        Raises:
          UserError: as `rewards`; features that are not finite.
        """
        if cut.by == BY_REWARD:
            return self.rewards(images, prompts)
        assert self.features is not None, "see `check`"
        features_nC = np.asarray(self.features(images), np.float64).reshape(len(images), -1)
        if not np.isfinite(features_nC).all():
            raise UserError("the features of some pictures are not finite; give numbers that are")
        return features_nC


def one_of_each(features_nC: Float[np.ndarray, "n C"], count: int) -> list[int]:
    """Picks so many rows that are unlike: the one nearest the middle of each cluster (Ward's linkage)."""
    if count >= len(features_nC):
        return list(range(len(features_nC)))
    from scipy.cluster import hierarchy  # imported here: few need it, and it takes a part of a second

    cluster_n = hierarchy.fcluster(hierarchy.linkage(features_nC, "ward"), count, "maxclust")
    chosen = []
    for cluster in np.unique(cluster_n):
        own = np.flatnonzero(cluster_n == cluster)
        distances = np.square(features_nC[own] - features_nC[own].mean(0)).sum(1)
        chosen.append(int(own[np.argmin(distances)]))
    # Rows that are equal make fewer clusters than were asked for.
    others = (i for i in range(len(features_nC)) if i not in chosen)
    return sorted([*chosen, *[next(others) for _ in range(count - len(chosen))]])
