"""The one exception for wrong input: run.py prints its message on one line of stderr and exits with 2.

Some refusals of the system count as wrong input, too.
"""
import errno

# Of a write, for a reason that the user can mend.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
           errno.EEXIST, errno.ENAMETOOLONG)


class InputError(Exception):
    """The user's input is wrong: a file, an option, a checkpoint.

    The message is one line that names the file or option, what was expected, what was found and what to do.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def line_for_user(error: Exception) -> str | None:
    """What the user is told of an error that is the user's to mend: wrong input, a refusal of the system, a missing package. None
    for our own bugs."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = error.filename2 or error.filename or "the output folder"
        return (f"{where}: {error.strerror}; what was finished is kept: make room there or choose another place for the output, "
                "and run again")
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in ("options", "src", "datasets", "utils"):
        return f"package {error.name} is not there; run ./scripts/setup.sh once, and then .venv/bin/python run.py ..."
    return None
