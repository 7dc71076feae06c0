"""The start of a script whose arguments are all flags."""

from absl import app


def run(main):
    """Calls `main` with the flags of the command line, as `absl.app.run` does.

    It ends with a message if an argument is not a flag, such as `epochs=3` without dashes.
    """

    def checked(argv):
        if argv[1:]:
            raise app.UsageError(f"An argument must be like --name=value. Received: {argv[1]}")
        return main(argv)

    app.run(checked)
