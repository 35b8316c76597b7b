"""A second device, ``elsewhere``: tensors that lie on the CPU and say that they do not.

Nothing that mixes them with the CPU's own is forgiven, but for what torch itself takes from the host: scalars, indices
and copies. So a machine without a GPU shows whether all of an analysis or a training goes where it is sent.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "elsewhere"
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Elsewhere(Tensor):
    """A tensor of the second device, and what holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        # The shell knows of no lazy conjugation or negation.
        held = held.resolve_conj().resolve_neg()
        strides, offset = held.stride(), held.storage_offset()
        shell: Any = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=strides, storage_offset=offset, dtype=held.dtype, device=torch.device(NAME, 0)
        )
        shell.held = held
        return shell

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, kwargs or {})

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.tolist()


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation, on whichever of the two devices its tensors are."""
    name, tensors = func._schema.name, [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    if there and name not in COPIES:
        indices = args[1] if name in INDEXING else ()
        here = [
            tuple(t.shape)
            for t in tensors
            if not isinstance(t, Elsewhere) and t.dim() and all(t is not index for index in indices)
        ]
        if here:
            raise RuntimeError(f"{func} of tensors {here} on the CPU and {[tuple(t.shape) for t in there]} elsewhere")
    device = kwargs.get("device")
    stays = bool(there) if device is None else torch.device(device).type == NAME
    if name == "aten::copy_":
        stays = isinstance(args[0], Elsewhere)
    if name == "aten::_efficientzerotensor":  # zeros that are known to be such: the shell would forget it
        func = torch.ops.aten.zeros.default
    own_args, own_kwargs = tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs))
    if stays and device is not None:
        own_kwargs["device"] = torch.device("cpu")
    result = func(*own_args, **own_kwargs)
    if not stays:
        return result
    result = tree_map_only(Tensor, Elsewhere, result)
    return result if func.namespace == "lsda" else return_and_correct_aliasing(func, args, kwargs, result)


class Operations(TorchDispatchMode):
    """Sees what makes tensors from none, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, kwargs or {})


class FromLists(TorchFunctionMode):
    """``torch.tensor`` goes past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = dict(kwargs or {})
        device = options.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == NAME:
            del options["device"]
            return (args[0].to(**options) if isinstance(args[0], Elsewhere) else func(*args, **options)).to(device)
        return func(*args, **options)


class Module:
    """What torch asks of the module of a device."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda *_: torch.get_rng_state())
    set_rng_state = manual_seed = manual_seed_all = staticmethod(lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    """The device, by its name, in this process for good."""
    # Experimental: the rest of the tests can do without.
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())


@pytest.fixture
def there() -> Iterator[Callable[[], str]]:
    """Brings the device, from the call on, and says its name."""
    with ExitStack() as stack:

        def bring() -> str:
            torch.__future__.set_overwrite_module_params_on_conversion(True)
            stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
            stack.enter_context(FromLists())
            stack.enter_context(Operations())
            return NAME

        yield bring
