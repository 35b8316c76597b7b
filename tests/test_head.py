"""Observing through a decoder's head: the same as decoding the whole state and observing that, with its derivatives."""

import gc
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from lsda_fast.demo import built_in_package
from lsda_fast.models import IdentityAutoencoder, build_autoencoder
from lsda_fast.models.decoder_derivatives import feature_derivatives
from lsda_fast.models.head import Head
from lsda_fast.models.layers import GeoConv2d
from lsda_fast.models.observed import HeadedDecoder, headed_decode
from lsda_fast.models.precision import lowered
from lsda_fast.models.tangent import Increments, PatchTangent
from lsda_fast.observations.operators import ObservationOperator, StackedOperator, StencilOperator
from lsda_fast.prior import Derivative, Differentiable, Linearization, Scaling, observe

SHAPE = (3, 8, 12)
LATENT = (5, 4, 6)
LINEAR = {"shape": SHAPE, "latent_channels": 5, "patch": (2, 2)}
CONVOLUTION = {"shape": SHAPE, "latent_channels": 5, "patch": 2, "width": 16, "depth": 1, "fine_width": 8}


def convolution(**edges):
    return {"name": "convolutional", **CONVOLUTION, **edges}


MODELS = {
    "3 x 3, global": convolution(periodic=True, poles=(True, True)),
    "3 x 3, one pole": convolution(periodic=True, poles=(False, True)),
    "3 x 3, region": convolution(periodic=False),
    "un-patchify": {
        "name": "vit",
        "shape": SHAPE,
        "latent_channels": 5,
        "patch": (2, 2),
        "width": 16,
        "depth": 1,
        "heads": 2,
        "windows": [(2, 3)],
        "global_every": 1,
        "periodic": True,
    },
    "components of patches": {"name": "linear", **LINEAR},
    "components of the domain": {"name": "linear", "shape": SHAPE, "latent_channels": 5},
    "residual": {"name": "residual", "linear": LINEAR, "residual": convolution(periodic=True)},
    "multimodal": {
        "name": "multimodal",
        "linear": LINEAR,
        "residual": convolution(periodic=True),
        "modalities": {"all": {"channels": [0, 1, 2]}, "other": {"channels": 2}},
        "units": [1.0, 8.0, 0.5],
    },
    "5 x 5, global": {"name": "slams", "shape": SHAPE},
}


def model(settings, dtype=torch.float64):
    torch.manual_seed(0)
    built = build_autoencoder(**settings)
    with torch.no_grad():
        for tensor in (*built.parameters(), *built.buffers()):
            if tensor.ndim:
                tensor.copy_(torch.randn(tensor.shape) / max(1, tensor[0].numel()) ** 0.5)
        for layer in built.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.abs_()
    return built.to(dtype).requires_grad_(False).eval()


class OneByOne(nn.Module):
    """A decoder that ends in a 1 x 1 convolution."""

    def __init__(self):
        super().__init__()
        self.latent_shape = (5, *SHAPE[1:])
        self.inner, self.last = nn.Conv2d(5, 7, 1), GeoConv2d(7, 3, 1, periodic=True)

    def decode(self, z):
        return self.last(*self.features(z))

    def features(self, z):
        return (self.inner(z).tanh(),)

    def heads(self):
        return (Head.of_convolution(self.last, SHAPE),)


ITSELF = Differentiable(lambda z: z, lambda z: Derivative(z, lambda v: v, lambda u: u, lambda u: u))


def headed(decoder, products=False):
    return HeadedDecoder(decoder, ITSELF, products)


def stencil(dtype=torch.float64, size=30, K=4):
    """Stencils anywhere, poles and date line included; some points are absent, some observations twice."""
    g = torch.Generator().manual_seed(1)
    C, H, W = SHAPE
    index = torch.randint(0, C * H * W, (size, K), generator=g)
    weight = torch.randn(size, K, generator=g).to(dtype)
    weight[::3, 2:] = 0
    index[:4] = torch.tensor([0, W - 1, (H - 1) * W, H * W - 1])[:, None]
    index[5], weight[5] = index[6], weight[6]
    return StencilOperator(index, weight, torch.randn(size, generator=g).to(dtype), SHAPE)


def assert_same(decode, own, operator, z, tolerance):
    """Values, JVP and VJP of H(D(z)) are those of decode-then-observe, and each other's transpose."""
    plain = Linearization.of(lambda z: operator(decode(z)), z, Counter(), "plain")
    fast = Linearization.of(own, z, Counter(), "fast")
    v, u = torch.randn_like(z), torch.randn_like(plain.value)
    pairs = ((plain.value, fast.value), (plain.jvp(v), fast.jvp(v)), (plain.vjp(u), fast.vjp(u)))
    for expected, value in pairs:
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * scale)
    left, right = (fast.jvp(v) * u).sum(), (fast.vjp(u) * v).sum()
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance * float(v.norm() * u.norm()))
    both = fast.after(Scaling(0.5)).scaled(3.0).gram(u)
    torch.testing.assert_close(both, 2.25 * fast.jvp(fast.vjp(u)), rtol=0, atol=10 * tolerance * float(both.norm() + 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("settings", [*MODELS.values(), None], ids=[*MODELS, "1 x 1"])
def test_it_is_decoding_then_observing(settings, dtype, tolerance):
    decoder = OneByOne().to(dtype).requires_grad_(False) if settings is None else model(settings, dtype)
    z = torch.randn(3, *decoder.latent_shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    operator = stencil(dtype)
    assert_same(decoder.decode, headed(decoder).observe(operator), operator, z, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_the_derivatives_by_hand_are_the_derivatives(settings, dtype, tolerance):
    decoder, operator = model(settings, dtype), stencil(dtype)
    z = torch.randn(3, *decoder.latent_shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        own = headed(decoder, products=True).observe(operator)
        assert hasattr(own, "derivative")
        assert_same(decoder.decode, own, operator, z, tolerance)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "5 x 5, global"])  # whose slopes jump (ReLU)
def test_the_derivatives_of_a_lowered_decoder_are_near_and_adjoint_and_answer_in_full(name):
    decoder, g = model(MODELS[name], torch.float32), torch.Generator().manual_seed(2)
    z, v = torch.randn(2, 3, *decoder.latent_shape, generator=g)
    with torch.no_grad():
        low = feature_derivatives(lowered(decoder, torch.bfloat16), z)
        for exact, near in zip(feature_derivatives(decoder, z), low, strict=True):
            u = torch.randn(exact.value.shape, generator=g)
            products = near.jvp(v), near.vjp(u)
            for a, b in ((exact.value, near.value), (exact.jvp(v), products[0]), (exact.vjp(u), products[1])):
                assert b.dtype == torch.float32
                assert (a - b).norm() <= 0.02 * a.norm()
            assert abs((u * products[0]).sum() - (products[1] * v).sum()) <= 2**-8 * u.norm() * products[0].norm()


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_the_whole_state_has_the_derivatives_by_hand(settings):
    decoder = model(settings)
    z = torch.randn(3, *decoder.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert_same(decoder.decode, headed_decode(decoder), lambda x: x, z, 1e-12)


@pytest.mark.parametrize("size", [0, 1])
def test_few_observations(size):
    decoder, operator = model(MODELS["residual"]), stencil(size=40)
    few = StencilOperator(operator.index[:size], operator.weight[:size], operator.offset[:size], SHAPE)
    z = torch.randn(2, *LATENT, dtype=torch.float64)
    assert_same(decoder.decode, headed(decoder).observe(few), few, z, 1e-12)


@pytest.mark.parametrize("edges", [{"periodic": True}, {"periodic": False}, {"periodic": True, "poles": (True, False)}])
def test_the_tangent_is_observed_alike(edges):
    decoder, operator = model(convolution(**edges)), stencil()
    z = torch.randn(16, *LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tangent = PatchTangent(decoder.decode, z[:1], Increments(z, **edges), Counter())
    assert_same(tangent.decode, headed(tangent).observe(operator), operator, z[:2], 1e-12)


def test_no_field_is_formed_for_a_stencil_and_a_plan_is_made_once():
    decoder, operator = model(MODELS["residual"]), stencil()
    decoder.decode = None
    fast = headed(decoder)
    own = fast.observe(operator)
    assert own(torch.zeros(2, *LATENT, dtype=torch.float64)).shape == (2, 30)
    assert fast.observe(operator) is own
    del operator
    gc.collect()
    assert not fast._made


def test_what_is_no_stencil_or_a_dense_one_observes_the_whole_state():
    decoder = model(MODELS["residual"])
    z = torch.randn(2, *LATENT, dtype=torch.float64)
    function = lambda x: x.flatten(1)[:, ::5].square()  # noqa: E731
    operators = [function, StackedOperator((stencil(), stencil())), stencil(size=200)]
    for operator in operators:
        for decode in (headed(decoder), decoder.decode):
            assert torch.equal(observe(decode, operator)(z), operator(decoder.decode(z)))


@pytest.mark.parametrize("whitened", [True, False])
def test_a_package_observes_through_its_head_when_asked(whitened):
    package = replace(built_in_package(), whitened=whitened)
    C, H, W = package.layout.shape
    mask = torch.rand(H, W, generator=torch.Generator().manual_seed(3)) < 0.02
    operator = ObservationOperator.mask(mask, package.layout.shape, package.normalization)
    x_b = torch.randn(C, H, W, generator=torch.Generator().manual_seed(4))
    plain, fast = package.prior(x_b), package.prior(x_b, fused=True)
    z = torch.randn(2, *package.latent_shape, generator=torch.Generator().manual_seed(5))
    dtype = torch.float64 if whitened else torch.float32
    assert plain.tangent_dtype == fast.tangent_dtype == dtype
    assert package.prior(x_b, fused=True, precision=torch.bfloat16).tangent_dtype == torch.float32
    for own, z_own in ((lambda prior: prior.decode, z), (lambda prior: prior.tangent(prior.evaluations), z.to(dtype))):
        expected, value = (observe(own(prior), operator)(z_own) - operator.offset for prior in (plain, fast))
        assert value.dtype == expected.dtype == z_own.dtype
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(fast.decode(z), plain.decode(z))
    assert not hasattr(plain.decode, "observe")


def test_the_head_of_no_autoencoder_goes_where_it_goes() -> None:
    moved = IdentityAutoencoder((2, 3, 8)).to("meta", torch.float64)
    assert [(t.device.type, t.dtype) for t in (moved.heads()[0].weight, moved.heads()[0].bias)] == [
        ("meta", torch.float64)
    ] * 2


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_one_point_takes_any_number_of_directions(settings):
    decoder = model(settings)
    z, v = (torch.randn(n, *decoder.latent_shape, dtype=torch.float64) for n in (1, 3))
    with torch.no_grad():
        for decode in (headed_decode(decoder), decoder.decode):
            one, many = Derivative.of(decode, z), Derivative.of(decode, z.expand_as(v))
            torch.testing.assert_close(one.jvp(v), many.jvp(v), rtol=1e-12, atol=1e-12)
        if settings["name"] == "slams":  # whose products are torch.func's
            return
        observed = headed(decoder, products=True).observe(stencil())
        one, many = (Derivative.of(observed, at) for at in (z, z.expand_as(v)))
        u = torch.randn_like(many.value)
        torch.testing.assert_close(one.vjp(u), many.vjp(u), rtol=1e-12, atol=1e-12)
