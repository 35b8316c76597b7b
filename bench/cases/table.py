"""The sizes at which every native operation is held to its reference: one table, by operation and by what is special.

The tests go through all of it on the CPU, and ``bench.gpu`` on a GPU. An operation of the registry that is not here
is an error in both.
"""

from collections.abc import Callable, Sequence
from functools import partial

from bench.cases.operation import (
    Case,
    Draw,
    adam,
    conjugate,
    convolve,
    draws,
    head,
    observe,
    pad,
    plain_convolve,
    residual,
    restricted,
    shuffle,
    slices,
    solve,
    stream,
    transition,
    windows,
    zonal,
)
from lsda_fast.kernels.geo_pad import FOLD, PAD
from lsda_fast.kernels.robust import Huber, VariationalQC

__all__ = ["CASES", "WINDOWS"]

# M, N, P, K, and the cells that the observations keep to
_OBSERVED: dict[str, tuple] = {
    "one of each": (1, 1, 1, 1),
    "no observation": (3, 70, 0, 4),
    "one observation": (5, 300, 1, 4),
    "no member": (0, 50, 20, 4),
    "a few hundred": (5, 300, 570, 3),
    "forty at one cell": (2, 30, 40, 2, 1),
    "a typical set": (4, 9001, 3001, 4),
    "two levels": (3, 20000, 700, 8),
    "many members": (65, 2049, 513, 4),
    "dense": (2, 300, 4000, 3),
    "more than a block": (2, 5000, 17000, 2),
    "all at one cell": (2, 5000, 1500, 2, 1),
}
# M, S, F, T, R, U, and the places that the rows keep to
_HEADS: dict[str, tuple] = {
    "one of each": (1, 1, 1, 1, 1, 1),
    "no row": (3, 70, 5, 9, 4, 0),
    "one row": (5, 90, 32, 9, 4, 1),
    "no member": (0, 50, 8, 1, 4, 20),
    "convolution, scattered": (4, 600, 24, 9, 12, 150),
    "convolution, columns and duplicates": (4, 600, 24, 9, 12, 900, 30),
    "tokens": (3, 40, 130, 1, 96, 700),
    "many members": (37, 60, 17, 9, 5, 50),
}
_VECTORS: tuple[tuple[int, ...], ...] = (
    (0, 3), (1, 1), (3, 2, 5, 7), (2, 1030), (2, 4096), (3, 9001), (70, 33)
)  # fmt: skip
_LATENTS = ((0, 4), (2, 1), (3, 5, 7), (2, 1026), (2, 4096), (5, 8193))
# R, C, S, groups, channels last, A, silu, mean
_SLICES: dict[str, tuple] = {
    "tokens": (11, 160, 1, 1, 1, 11),
    "tokens without silu": (11, 160, 1, 1, 1, 11, False),
    "tokens of a few channels": (37, 7, 1, 1, 1, 1),
    "more than a block of tokens": (50, 301, 1, 1, 1, 5, False),
    "wide tokens": (3, 1500, 1, 1, 1, 3),
    "planes": (3, 24, 35, 4, 0, 1),
    "planes without silu": (3, 24, 35, 4, 0, 1, False),
    "planes with modulation": (4, 6, 300, 3, 0, 4),
    "planes of more than a block": (2, 8, 1501, 2, 0, 1, False),
    "one place": (20, 24, 1, 3, 0, 1),
    "channels last": (3, 24, 35, 4, 1, 3),
    "channels last without silu": (3, 24, 35, 4, 1, 3, False),
    "one group, channels last": (2, 17, 50, 1, 1, 1),
    "many channels last": (2, 1100, 6, 4, 1, 1, False),
    "no member": (0, 24, 35, 4, 0, 1),
    "no place": (2, 24, 0, 4, 1, 1),
}
# The same with images: rows, columns and margin; periodic, north, south, torus
_IMAGES: dict[str, tuple] = {
    f"{label}, {layout}": (R, C, image[0] * image[1], groups, last, A, silu, 0.0, image)
    for layout, last in (("channels last", 1), ("planes", 0))
    for label, R, C, groups, A, silu, image in (
        ("the globe", 3, 24, 4, 3, True, (5, 8, 1, 1, 1, 1, 0)),
        ("a wide margin, odd columns", 2, 6, 3, 1, False, (4, 7, 3, 1, 1, 1, 0)),
        ("one pole", 2, 8, 1, 1, True, (6, 8, 2, 1, 0, 1, 0)),
        ("a region", 2, 6, 2, 1, True, (5, 7, 2, 0, 1, 1, 0)),
        ("a torus", 2, 12, 2, 2, True, (3, 6, 1, 1, 1, 1, 1)),
        ("images of more than a block", 2, 40, 8, 1, True, (20, 31, 1, 1, 1, 1, 0)),
        ("many channels", 1, 1100, 4, 1, True, (2, 3, 1, 1, 1, 1, 0)),
        ("no image", 0, 6, 2, 1, True, (5, 7, 1, 1, 1, 1, 0)),
    )
}
_FAR = {
    f"{label}, mean far from zero": (*_SLICES[label][:6], True, 256.0)
    for label in ("tokens", "planes", "channels last")
}
# R, C, D, k, groups, silu, with what is added, image as above
_CONVOLUTIONS: dict[str, tuple] = {
    "the globe": (3, 16, 32, 3, 4, True, True, (5, 8, 1, 1, 1, 1, 0)),
    "odd columns, nothing added": (2, 48, 16, 3, 8, False, False, (4, 7, 1, 1, 1, 1, 0)),
    "even rows and columns": (3, 32, 48, 3, 4, True, True, (6, 10, 1, 1, 1, 1, 0)),
    "an even region": (2, 16, 32, 3, 2, True, True, (4, 6, 1, 0, 1, 1, 0)),
    "an even torus, nothing added": (5, 16, 16, 3, 2, False, False, (4, 6, 1, 1, 1, 1, 1)),
    "many channels": (2, 96, 96, 3, 8, True, True, (12, 24, 1, 1, 1, 1, 0)),
    "a wide window": (2, 16, 48, 5, 2, True, True, (6, 10, 2, 1, 1, 1, 0)),
    "one pole": (2, 16, 16, 3, 1, True, False, (6, 8, 1, 1, 0, 1, 0)),
    "a region": (2, 16, 16, 5, 2, True, True, (5, 13, 2, 0, 1, 1, 0)),
    "a torus": (4, 32, 16, 3, 2, True, True, (3, 6, 1, 1, 1, 1, 1)),
    "one row": (2, 16, 16, 3, 2, True, True, (1, 6, 1, 1, 1, 1, 0)),
    "no image": (0, 16, 16, 3, 2, True, True, (5, 7, 1, 1, 1, 1, 0)),
}
# M, rows, columns, channels, features, patch
_SHUFFLES: dict[str, tuple] = {
    "patches": (3, 4, 5, 32, 16, 4),
    "one place": (2, 1, 1, 16, 8, 2),
    "no patches": (2, 3, 7, 16, 48, 1),
    "no member": (0, 3, 4, 16, 16, 2),
}
# M, rows, columns, channels, modes, middle a matrix
_ZONAL: dict[str, tuple] = {
    "a factor": (3, 4, 10, 16, 32, False),
    "a matrix": (3, 4, 10, 16, 32, True),
    "one member": (1, 2, 6, 48, 16, True),
    "many members": (37, 3, 4, 16, 16, False),
    "no member": (0, 3, 4, 16, 16, True),
}
# M, P, rows, columns, channels, taps, modes, iterations
_SOLVES: dict[str, tuple] = {
    "one iteration": (2, 11, 3, 4, 16, 1, 16, 1),
    "no iteration": (2, 11, 3, 4, 16, 1, 16, 0),
    "a few": (4, 40, 4, 6, 16, 9, 32, 4),
    "one member": (1, 7, 2, 6, 32, 3, 16, 3),
    "no member": (0, 7, 2, 6, 16, 3, 16, 3),
    "no observation": (2, 0, 2, 6, 16, 3, 16, 3),
    "more than a block": (3, 9001, 3, 4, 16, 1, 16, 2),
}
# R, H, W, C, n; periodic, north, south, torus
_PADS: dict[str, tuple] = {
    "planes of the globe": (5, 7, 12, 1, 1, True, True, True, False),
    "channels last": (3, 8, 10, 24, 1, True, True, True, False),
    "a wide margin, odd columns": (2, 4, 7, 3, 3, True, True, True, False),
    "one pole": (2, 6, 8, 5, 2, True, False, True, False),
    "a band": (3, 5, 6, 4, 1, True, False, False, False),
    "a region": (2, 5, 7, 6, 2, False, True, True, False),
    "one row": (3, 1, 6, 2, 1, True, False, False, False),
    "more than a block": (2, 70, 130, 33, 1, True, True, True, False),
    "no member": (0, 4, 6, 3, 1, True, True, True, False),
    "a torus": (3, 5, 8, 6, 2, True, True, True, True),
}
# R, C, A, with a gate
_STREAMS: dict[str, tuple] = {
    "tokens": (11, 160, 11),
    "tokens without gate": (11, 160, 1, False),
    "many tokens": (1152, 37, 4),
    "wide tokens": (7, 1500, 1, False),
    "no token": (0, 8, 1),
}
# Windows, tokens, heads, width, windows of the bias.
WINDOWS: dict[str, tuple[int, int, int, int, int]] = {
    "plain": (3, 50, 2, 64, 0),
    "one bias for all": (3, 50, 2, 64, 1),
    "a bias for each, several tiles": (6, 144, 2, 64, 3),
    "odd width": (6, 7, 3, 5, 3),
    "wide heads": (2, 70, 2, 128, 2),
    "one token": (4, 1, 1, 8, 2),
    "no window": (0, 5, 2, 4, 3),
}


def _table(make: Callable[..., Case], sizes: dict[str, tuple]) -> dict[str, Callable[[], Case]]:
    return {label: lambda size=size: make(Draw(), *size) for label, size in sizes.items()}  # type: ignore[misc]


def _by_shape(shapes: Sequence[tuple[int, ...]]) -> dict[str, tuple]:
    return {" x ".join(map(str, shape)): shape for shape in shapes}


_TRANSITIONS = {
    f"{count} terms, noise {noise:g}, {label}": (count, noise, *shape)
    for count in range(1, 5)
    for noise in (0.0, 0.75)
    for label, shape in _by_shape(_LATENTS).items()
}
_NOISE = {str(size): (size, 0, 17, 2**32 - 1, 2**32 + 17) for size in (1, 3, 4, 127, 1025, 4097)}

# The makers of each operation's cases, by name.
CASES: dict[str, dict[str, Callable[[], Case]]] = {
    "adam_step": _table(adam, _by_shape(_VECTORS)),
    "cg_step": _table(conjugate, _by_shape(_VECTORS)),
    "gated_residual_norm": _table(partial(stream, "value"), _STREAMS),
    "gated_residual_norm_jvp": _table(partial(stream, "jvp"), _STREAMS),
    "gated_residual_norm_vjp": _table(partial(stream, "vjp"), _STREAMS),
    "geo_conv": _table(partial(plain_convolve, False), _CONVOLUTIONS),
    "geo_conv_adjoint": _table(partial(plain_convolve, True), _CONVOLUTIONS),
    "geo_fold": _table(partial(pad, FOLD), _PADS),
    "geo_pad": _table(partial(pad, PAD), _PADS),
    "head_adjoint": {},
    "head_project": {},
    "noise": _table(draws, _NOISE),
    "norm_conv": _table(partial(convolve, "value"), _CONVOLUTIONS),
    "norm_conv_jvp": _table(partial(convolve, "jvp"), _CONVOLUTIONS),
    "norm_conv_vjp": _table(partial(convolve, "vjp"), _CONVOLUTIONS),
    "norm_silu": _table(partial(slices, "value"), _SLICES | _IMAGES | _FAR),
    "norm_silu_jvp": _table(partial(slices, "jvp"), _SLICES | _IMAGES),
    "norm_silu_vjp": _table(partial(slices, "vjp"), _SLICES | _IMAGES),
    "obs_adjoint": _table(partial(observe, "adjoint"), _OBSERVED),
    "obs_project": _table(partial(observe, "project"), _OBSERVED),
    "obs_residual": {},
    "restricted_solve": _table(solve, _SOLVES),
    "restricted_step": _table(restricted, _by_shape(((0, 3), (1, 5), (3, 40), (70, 33), (2, 9001)))),
    "sampler_step": _table(transition, _TRANSITIONS),
    "shuffle_adjoint": _table(partial(shuffle, True), _SHUFFLES),
    "shuffle_product": _table(partial(shuffle, False), _SHUFFLES),
    "window_attention": _table(partial(windows, "value"), WINDOWS),
    "window_attention_jvp": _table(partial(windows, "jvp"), WINDOWS),
    "window_attention_vjp": _table(partial(windows, "vjp"), WINDOWS),
    "zonal_adjoint": _table(partial(zonal, True), _ZONAL),
    "zonal_product": _table(partial(zonal, False), _ZONAL),
}
for _name, _cost in {"gaussian": None, "huber": Huber(1.25), "varqc": VariationalQC(0.02, 4.0)}.items():
    for _bare in (False, True):
        _sizes = {f"{label}, {_name}{', bare' if _bare else ''}": size for label, size in _OBSERVED.items()}
        CASES["obs_residual"] |= _table(partial(residual, _cost, _bare), _sizes)
for _product in ("adjoint", "project"):
    for _last in (0, 1):
        _sizes = {f"{label}, features {'last' if _last else 'first'}": size for label, size in _HEADS.items()}
        CASES[f"head_{_product}"] |= _table(partial(head, _product, last=_last), _sizes)
