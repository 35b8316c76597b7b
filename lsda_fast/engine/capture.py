"""One CUDA graph, captured on a given stream into a given pool; a capture that fails leaves both behind it.

torch ends a capture on the way out of its context. Where that fails too, as it does once something forbidden was asked
for, the capture's stream stays the current one and its pool counts as being captured into, for which every later
``empty_cache`` and capture of the process would raise.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["captured", "warm_up"]


def warm_up(call: Callable[[], Any], stream: torch.cuda.Stream) -> None:
    """The call, once, on the stream that it is to be captured on."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)


def captured(call: Callable[[], Any], stream: torch.cuda.Stream, pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of a call on the current device, and what the call returned.

    Another thread may go on with its own work meanwhile. A pool of which a capture failed is not to be used again.

    Raises
    ------
    Exception
        Whatever the call raised; else why there is no capture.
    """
    before, causes = torch.cuda.current_stream(), []
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                outputs = call()
            except BaseException as error:
                causes.append(error)
                raise
    except BaseException as error:
        _abandon(before, pool)
        # Not what the end of the capture says of it.
        raise (causes or [error])[0] from None
    return graph, outputs


def _abandon(before: torch.cuda.Stream, pool: Any) -> None:
    torch.cuda.set_stream(before)
    device: int = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        return  # torch came as far itself, and the graph gives the pool back
    torch._C._cuda_releasePool(device, pool)
