"""The one exception for wrong input: run.py prints its message on one line of stderr and exits with 2."""


class InputError(Exception):
    """The user's input is wrong: a file, an option, a checkpoint.

    The message is one line that names the file or option, what was expected, what was found and what to do.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
