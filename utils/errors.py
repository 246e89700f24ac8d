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
