"""Lottery tickets: how to find one, and whether it is a winner."""

from rigl_tf.lottery.greedy import Selection, select_units
from rigl_tf.lottery.jackpot import judge_ticket
from rigl_tf.lottery.levels import Level
from rigl_tf.lottery.protocol import jackpot_protocol
from rigl_tf.lottery.tickets import find_ticket
from rigl_tf.lottery.units import keep_units

__all__ = [
    "Level",
    "Selection",
    "find_ticket",
    "jackpot_protocol",
    "judge_ticket",
    "keep_units",
    "select_units",
]
