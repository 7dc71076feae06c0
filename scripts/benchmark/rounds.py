"""Measures the times of programs that take turns, a block of steps each, in many rounds.

So other programs on the machine slow down all of them, and ratios can be computed for each round.
"""

import contextlib
import math
import time

from scripts.benchmark import workers

_LEAST = 3


def start(commands):
    """Starts processes.

    Args:
        commands: `{program: command}`, see `workers.Worker`.

    Returns:
        `{program: worker}` of the programs that are ready, and `{program: reason}` of the others.
    """
    started = {program: workers.Worker(command) for program, command in commands.items()}
    ready, missing = {}, {}
    for program, worker in started.items():
        try:
            worker.wait_until_ready()
            ready[program] = worker
        except workers.Missing as reason:
            worker.close()
            missing[program] = str(reason)
    return ready, missing


class _Series:
    """The times of a program in one case, in each round."""

    def __init__(self, worker, case, block_ms):
        self._worker = worker
        self._case = case
        made = worker.ask(make=case)
        self._facts = made["facts"]
        self.steps = max(1, math.ceil(block_ms / 1000 / made["seconds"]))
        self.steps_ms, self.updates_ms = [], []

    def measure(self):
        seconds = self._worker.ask(time=self._case, steps=self.steps)["seconds"]
        self.steps_ms.append(1000 * seconds)
        seconds = self._worker.ask(update=self._case)["seconds"]
        if seconds is not None:
            self.updates_ms.append(1000 * seconds)

    def columns(self):
        texts = [" ".join(f"{each:.5g}" for each in ms) for ms in (self.steps_ms, self.updates_ms)]
        return {**self._facts, "steps": self.steps, "ms": texts[0], "update_ms": texts[1]}


def measure(ready, cases, num_rounds, seconds, block_ms):
    """Measures cases in rounds.

    Args:
        ready: `{program: worker}`.
        cases: `{program: list of cases}`.
        num_rounds: Integer, the largest number of rounds.
        seconds: Number. No round begins after this time, except the first three.
        block_ms: Number, the duration of a block of steps in milliseconds.

    Returns:
        List of rows with the program, the case, the steps of a block and the times of each round.
        If a program cannot run a case, its row has the reason under `missing`.
    """
    series, rows = [], []
    for program, worker in ready.items():
        for case in cases[program]:
            row = {"program": program, **case}
            try:
                series.append((row, _Series(worker, case, block_ms)))
            except workers.Missing as reason:
                rows.append({**row, "missing": str(reason)})
    begin = time.monotonic()
    for number in range(num_rounds):
        if number >= _LEAST and time.monotonic() - begin > seconds:
            break
        # Each round begins with another program, so the order is not always the same.
        first = number % max(1, len(series))
        for each in [*series[first:], *series[:first]]:
            try:
                each[1].measure()
            except workers.Missing as reason:
                series.remove(each)
                rows.append({**each[0], "missing": str(reason)})
    for row, each in series:
        versions = ready[row["program"]].versions
        rows.append({**row, **each.columns(), "missing": "", "versions": versions})
    for worker in ready.values():
        with contextlib.suppress(workers.Missing):  # The next request will say it.
            worker.ask(forget=True)
    return rows
