"""Settings of the losses. Must not import anything heavy."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from actors.generation.config import OpponentConfig
from actors.settings import Settings

Level = Literal["none", "token", "sequence"]


class PairLossConfig(Settings):
    """A loss on pairs: the best and worst completion of a prompt, or a preference from data."""

    kind: Literal["dpo", "ipo", "slic"] = Field(default="dpo", description="logistic, squared or hinge loss")
    beta: float = Field(default=0.1, gt=0.0, description="regularisation to the reference; IPO's tau, SLiC's 1/margin")
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5, description="assumed probability of a flipped label")
    opponent: ClassVar[None] = None
    on_pairs: ClassVar[bool] = True


class PlayerCorrectionConfig(Settings):
    """Off-policy corrections for a prompt's own completions (the players)."""

    baseline: Literal["leave_one_out", "constant"] = Field(
        default="leave_one_out",
        description="leave_one_out: mean advantage of the prompt's other players; constant: 1/2 (0 for rloo) as "
        "in the paper, biased for off-policy completions without player weights",
    )
    kl: Literal["sequence", "reward_to_go"] = Field(
        default="sequence",
        description="KL penalty per token: whole sequence, or reward-to-go (this token and later ones), biased for "
        "off-policy completions without player weights",
    )
    players: Level = Field(
        default="none",
        description="importance weights policy / behaviour of the players: none, capped per token, or per sequence",
    )
    player_cap: float = Field(default=2.0, ge=1.0, description="largest weight of a player or its token")
    beyond_cap: Literal["truncate", "mask"] = Field(
        default="truncate", description="truncate weights at cap, or mask (set to 0) weights outside [1/cap, cap]"
    )

    @model_validator(mode="after")
    def _a_mask_leaves_something(self) -> Self:
        levels = {"player_cap": self.players, "opponent_cap": getattr(self, "opponents", "none")}
        emptied = [name for name, level in levels.items() if level != "none" and getattr(self, name) <= 1.0]
        if self.beyond_cap == "mask" and emptied:
            raise ValueError(
                f"{' and '.join(emptied)} 1 with beyond_cap mask sets every weight except 1 to 0; raise the cap above "
                "1, or set beyond_cap to truncate"
            )
        return self


class CorrectionConfig(PlayerCorrectionConfig):
    """Off-policy corrections for players and opponents."""

    opponents: Level = Field(
        default="sequence",
        description="importance weights opponent / behaviour of the opponents: none, the product of capped token "
        "weights (token), or the capped product (sequence)",
    )
    opponent_cap: float = Field(default=2.0, ge=1.0, description="largest weight of an opponent or its token")
    renormalise: bool = Field(
        default=False,
        description="divide the opponents' weights by their mean over the batch, so that a cap does not shrink the "
        "preference against tau",
    )


class BestOfNLossConfig(Settings):
    """Fine-tuning on the best completion of each prompt."""

    kind: Literal["best_of_n"] = Field(default="best_of_n", description="likelihood of each prompt's best completion")
    opponent: ClassVar[None] = None
    on_pairs: ClassVar[bool] = True


class GrpoLossConfig(Settings):
    """Clipped policy gradient on scores that are centred in their group."""

    kind: Literal["grpo"] = Field(default="grpo", description="clipped policy gradient on a group's centred scores")
    tau: float = Field(default=0.04, ge=0.0, description="weight of KL(policy || reference) per token")
    clip: float = Field(default=0.2, gt=0.0, lt=1.0, description="ratios policy / behaviour below 1 - clip are cut")
    clip_high: float | None = Field(
        default=None, gt=0.0, description="ratios above 1 + clip_high are cut; unset: clip on both sides"
    )
    scale: bool = Field(default=True, description="divide a group's centred scores by their standard deviation")
    opponent: ClassVar[None] = None
    on_pairs: ClassVar[bool] = False


class PpoLossConfig(Settings):
    """Clipped policy gradient on scores, with a value head that the policy's layers share."""

    kind: Literal["ppo"] = Field(default="ppo", description="clipped policy gradient on scores, with a value head")
    tau: float = Field(default=0.05, gt=0.0, description="weight of KL(policy || reference) relative to the score")
    clip: float = Field(default=0.2, gt=0.0, lt=1.0, description="ratios outside 1 -+ clip are cut")
    gamma: float = Field(default=1.0, gt=0.0, le=1.0, description="discount of rewards per token")
    decay: float = Field(
        default=0.95, ge=0.0, le=1.0, description="lambda of generalised advantages; 1: returns as they were sampled"
    )
    value_weight: float = Field(default=0.1, gt=0.0, description="weight of the value head's squared error")
    opponent: ClassVar[None] = None
    on_pairs: ClassVar[bool] = False


class RewardLossConfig(Settings):
    """Policy gradient on the judge's scores, regularised by KL to the reference."""

    kind: Literal["rloo"] = Field(
        default="rloo", description="policy gradient on scores, the other completions' mean as baseline (REINFORCE)"
    )
    tau: float = Field(default=0.05, gt=0.0, description="weight of KL(policy || reference) relative to the score")
    correction: PlayerCorrectionConfig = Field(default_factory=PlayerCorrectionConfig)
    opponent: ClassVar[None] = None
    on_pairs: ClassVar[bool] = False


class GameLossConfig(Settings):
    """A loss on games: a prompt's completions compared with an opponent's."""

    kind: Literal["nash_pg", "online_ipo", "ipo_md"] = Field(
        default="nash_pg", description="nash_pg (Nash-MD-PG, Nash-EMA-PG, self-play), online_ipo or ipo_md"
    )
    tau: float = Field(default=0.05, gt=0.0, description="weight of KL(policy || reference) relative to the preference")
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig)
    opponent: OpponentConfig = Field(default_factory=OpponentConfig)
    on_pairs: ClassVar[bool] = False

    @model_validator(mode="after")
    def _opponents_make_pairs(self) -> Self:
        if self.kind == "ipo_md" and self.opponent.sampled and self.opponent.completions_per_prompt < 2:
            raise ValueError(
                "opponent.completions_per_prompt is 1, and kind ipo_md compares opponents with each other; set it to 2 "
                "or more"
            )
        return self

    @property
    def weighs_opponents(self) -> bool:
        """Return whether the update needs the opponent's current log-probs."""
        return self.correction.opponents != "none"


LossConfig = PairLossConfig | BestOfNLossConfig | RewardLossConfig | GrpoLossConfig | PpoLossConfig | GameLossConfig


class AnchorConfig(Settings):
    """A pull towards the slow average of the policy's own weights: it damps the cycles that stale opponents cause."""

    weight: float | None = Field(
        default=None,
        ge=0.0,
        description="weight of KL(policy || its slow average), beside loss.tau or beta; 0: none; unset: 0.32 for "
        "losses on games if replay.max_staleness is 1 or more, 0.8 for dpo if samples may be 8 steps old, otherwise 0",
    )
    horizon: int | None = Field(
        default=None,
        ge=2,
        description="optimizer steps that the average looks back; unset: 2 (replay.max_staleness + 1) "
        "replay.updates_per_publish, at least 8",
    )


@dataclass(frozen=True, slots=True)
class Anchor:
    """A run's anchor, with every number settled."""

    weight: float
    horizon: int  # optimizer steps


GAME_ANCHOR, DPO_ANCHOR = 0.32, 0.8
"""Weights of the anchor, unless another is set: docs/anchor.md."""
OLD = 8
"""Optimizer steps: without an anchor online DPO breaks between samples 2 and 8 steps old."""
SHORTEST_HORIZON = 8


def settled_anchor(given: AnchorConfig, loss: LossConfig, max_staleness: int, steps: int) -> Anchor | None:
    """Return a run's anchor; None if its weight is 0.

    max_staleness: versions. steps: optimizer steps between two versions. A horizon that is unset is twice the largest
    lag in steps: shorter is unstable.
    """
    lag = (max_staleness + 1) * steps
    weight = _usual_weight(loss, max_staleness, lag) if given.weight is None else given.weight
    horizon = max(SHORTEST_HORIZON, 2 * lag) if given.horizon is None else given.horizon
    return Anchor(weight, horizon) if weight else None


def _usual_weight(loss: LossConfig, max_staleness: int, lag: int) -> float:
    if max_staleness == 0:
        return 0.0
    if loss.kind == "dpo" and lag > OLD:
        return DPO_ANCHOR
    return 0.0 if loss.opponent is None else GAME_ANCHOR
