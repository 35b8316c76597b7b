"""A block of members on a CPU as a list of calls: what a CUDA graph is on a GPU.

A block is some hundred operations that compute, between thousands of views, allocations, ways through torch's
dispatcher, and lines of Python. A tape watches one run of it and writes down the calls that compute: native code with
addresses, torch's operations in the form that fills given memory. A replay makes these calls and nothing else.

- The results live in one piece of memory, in which storages share bytes where their lives do not overlap
  (``engine.arena``).
- The tensors of the analysis become copies of the recording's own; all else that the block reads is read where it is.
- What depends on no tensor of an analysis, such as the embeddings of the noise levels, is computed once, for as long as
  what it was computed from stays as it is.

The bits are those of the same block run one operation after the other. A block that lets the host read a value, or
brings one, or asks torch for random numbers, cannot be recorded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode

from lsda_fast.engine.arena import Arena, arranged
from lsda_fast.engine.watch import HostReadError, check_host, made_of_others
from lsda_fast.kernels import native
from lsda_fast.kernels.kept import state_of, unchanged
from lsda_fast.kernels.registry import OPERATIONS, Operation

__all__ = ["Replay", "Tape"]

_MOST = 20_000  # calls of a block, each a kilobyte; those of few levels have a thousand

# Memory without values.
_EMPTY = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
# The same number everywhere, whatever the tensor that they are like: the number, or the argument that says it.
_FILLED: dict[str, str | int] = {
    **{"new_full": "fill_value", "new_ones": 1, "new_zeros": 0},
    **{"full_like": "fill_value", "ones_like": 1, "zeros_like": 0},
}
# What shows the values of a tensor to whoever has no part in torch's dispatcher.
_SHOWN = ("numpy", "tolist", "data_ptr", "untyped_storage", "__array__", "__dlpack__")
# Copies: torch's forms of these that fill given memory copy twice.
_COPIES = ("clone", "_to_copy")


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor of a storage that is known by its number."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    conjugate: bool
    negative: bool


class _Call(NamedTuple):
    """What is called, with places for tensors; the storages that it reads or writes, and those that it writes."""

    name: str
    function: Callable[..., Any]
    arguments: Any
    keywords: Any
    touched: set[int]
    written: set[int]


class Tape(TorchDispatchMode):
    """Writes down the calls of a block that reads ``inputs``, on a CPU.

    Parameters
    ----------
    inputs : sequence of Tensor
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, to leave this class out of it

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.outside: dict[int, Tensor] = {}
        self.inputs = {_number(t): t.untyped_storage() for t in inputs}
        self.bytes = {number: storage.nbytes() for number, storage in self.inputs.items()}
        self._made: list[StorageWeakRef] = []  # as long as these live no number comes again
        self.inside = 0  # an operation of the package's own
        self._touched = set(self.inputs)
        self._read: set[int] = set()

    def record(self, block: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Run a block, and write it down.

        Raises
        ------
        HostReadError
            It cannot be recorded.
        """
        with _Reads(self), native.noted(self._note), self:
            return block()

    def place(self, value: Any) -> Any:
        """The place of a tensor of the analysis, or of the block's own; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        number = _number(value)
        if number not in self.bytes:
            self._read.add(number)
            self.outside[id(value)] = value
            return value
        layout = tuple(value.shape), value.stride(), int(value.storage_offset())
        return _Place(number, value.dtype, *layout, value.is_conj(), value.is_neg())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and write it down."""
        check_host(func, args)
        kwargs, name = kwargs or {}, func._schema.name.partition("::")[2]
        if func.namespace == "lsda" and OPERATIONS[name].choose(*args).implementation in ("cpu", "reference"):
            return self._operation(OPERATIONS[name], args)
        if made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.namespace != "profiler":
            self._write(func, name, _mapped(self.place, (args, kwargs)), result)
        return result

    def _operation(self, operation: Operation, args: tuple) -> Any:
        """One of the package's own, with what it is made of."""
        first = len(self.calls)
        self.inside += 1
        with self:
            result = operation.run(*args)
        self.inside -= 1
        outputs = {_number(t) for t in _leaves(result) if isinstance(t, Tensor)}
        for call in self.calls[first:]:
            call.written.update(outputs & call.touched)
        return result

    def _write(self, func: Any, name: str, given: tuple[tuple, dict], result: Any) -> None:
        args, kwargs = given
        made = [self._make(t) if isinstance(t, Tensor) else None for t in _leaves(result)]
        fresh = [place for place in made if place]
        if func._schema.is_mutable:
            changed = self._changed(func, args, kwargs)
            if fresh:
                self._add(name, partial(_copied, func), (made, *args), kwargs, [*fresh, *changed])
            else:
                self._add(name, func, args, kwargs, changed)
        elif name in _EMPTY or not fresh:  # memory alone, or a view
            return
        elif name in _FILLED:
            value = _named(func, args, kwargs).get(_FILLED[name], _FILLED[name])
            self._add(name, torch.ops.aten.fill_.Scalar, (fresh[0], value), {}, fresh)
        elif name in _COPIES:
            self._add(name, torch.ops.aten.copy_.default, (fresh[0], args[0]), {}, fresh)
        else:
            into, outs = _into(func)
            if into is None or len(outs) != len(fresh) or len(fresh) != len(made):
                self._add(name, partial(_copied, func), (made, *args), kwargs, fresh)
            else:
                self._add(name, into, args, kwargs | dict(zip(outs, fresh)), fresh)

    def _changed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[_Place]:
        """What an operation writes to, of what it is given."""
        values = _named(func, args, kwargs)
        into = [
            slot.name for slot in func._schema.arguments if slot.alias_info is not None and slot.alias_info.is_write
        ]
        found = [leaf for name in into for leaf in _leaves(values.get(name)) if leaf is not None]
        if any(isinstance(leaf, Tensor) or leaf.storage in self.inputs for leaf in found):
            raise RuntimeError(f"{func} writes to what a block was given; accepted: to what it has made")
        return found

    def _note(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Native code: operations are functional, so it writes to what no call has named before."""
        placed = _mapped(self.place, arguments)
        new = [place for place in _places(placed) if place.storage not in self._touched]
        self._add(f"lsda::{name}", function, placed, None, new)

    def _add(self, name: str, function: Any, args: Any, kwargs: Any, written: Sequence[_Place]) -> None:
        if len(self.calls) == _MOST:
            raise RuntimeError(f"a block of more than {_MOST} calls; accepted: shorter ones")
        touched = {place.storage for place in (*_places((args, kwargs)), *written)}
        self._touched |= touched
        self.calls.append(_Call(name, function, args, kwargs, touched, {place.storage for place in written}))

    def _make(self, t: Tensor) -> _Place | None:
        """The place of a result in memory that was not there before."""
        number, storage = _number(t), t.untyped_storage()
        if number in self.bytes or number in self._read:
            return None
        if t.device.type != "cpu" or t.layout != torch.strided:
            raise RuntimeError(f"a {t.layout} tensor on a {t.device.type} in a block; accepted: dense ones on a CPU")
        self._made.append(StorageWeakRef(storage))
        self.bytes[number] = storage.nbytes()
        return self.place(t)


class _Reads(TorchFunctionMode):
    """Refuses to show numpy, or whoever else, the values of a tensor past torch's operations."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call the function."""
        name = getattr(func, "__name__", "")
        if name in _SHOWN and not self._tape.inside:
            raise HostReadError(f"Tensor.{name} in a block of members; accepted: nothing that the host reads or brings")
        return func(*args, **(kwargs or {}))


class Replay:
    """The calls of a tape, bound to memory.

    Parameters
    ----------
    tape : Tape
    inputs, outputs : sequence of Tensor
        Of the run that it recorded.
    arena : Arena
        For the results.

    Attributes
    ----------
    inputs : list of Tensor
        The recording's own, which every replay reads.
    outputs : tuple of Tensor
        Which every replay fills.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, tape: Tape, inputs: Sequence[Tensor], outputs: Sequence[Tensor], arena: Arena) -> None:
        ends = [tape.place(t) for t in outputs]
        self._outside = list(tape.outside.values())
        state = state_of(self._outside)
        if state is None:
            raise RuntimeError("a block that reads inference tensors; accepted: tensors whose changes torch counts")
        self._state = state
        varying = _varying(tape)
        calls = [call for call in tape.calls if call.touched & varying]
        lives = _lives(calls, ends, varying - set(tape.inputs))
        begins, size = arranged({number: tape.bytes[number] for number in lives}, lives)
        self._memory = memory = _Memory(tape, arena.of(size), begins)
        for call in tape.calls:
            if not call.touched & varying:
                memory.bound(call)()
        self._calls = [(call.name, memory.bound(call)) for call in calls]
        self.inputs = [memory.tensor(tape.place(t)) for t in inputs]
        self.outputs = tuple(memory.tensor(end) for end in ends)

    @property
    def valid(self) -> bool:
        """Whether what was computed once is what it would be now."""
        return unchanged(self._state, self._outside)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Make the calls; under torch's profiler with their names."""
        if torch.autograd._profiler_enabled():
            for name, call in self._calls:
                with record_function(name):
                    call()
        else:
            for _, call in self._calls:
                call()


class _Memory:
    """What places are: tensors in an arena, of the analysis, or of what is computed once."""

    def __init__(self, tape: Tape, arena: torch.UntypedStorage, begins: Mapping[int, int]) -> None:
        self._bytes, self._begins = tape.bytes, begins
        self._storages = dict.fromkeys(begins, arena) | {n: s.clone() for n, s in tape.inputs.items()}
        self._tensors: dict[_Place, Tensor] = {}

    def tensor(self, value: Any) -> Any:
        """The tensor of a place; anything else as it is."""
        if not isinstance(value, _Place):
            return value
        if value not in self._tensors:
            self._tensors[value] = self._made(value)
        return self._tensors[value]

    def _made(self, place: _Place) -> Tensor:
        number, width = place.storage, place.dtype.itemsize
        last = sum((n - 1) * step for n, step in zip(place.size, place.stride))
        if 0 not in place.size and (place.offset + last + 1) * width > self._bytes[number]:
            raise RuntimeError(f"a storage of {self._bytes[number]} bytes that grew in a block; accepted: fixed ones")
        if number not in self._storages:
            self._storages[number] = torch.UntypedStorage(self._bytes[number])
        begin = self._begins.get(number, 0) // width + place.offset
        t = torch.empty(0, dtype=place.dtype).set_(self._storages[number], begin, place.size, place.stride)
        t = t.conj() if place.conjugate else t
        return torch._neg_view(t) if place.negative else t

    def bound(self, call: _Call) -> Callable[[], Any]:
        """The call, with its arguments."""
        arguments, keywords = _mapped(self.tensor, (call.arguments, call.keywords))
        if keywords is None:
            return native.bound(call.function, arguments)
        return partial(call.function, *arguments, **keywords)


def _varying(tape: Tape) -> set[int]:
    """The storages whose values are of an analysis."""
    varying, before = set(tape.inputs), 0
    while len(varying) > before:
        before = len(varying)
        for call in tape.calls:
            if call.touched & varying:
                varying |= call.written
    return varying


def _lives(calls: Sequence[_Call], ends: Sequence[Any], storages: set[int]) -> dict[int, tuple[int, int]]:
    """The first and the last call of each storage; what is put out lives on."""
    lives: dict[int, tuple[int, int]] = {}
    for moment, touched in enumerate((*(call.touched for call in calls), {place.storage for place in _places(ends)})):
        for number in touched & storages:
            lives[number] = (lives.get(number, (moment,))[0], moment)
    return lives


def _mapped(f: Callable[[Any], Any], value: Any) -> Any:
    """Arguments, with f of everything in them."""
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(f, part) for part in value])
    if isinstance(value, dict):
        return {name: _mapped(f, part) for name, part in value.items()}
    return f(value)


def _leaves(value: Any) -> list[Any]:
    """Everything in arguments or results."""
    found: list[Any] = []
    _mapped(found.append, value)
    return found


def _number(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _places(tree: Any) -> list[_Place]:
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, _Place)]


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Any, Any]:
    """An operation's arguments by name."""
    return {slot.name: value for slot, value in zip(func._schema.arguments, args)} | dict(kwargs)


@cache
def _into(func: Any) -> tuple[Any, list[str]]:
    """torch's form of an operation that fills given memory, with the names of its outputs; nothing where there is none.

    torch has one of every operation, but those of no kernel of their own compute elsewhere and copy.
    """
    asked = [(slot.name, str(slot.type)) for slot in func._schema.arguments]
    packet = func.overloadpacket
    for form in (getattr(packet, name) for name in packet.overloads()):
        slots = form._schema.arguments
        given = [(slot.name, str(slot.type)) for slot in slots if not slot.is_out]
        outs = [slot.name for slot in slots if slot.is_out]
        if outs and given == asked and torch._C._dispatch_has_kernel_for_dispatch_key(form.name(), "CPU"):
            return form, outs
    return None, []


def _copied(func: Any, outputs: Sequence[Tensor | None], *args: Any, **kwargs: Any) -> None:
    """An operation that has no such form."""
    for output, value in zip(outputs, _leaves(func(*args, **kwargs)), strict=True):
        if output is not None:
            output.copy_(value)
