"""Networks through the fused operations: the same values and first derivatives, the same weights."""

import copy
from collections import Counter

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.models import (
    ConvolutionalAutoencoder,
    EnsembleDenoiser,
    Forecaster,
    ResidualAutoencoder,
    TransformerDenoiser,
    ViTAutoencoder,
)
from lsda_fast.models.fused import fused
from lsda_fast.prior import Linearization

SHAPE, LATENT = (3, 8, 16), (4, 4, 8)
LEVEL = Schedule.edm().level(0.5)
EVERY_NORM = {"norm_silu", "gated_residual_norm"}
CONVOLUTIONS = {"norm_silu", "geo_pad"}
TRANSFORMER = {*EVERY_NORM, "window_attention"}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shaken(module):
    """Double precision, and every zero gone: an initial zero would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.double().eval().requires_grad_(False)


def convolutional():
    return ConvolutionalAutoencoder(SHAPE, 4, patch=2, width=16, depth=2, fine_width=8, poles=(True, False))


def vit():
    return ViTAutoencoder(
        shape=SHAPE,
        latent_channels=4,
        patch=(2, 2),
        width=16,
        depth=4,
        heads=2,
        windows=[[2, 4], [3, 3]],
        global_every=4,
        periodic=True,
    )


def denoise(model, z):
    return model(z, LEVEL, z.flip(-1).detach())


def transformer(**settings):
    return lambda: TransformerDenoiser(**{"latent_shape": LATENT, "width": 16, "depth": 2, "heads": 2, **settings})


CASES = {
    "convolutional decoder": (convolutional, lambda m, z: m.decode(z), LATENT, CONVOLUTIONS),
    "convolutional encoder": (convolutional, lambda m, x: m.encode(x), SHAPE, CONVOLUTIONS),
    "residual decoder": (
        lambda: ResidualAutoencoder(
            linear={"shape": SHAPE, "latent_channels": 4, "patch": (2, 2)},
            residual={"name": "convolutional", "shape": SHAPE, "latent_channels": 4, "patch": 2, "width": 16},
        ),
        lambda m, z: m.decode(z),
        LATENT,
        CONVOLUTIONS,
    ),
    "vit decoder": (vit, lambda m, z: m.decode(z), LATENT, TRANSFORMER),
    "vit encoder": (vit, lambda m, x: m.encode(x), SHAPE, TRANSFORMER),
    "denoiser": (transformer(), denoise, LATENT, TRANSFORMER),
    "denoiser with cross-attention": (transformer(conditioning="cross_attention"), denoise, LATENT, TRANSFORMER),
    "denoiser of one token": (transformer(latent_shape=(6, 1, 1)), denoise, (6, 1, 1), EVERY_NORM),
    "denoisers": (
        lambda: EnsembleDenoiser(2, latent_shape=LATENT, width=16, depth=1, heads=2, leading=2),
        denoise,
        LATENT,
        TRANSFORMER,
    ),
    "forecaster": (
        lambda: Forecaster(SHAPE, width=8),
        lambda m, x: m(x, x[:, 0, 0, :4]),
        SHAPE,
        CONVOLUTIONS,
    ),
}


@pytest.mark.parametrize(("make", "run", "shape", "operations"), CASES.values(), ids=CASES)
def test_values_and_first_derivatives_are_the_same(make, run, shape, operations):
    torch.manual_seed(0)
    module = shaken(make())
    twin = fused(module)
    x, v = draw(2, *shape), draw(2, *shape, seed=1)
    y, pull = torch.func.vjp(lambda x: run(module, x), x)
    u = draw(*y.shape, seed=2)
    with kernels.trace() as taken:
        found = run(twin, x)
    assert {choice.operation for choice in taken} == operations
    torch.testing.assert_close(found, y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.func.vjp(lambda x: run(twin, x), x)[1](u), pull(u), rtol=1e-10, atol=1e-10)
    tangents = [torch.func.jvp(lambda x, m=m: run(m, x), (x,), (v,))[1] for m in (module, twin)]
    torch.testing.assert_close(tangents[1], tangents[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [convolutional, vit, transformer()], ids=["convolutional", "vit", "denoiser"])
def test_weights_are_shared_and_the_module_is_left_as_it_was(make):
    module = make()
    before = copy.deepcopy(module)
    twin = fused(module)
    assert str(module) == str(before)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in module.parameters()}
    twin.double()
    assert all(p.dtype == torch.float64 for p in module.parameters())


def test_a_whole_jacobian_of_the_denoiser():
    torch.manual_seed(0)
    module = shaken(transformer(latent_shape=(2, 2, 3))())
    x = draw(2, 2, 2, 3)
    plain, fast = (
        Linearization.of(lambda z, m=m: denoise(m, z), x, Counter(), "denoiser").jacobian()
        for m in (module, fused(module))
    )
    torch.testing.assert_close(fast, plain)
