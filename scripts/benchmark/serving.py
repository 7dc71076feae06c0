"""A process that builds models, trains some steps when it is asked to, and returns the time.

It imports only Python's own modules, because it also runs in the environments of other libraries.
Requests and answers are lines of JSON on stdin and stdout:

| request | answer |
| --- | --- |
| (none; sent at the start) | `versions`, and `peak_mb` after the imports |
| `make`: a case | makes and keeps a model: `seconds` of the fastest of some steps, and `facts` |
| `time`: a case, `steps` | `seconds` of a step, the mean of this number of steps |
| `update`: a case | `seconds` of a step that updates the masks; `null` if there is none |
| `forget`: anything | deletes all models |
| `peak`: anything | `peak_mb`, the peak memory of the process |

A case is a dictionary with the arguments of the function that makes a model. If a request fails,
the answer is `error` with the message.
"""

import gc
import json
import os
import pathlib
import sys
import time

_WARM_UP = 2


class Model:
    """The model that a program makes for a case.

    Args:
        step: Function that trains one step.
        before_update: Function that is called two steps before a mask update, or `None`.

    Attributes:
        facts: Dictionary with other columns of the row.
    """

    def __init__(self, step, before_update=None):
        self.facts = {}
        self.step = step
        self.before_update = before_update

    def seconds(self, num_steps):
        """Mean seconds of a step. One step before is not measured: it fills the caches again."""
        self.step()
        begin = time.perf_counter()
        for _ in range(num_steps):
            self.step()
        return (time.perf_counter() - begin) / num_steps

    def seconds_of_update(self):
        if self.before_update is None:
            return None
        self.before_update()
        return self.seconds(1)


class Program:
    """Answers requests.

    Args:
        make: Function that takes the entries of a case as arguments, and returns a `Model`.
    """

    def __init__(self, make):
        self._make = make
        self._models = {}

    def answer(self, request):
        """The answer to a request, both dictionaries."""
        if "forget" in request:
            self._models.clear()
            gc.collect()
            return {}
        if "peak" in request:
            return {"peak_mb": peak_megabytes()}
        if "make" in request:
            case = request["make"]
            model = self._make(**case)
            self._models[_key(case)] = model
            model.step()  # Compiles, and touches memory for the first time.
            model.seconds_of_update()
            seconds = min(model.seconds(1) for _ in range(_WARM_UP))
            return {"seconds": seconds, "facts": model.facts}
        if "time" in request:
            return {"seconds": self._models[_key(request["time"])].seconds(request["steps"])}
        return {"seconds": self._models[_key(request["update"])].seconds_of_update()}


def _key(case):
    return json.dumps(case, sort_keys=True)


def peak_megabytes():
    """The peak memory of this process; `None` if the system does not tell."""
    # Not `getrusage`: there a new process inherits the peak of the process that started it.
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return None
    return int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024


def serve(start):
    """Answers requests until stdin ends.

    Args:
        start: Function that imports what is needed, and returns the `make` of a `Program` and the
            versions of what it imported as one string.
    """
    # Libraries may print to stdout. So answers get a copy of it, and the rest goes elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    def tried(function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # Libraries may raise anything. Other cases must go on.
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())}

    def hello():
        make, versions = start()
        return {"program": Program(make), "versions": versions, "peak_mb": peak_megabytes()}

    greeting = tried(hello)
    program = greeting.pop("program", None)
    say(greeting)
    if program is not None:
        for line in sys.stdin:
            say(tried(program.answer, json.loads(line)))
