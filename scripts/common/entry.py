"""The start of a script whose arguments are all flags."""

import sys

from absl import app


def run(main):
    """Calls `main` with the flags of the command line, as `absl.app.run` does.

    It ends with a message if an argument is not a flag, such as `epochs=3` without dashes.
    """

    def checked(argv):
        if argv[1:]:
            raise app.UsageError(f"An argument must be like --name=value. Received: {argv[1]}")
        return main(argv)

    # absl formats it with `%`, and would take the `% s` of "75 % sparse" for a place.
    module = sys.modules["__main__"]
    module.__doc__ = (module.__doc__ or "").replace("%", "%%")
    app.run(checked)
