"""The errors that a user can meet, and the exit code of the command line that goes with each."""

__all__ = ["InputError", "NonFiniteError"]


class InputError(ValueError):
    """Bad input: the message says in one sentence what came and what is accepted. Exit code 2."""


class NonFiniteError(RuntimeError):
    """Members that came out non-finite, named by number; nothing is written. Exit code 4."""
