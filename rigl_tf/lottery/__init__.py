"""Lottery tickets: find them, and test whether they win; pruning and fine-tuning; selection."""

from rigl_tf.lottery.corruption import (
    corrupt_labels,
    half_dataset,
    hybrid_ticket,
    random_ticket,
    rearrange_masks,
    shuffle_pixels,
    shuffle_weights,
)
from rigl_tf.lottery.fine_tuning import ADMM, FineTuned, prune_and_fine_tune
from rigl_tf.lottery.greedy import Selection, select_units
from rigl_tf.lottery.jackpot import judge_ticket
from rigl_tf.lottery.levels import Level
from rigl_tf.lottery.protocol import Contest, jackpot_protocol
from rigl_tf.lottery.run import RewindPoint, Run
from rigl_tf.lottery.sanity import SanityTable, sanity_check
from rigl_tf.lottery.tickets import find_ticket
from rigl_tf.lottery.units import keep_units

__all__ = [
    "ADMM",
    "Contest",
    "FineTuned",
    "Level",
    "RewindPoint",
    "Run",
    "SanityTable",
    "Selection",
    "corrupt_labels",
    "find_ticket",
    "half_dataset",
    "hybrid_ticket",
    "jackpot_protocol",
    "judge_ticket",
    "keep_units",
    "prune_and_fine_tune",
    "random_ticket",
    "rearrange_masks",
    "sanity_check",
    "select_units",
    "shuffle_pixels",
    "shuffle_weights",
]
