"""The two ways a command ends early that are not bugs."""


class UsageError(ValueError):
    """Bad input: one sentence that names the value, the limit and the way out. The command line exits with 2."""


class RunFailed(RuntimeError):
    """The work itself failed for a reason the user can act on (disk full, too many broken images). Exits with 1."""
