"""Shows the examples in docstrings as code: mkdocstrings takes those without an indent for text."""

import re

import griffe

_EXAMPLE = re.compile(r"(?:^ *Example:\n\s*\n)?(^( *)>>> .*(?:\n\2\S.*|\n\2    .*)*)", re.MULTILINE)


def _as_code(match):
    code, indent = match[1], match[2]
    return f"{indent}```pycon\n{code}\n{indent}```"


class Examples(griffe.Extension):
    """A docstring's `>>>` lines and what they print become a block of code."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_as_code, obj.docstring.value)
