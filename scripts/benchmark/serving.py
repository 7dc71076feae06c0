"""A process that builds models, trains some steps on request, and returns the time.

It knows nothing but Python, as it runs in the environments of other libraries too. Requests and
answers are lines of JSON on stdin and stdout:

| request | answer |
| --- | --- |
| (first, unasked) | `versions`, and `peak_mb` of the imports alone |
| `make`: a case | `seconds`, of the fastest of some steps, and `facts`; the model is kept |
| `time`: a case, `steps` | `seconds` of a step, the mean of so many |
| `update`: a case | `seconds` of a step that updates the masks; `null` if there is none |
| `forget`: anything | all models are forgotten |
| `peak`: anything | `peak_mb`, the peak memory of the process |

A case is a dictionary: the arguments of the function that makes a model. What fails is answered
with `error`.
"""

import gc
import json
import os
import pathlib
import sys
import time

_WARM_UP = 2


class Model:
    """What a program makes of a case.

    Args:
        step: Function that trains one step.
        before_update: Function after which the next step but one updates the masks, or `None`.

    Attributes:
        facts: Dictionary, what else a row should say.
    """

    def __init__(self, step, before_update=None):
        self.facts = {}
        self.step = step
        self.before_update = before_update

    def seconds(self, num_steps):
        """Mean seconds of a step; one more goes before, as others had the caches."""
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
        make: Function that gets a case, each entry as an argument, and returns a `Model`.
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
    """The peak memory of this process; `None` where the system does not say."""
    # Not `getrusage`: a new process inherits that peak from the one that started it.
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
    # Libraries print to stdout as they like; answers have it for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    def tried(function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # Whatever a library raises: the others go on.
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
