"""The client for the processes of a benchmark, which measure times."""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

_ROOT = pathlib.Path(__file__).parents[2]


class Missing(Exception):
    """Raised if a program does not start or cannot run a case. The message says why."""


class Worker:
    """A process that runs `scripts.benchmark.serving`.

    Args:
        command: List of strings; the first one is a Python.

    Attributes:
        versions: String, the versions of its libraries.
        peak_mb: Integer, its peak memory after the imports.
    """

    def __init__(self, command):
        self.versions = self.peak_mb = None
        self._command = command
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  `close` closes it.
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(_ROOT)}
        try:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            self._process = None
            self._reason = f"{command[0]} does not start: {error.strerror}"

    def wait_until_ready(self):
        """Raises `Missing` if the process does not start, or its libraries cannot be imported."""
        if self._process is None:
            raise Missing(self._reason)
        answer = self._read()
        self.versions, self.peak_mb = answer["versions"], answer["peak_mb"]

    def ask(self, **request):
        """Sends a request and returns the answer. Raises `Missing` if there is none."""
        with contextlib.suppress(OSError):  # It ended: reading says why.
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            raise Missing(" ".join([f"ended with exit code {code}", *last]))
        answer = json.loads(line)
        if "error" in answer:
            raise Missing(answer["error"])
        return answer

    def close(self):
        """Ends the process."""
        if self._process is not None:
            self._process.communicate()
        self._errors.close()
