"""What a run asks of memory and of the host, seen operation by operation, with values or without.

A storage counts from the operation that makes it to the end of its life; the peak is the largest sum. The scratch that
an operation takes and gives back inside is not seen, but for operations of this package that run in plain torch: those
are seen through. A strict watch refuses what a captured graph cannot do: let the host read a value, or bring one.

Without values (``values_aside``) every operation answers with the shape of its result alone: the peak is known before
anything is computed.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lsda_fast.kernels.registry import OPERATIONS

__all__ = ["HostReadError", "Watch", "check_host", "made_of_others", "values_aside"]

_CUDA_STEP = 512  # bytes that torch's allocator rounds up to

# A value that the host brings while the operations run.
_BROUGHT = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class HostReadError(RuntimeError):
    """The host reads or brings a value in what is to be captured."""


def check_host(func: Any, args: tuple) -> None:
    """HostReadError where an operation lets the host read a value, brings one, or is another when it is repeated."""
    if torch.Tag.data_dependent_output in func.tags or func in _BROUGHT:
        raise HostReadError(f"{func} in a block of members; accepted: nothing that the host reads or brings")
    # Attention is said to draw numbers, which it does where it drops any.
    drops = any(slot.name == "dropout_p" for slot in func._schema.arguments)
    if torch.Tag.nondeterministic_seeded in func.tags and not drops:
        raise HostReadError(f"{func} in a block of members; accepted: no random numbers but those of its key")
    # To index is said to have a shape that depends on values, which it has where places are marked.
    marks = func is not torch.ops.aten.index.Tensor or any(
        isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in args[1]
    )
    if torch.Tag.dynamic_output_shape in func.tags and marks:
        raise HostReadError(f"{func} in a block of members; accepted: results whose shape depends on no value")


def check_place(func: Any, read: list[Any], made: list[Any]) -> None:
    """HostReadError for what goes from a device to another; the host's scalars are arguments, but of copies."""
    places = {t.device.type for t in read if isinstance(t, Tensor) and (t.dim() or func in _COPIES)}
    places |= {t.device.type for t in made if isinstance(t, Tensor)}
    places.discard("meta")  # what has no values: shapes, seen without any
    if len(places) > 1:
        raise HostReadError(
            f"{func} between {' and '.join(sorted(places))} in a block of members; accepted: one device"
        )


def made_of_others(func: Any) -> bool:
    """Of torch's operations one (contiguous, reshape) that comes whole below autograd, and may make memory or not."""
    return func.namespace == "aten" and func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


class Watch(TorchDispatchMode):
    """Bytes on one device, and, when ``strict``, no traffic with the host.

    Parameters
    ----------
    device : torch.device
    strict : bool

    Attributes
    ----------
    live, peak : int
        Bytes that were made under the watch: now, and at most.
    outside : list of Tensor
        What was read and not made here, in the order of first use.
    """

    def __init__(self, device: torch.device, *, strict: bool = False) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.outside: list[Tensor] = []
        self._device, self._strict = device.type, strict
        self._made: dict[int, weakref.ref] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and book its results."""
        leaves = tree_leaves((args, kwargs))
        if self._strict:
            check_host(func, args)
        self._read(leaves)
        operation = OPERATIONS.get(func._schema.name.removeprefix("lsda::"))
        if func.namespace == "lsda" and operation and operation.choose(*args).implementation == "reference":
            with self:
                return operation.reference(*args)
        if made_of_others(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if self._strict:
            check_place(func, leaves, tree_leaves(result))
        for value, slot in zip(_slots(result), func._schema.returns):
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor):
                    self._book(tensor, alias=slot.alias_info is not None)
        return result

    def _read(self, values: list[Any]) -> None:
        for tensor in values:
            if isinstance(tensor, Tensor):
                self._from_outside(tensor)

    def _from_outside(self, tensor: Tensor) -> None:
        number = tensor.untyped_storage()._cdata
        if number not in self._made and number not in self._known:
            self._known.add(number)
            self.outside.append(tensor)

    def _book(self, tensor: Tensor, alias: bool) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if alias:
            self._from_outside(tensor)
        if number in self._made or number in self._known:
            return
        size = storage.nbytes() if tensor.device.type == self._device else 0
        if self._device == "cuda":
            size = -(-size // _CUDA_STEP) * _CUDA_STEP

        def freed(_: Any) -> None:
            self.live -= size
            del self._made[number]

        self._made[number] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def _slots(result: Any) -> Any:
    return result if isinstance(result, tuple) else (result,)


@contextmanager
def values_aside() -> Iterator[None]:
    """Operations make shapes and no values in this block; tensors from outside are taken for theirs."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        yield
