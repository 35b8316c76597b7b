"""Sizes rounded up, so that few different ones come."""

__all__ = ["bucket"]

_LEAST = 16


def bucket(size: int, parts: int = 2) -> int:
    """The smallest that holds ``size``, of 16 and of 2^k (1 + i / parts), at least 8 apart, above it; 0 for 0.

    At most one in ``parts`` is filled up (of 8 parts from 64 on); 16, 24, 32, 48, 64, 96, ... with two.
    """
    if size <= _LEAST:
        return _LEAST if size else 0
    power = 1 << ((size - 1).bit_length() - 1)
    step = max(power // parts, _LEAST // 2)
    return -(-size // step) * step
