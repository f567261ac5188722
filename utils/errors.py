"""The one error a user is shown without a traceback."""


class UserError(ValueError):
    """Bad input, told in full by its message: the file or key, the value, the constraint and the remedy."""


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
