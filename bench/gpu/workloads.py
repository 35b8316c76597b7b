"""What each operation is timed on: the sizes of the published set-up, and the bytes and operations that it needs.

A state of 69 x 128 x 256 with 1 % of the columns observed, latents of 69 x 32 x 64, a decoder of 2,048 tokens of 1,024
channels. Bytes are those that must move at least: every tensor once, of a gathered one the sectors that are touched.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from bench.cases.columns import columns
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
from lsda_fast.kernels.robust import Huber

__all__ = ["WORKLOADS", "Sizes", "Workload"]

SECTOR = 32  # bytes that a GPU reads at least


@dataclass(frozen=True)
class Sizes:
    """Members of states and of latents, and the rest."""

    members: int = 32
    latents: int = 128
    state: tuple[int, int, int] = (69, 128, 256)
    latent: tuple[int, int, int] = (69, 32, 64)
    tokens: int = 2048
    width: int = 1024
    rows: int = 1104
    heads: int = 16
    windows: tuple[tuple[int, int, int], ...] = ((6, 576, 6), (1, 2048, 0))  # of a member, their tokens, their biases

    @classmethod
    def dry(cls) -> "Sizes":
        """Tiny."""
        return cls(2, 2, (3, 8, 16), (3, 2, 4), 8, 16, 6, 2, ((2, 6, 2), (1, 8, 0)))


class Workload(NamedTuple):
    """A case, and what it moves and computes.

    Numbers of the case's precision, bytes of anything else, operations, and of a gather the bytes by those of a number.
    """

    what: str
    case: Case
    numbers: float
    bytes: float = 0
    flops: float = 0
    gathered: Callable[[int], float] = lambda itemsize: 0.0

    def moved(self, itemsize: int) -> float:
        """All bytes."""
        return self.numbers * itemsize + self.bytes + self.gathered(itemsize)


def _observe(product: str, s: Sizes, draw: Draw) -> Iterator[Workload]:
    index = columns(s.state, 0.01)[0].to(draw.device)
    (P, K), M, N = index.shape, s.members, math.prod(s.state)
    case = observe(product, draw, M, N, P, K, index=index)
    written = M * N if product == "adjoint" else 0
    gathered = (lambda itemsize: 0.0) if product == "adjoint" else partial(_touched, index, M)
    yield Workload(
        f"{M} x {P} observations", case, M * P + written + P * K, 4 * P * K, 2 * M * P * K, gathered=gathered
    )


def _residual(s: Sizes, draw: Draw) -> Iterator[Workload]:
    index = columns(s.state, 0.01)[0].to(draw.device)
    (P, K), M, N = index.shape, s.members, math.prod(s.state)
    for name, cost, tensors in (("gaussian", None, 2), ("huber", Huber(1.25), 3)):
        case = residual(cost, False, draw, M, N, P, K, index=index)
        numbers, gathered = M * tensors * P + P * (K + 2), partial(_touched, index, M)
        yield Workload(f"{M} x {P} observations, {name}", case, numbers, 4 * P * K, 2 * M * P * K, gathered=gathered)


def _touched(index: Tensor, members: int, itemsize: int) -> float:
    """Bytes of the sectors that a gather of each member's numbers reads, once each."""
    return float(members * SECTOR * len((index // (SECTOR // itemsize)).unique()))


def _head(product: str, s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, S, F, R = s.members, s.tokens, s.width, s.rows
    touched, wanted = max(1, S * 6 // 10), max(1, 44 * S)
    case = head(product, draw, M, S, F, 1, R, wanted, touched, last=True)
    moved = M * (wanted + F * (S if product == "adjoint" else touched)) + R * F
    yield Workload(f"{M} x {wanted} rows of {F}", case, moved, 12 * wanted, 2 * M * wanted * F)


def _vectors(make: Callable[..., Case], tensors: int, s: Sizes, draw: Draw) -> Iterator[Workload]:
    n = s.latents * math.prod(s.latent)
    yield Workload(f"{s.latents} x {math.prod(s.latent)}", make(draw, s.latents, *s.latent), tensors * n)


def _noise(s: Sizes, draw: Draw) -> Iterator[Workload]:
    size = math.prod(s.latent)
    yield Workload(f"{s.latents} x {size}", draws(draw, size, *range(s.latents)), s.latents * size)


def _norm(product: str, s: Sizes, draw: Draw) -> Iterator[Workload]:
    tensors = 2 if product == "value" else 3
    R, C = s.members * s.tokens, s.width
    yield Workload(f"{R} tokens of {C}", slices(product, draw, R, C, 1, 1, 1, 1, False), tensors * R * C)
    M, width, places = s.members, 8 * max(1, s.width // 256), s.state[1] * s.state[2]
    case = slices(product, draw, M, width, places, 8, 1, 1)
    yield Workload(f"{M} images of {places} x {width}, channels last", case, tensors * M * width * places)


def _convolve(product: str, s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, width, (H, W) = s.members, 16 * max(1, s.width // 512), s.state[1:]
    case = convolve(product, draw, M, width, width, 3, 8, True, True, (H, W, 1, 1, 1, 1, 0))
    tensors, places = (3 if product == "value" else 4), M * H * W
    name = f"{M} images of {H} x {W} x {width}"
    yield Workload(name, case, tensors * places * width + 9 * width**2, 0, 18 * places * width**2)


def _plain_convolve(adjoint: bool, s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, width, (H, W) = s.members, 16 * max(1, s.width // 512), s.state[1:]
    case = plain_convolve(adjoint, draw, M, width, width, 3, 1, True, False, (H, W, 1, 1, 1, 1, 0))
    places = M * H * W
    name = f"{M} images of {H} x {W} x {width}"
    yield Workload(name, case, 2 * places * width + 9 * width**2, 0, 18 * places * width**2)


def _restricted(s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, P = s.latents, len(columns(s.state, 0.01)[0])
    yield Workload(f"{M} x {P} observations", restricted(draw, M, P), M * (10 * (P + 1) + 2 * P))


def _solve(s: Sizes, draw: Draw) -> Iterator[Workload]:
    """Three iterations, two of them with a product."""
    M, modes, (C, rows, columns_) = s.members, s.heads * 8, s.latent
    P, C, waves = len(columns(s.state, 0.01)[0]), -(-C // 16) * 16, columns_ // 2 + 1
    case = solve(draw, M, P, rows, columns_, C, 9, modes, 3)
    numbers = M * (2 * rows * columns_ * C + 16 * P) + waves * modes * (2 * rows * C + modes)
    flops = M * (8 * rows * C * waves * (modes + columns_) + 4 * (2 * P + 1) * 9 * C)
    yield Workload(f"{M} x {P} observations", case, 2 * numbers, 0, 2 * flops)


def _shuffle(adjoint: bool, s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, C, F, (h, w) = s.members, 16 * max(1, s.width // 16), 16 * max(1, s.width // 512), s.latent[1:]
    p = s.state[1] // h
    case = shuffle(adjoint, draw, M, h, w, C, F, p)
    moved = M * h * w * (C + p * p * F) + p * p * F * C
    yield Workload(f"{M} x {h * w} patches of {p} x {p}", case, moved, 0, 2 * M * h * w * C * p * p * F)


def _zonal(adjoint: bool, s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, modes, (C, rows, columns) = s.members, s.heads * 8, s.latent
    C, waves = -(-C // 16) * 16, columns // 2 + 1
    case = zonal(adjoint, draw, M, rows, columns, C, modes, True)
    matrices = waves * modes * (2 * rows * C + modes)
    flops = 8 * M * rows * C * waves * (modes + columns)
    yield Workload(f"{M} x {rows * C} in {waves} wavenumbers", case, 2 * M * rows * C * columns + matrices, 0, flops)


def _pad(operation: Any, s: Sizes, draw: Draw) -> Iterator[Workload]:
    M, width, (H, W) = s.members, 8 * max(1, s.width // 256), s.state[1:]
    case = pad(operation, draw, M, H, W, width, 1, True, True, True, False)
    yield Workload(f"{M} images of {H} x {W} x {width}", case, 2 * M * width * H * W)


def _stream(product: str, s: Sizes, draw: Draw) -> Iterator[Workload]:
    R, C = s.members * s.tokens, s.width
    tensors = 4 if product == "value" else 5
    yield Workload(f"{R} tokens of {C}", stream(product, draw, R, C, 1, False), tensors * R * C)
    case = stream(product, draw, R, C, s.members)
    yield Workload(f"{R} tokens of {C}, gated", case, tensors * R * C)


def _windows(product: str, s: Sizes, draw: Draw) -> Iterator[Workload]:
    """Of a quarter of the members, which is long enough."""
    M, H, C = max(1, s.members // 4), s.heads, s.width
    # In (tokens, C): qkv, what comes in and what goes out; products of 2 L^2 C operations a window.
    tensors, products = {"value": (4, 2), "jvp": (8, 4), "vjp": (8, 4)}[product]
    for count, L, biases in s.windows:
        case = windows(product, draw, M * count, L, H, C // H, biases)
        flops = 2 * products * M * count * L * L * C
        name = f"{M * count} windows of {L} tokens, {'with' if biases else 'no'} bias"
        yield Workload(name, case, tensors * M * count * L * C + biases * L * L, 0, flops)


Maker = Callable[[Sizes, Draw], Iterator[Workload]]
WORKLOADS: dict[str, Maker] = {
    "adam_step": partial(_vectors, adam, 7),
    "cg_step": partial(_vectors, conjugate, 7),
    "gated_residual_norm": partial(_stream, "value"),
    "gated_residual_norm_jvp": partial(_stream, "jvp"),
    "gated_residual_norm_vjp": partial(_stream, "vjp"),
    "geo_conv": partial(_plain_convolve, False),
    "geo_conv_adjoint": partial(_plain_convolve, True),
    "geo_fold": partial(_pad, FOLD),
    "geo_pad": partial(_pad, PAD),
    "head_adjoint": partial(_head, "adjoint"),
    "head_project": partial(_head, "project"),
    "noise": _noise,
    "norm_conv": partial(_convolve, "value"),
    "norm_conv_jvp": partial(_convolve, "jvp"),
    "norm_conv_vjp": partial(_convolve, "vjp"),
    "norm_silu": partial(_norm, "value"),
    "norm_silu_jvp": partial(_norm, "jvp"),
    "norm_silu_vjp": partial(_norm, "vjp"),
    "obs_adjoint": partial(_observe, "adjoint"),
    "obs_project": partial(_observe, "project"),
    "obs_residual": _residual,
    "restricted_solve": _solve,
    "restricted_step": _restricted,
    "sampler_step": partial(_vectors, lambda draw, *shape: transition(draw, 2, 0.75, *shape), 3),
    "shuffle_adjoint": partial(_shuffle, True),
    "shuffle_product": partial(_shuffle, False),
    "window_attention": partial(_windows, "value"),
    "window_attention_jvp": partial(_windows, "jvp"),
    "window_attention_vjp": partial(_windows, "vjp"),
    "zonal_adjoint": partial(_zonal, True),
    "zonal_product": partial(_zonal, False),
}
