"""norm_conv and zonal_product: against torch's own layers, derivatives, determinism, and where they stand aside."""

from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from bench.cases.table import CASES
from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.guidance.krylov import cg, normal, restricted_cg
from lsda_fast.kernels import norm_conv as convolution
from lsda_fast.kernels import registry
from lsda_fast.kernels.geo_conv import ADJOINT, CONV, geo_conv_products
from lsda_fast.kernels.geo_pad import geo_pad
from lsda_fast.kernels.norm_conv import kept_filters, norm_conv_products
from lsda_fast.kernels.packed import packed
from lsda_fast.kernels.restricted_solve import SOLVE
from lsda_fast.kernels.zonal_product import ZONAL
from lsda_fast.models.derivatives import chain, derivative
from lsda_fast.models.layers import ResidualBlock
from lsda_fast.models.observed import HeadedDecoder
from lsda_fast.models.tangent import Increments, PatchTangent
from lsda_fast.models.zonal_whitening import ZonalWhitening
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.prior import Derivative, Differentiable, Linearization, Scaling

GLOBE = (1, True, (True, True))


def draw(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    t = torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    return t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t


def inputs(M=2, C=16, D=32, H=5, W=8, dtype=torch.float64):
    """x, and what norm_conv_products is told after it."""
    return draw(M, C, H, W, dtype=dtype), (
        draw(C, seed=1, dtype=dtype),
        draw(C, seed=2, dtype=dtype),
        draw(D, C, 3, 3, seed=3, dtype=dtype) / 12,
        draw(D, seed=4, dtype=dtype),
        GLOBE,
    )


def test_it_is_torchs_norm_and_convolution_and_its_derivatives(checks):
    checks.isas()
    x, rest = inputs()
    weight, bias, kernel, shift, pad = rest
    add, v, u = draw(2, 32, 5, 8, seed=5), draw(2, 16, 5, 8, seed=6), draw(2, 32, 5, 8, seed=7)

    def plain(x):
        return F.conv2d(geo_pad(F.silu(F.group_norm(x, 4, weight, bias)), *pad), kernel, shift)

    value, jvp, vjp = norm_conv_products(x, *rest, groups=4, add=add)
    expected, pull = torch.func.vjp(plain, x)
    torch.testing.assert_close(value, expected + add)
    torch.testing.assert_close(vjp(u, v), pull(u)[0] + v)
    torch.testing.assert_close(vjp(u, None), pull(u)[0])
    # torch's group norm has no forward mode: by transposition.
    torch.testing.assert_close((u * jvp(v, None)).sum(), (pull(u)[0] * v).sum())
    torch.testing.assert_close(jvp(v, u), jvp(v, None) + u)


def test_one_member_serves_any_number_of_directions(checks):
    checks.isas()
    x, rest = inputs(M=1)
    _, jvp, vjp = norm_conv_products(x, *rest, groups=4)
    v, u = draw(3, 16, 5, 8, seed=6), draw(3, 32, 5, 8, seed=7)
    torch.testing.assert_close(jvp(v, None), torch.cat([jvp(t[None], None) for t in v]), rtol=0, atol=0)
    torch.testing.assert_close(vjp(u, v), torch.cat([vjp(s[None], t[None]) for s, t in zip(u, v)]), rtol=0, atol=0)


def test_a_weight_that_changes_is_laid_out_again(checks):
    checks.isas()
    x, kernel = draw(2, 16, 4, 6), draw(32, 16, 3, 3, seed=1)
    first = geo_conv_products(x, kernel, None, GLOBE)
    kept = kept_filters(kernel)
    assert len(kept) == 2
    geo_conv_products(x, kernel, None, GLOBE)
    assert all(one is other for one, other in zip(kept_filters(kernel), kept))
    kernel.mul_(2)
    second, u = geo_conv_products(x, kernel, None, GLOBE), draw(2, 32, 4, 6, seed=2)
    torch.testing.assert_close(second[0], 2 * first[0])
    torch.testing.assert_close(second[2](u), 2 * first[2](u))


def test_a_convolution_alone_is_torchs_with_its_margins(checks):
    checks.isas()
    x, kernel, shift = draw(2, 16, 5, 8), draw(32, 16, 3, 3, seed=1), draw(32, seed=2)
    v, u = draw(2, 16, 5, 8, seed=3), draw(2, 32, 5, 8, seed=4)
    value, jvp, vjp = geo_conv_products(x, kernel, shift, GLOBE)
    expected, pull = torch.func.vjp(lambda x: F.conv2d(geo_pad(x, *GLOBE), kernel, shift), x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(vjp(u), pull(u)[0])
    torch.testing.assert_close(jvp(v), F.conv2d(geo_pad(v, *GLOBE), kernel))


@pytest.mark.parametrize(
    ("operation", "labels"),
    [
        *((f"geo_conv{product}", ("the globe", "even rows and columns")) for product in ("", "_adjoint")),
        *((f"norm_conv{product}", ("the globe", "even rows and columns")) for product in ("", "_jvp", "_vjp")),
        ("zonal_product", ("a matrix", "many members")),
        ("restricted_solve", ("a few", "more than a block")),
    ],
)
def test_the_same_bits_on_any_number_of_threads(checks, operation, labels):
    for label in labels:
        function, inputs = CASES[operation][label]().prepare(checks.SINGLE)
        checks.assert_bitwise_stable(lambda f=function, i=inputs: f(*i), repeats=100)


def test_registration(checks):
    checks.isas()
    x, (weight, bias, kernel, shift, _) = inputs()
    flat, image = x.permute(0, 2, 3, 1).contiguous().flatten(1, 2), [5, 8, 1, 1, 1, 1, 0]
    forward, backward = convolution.filters(kernel), convolution.filters(kernel.flip(2, 3).transpose(0, 1))
    quick = ("test_schema", "test_faketensor")
    value = (flat, weight, bias, forward, shift, None, 4, True, image, 1e-5)
    torch.library.opcheck(convolution.VALUE.op, value, test_utils=quick)
    y, kept = convolution.VALUE(*value)
    point = (flat, kept, weight, bias)
    torch.library.opcheck(convolution.JVP.op, (flat, *point, forward, y, 4, True, image), test_utils=quick)
    torch.library.opcheck(convolution.VJP.op, (y, *point, backward, None, 4, True, image), test_utils=quick)
    # V V' + 1 of 4 columns in 3 wavenumbers, 2 rows and 16 channels.
    transform, V = draw(6, 4), draw(3, 32, 16)
    matrices = [transform, transform.T.contiguous(), packed(V), draw(3, 16) * 0 + 1, packed(V.mT), draw(3, 32) * 0 + 1]
    matrices += [draw(0), draw(0)]
    torch.library.opcheck(CONV.op, (flat, forward, shift, image), test_utils=quick)
    torch.library.opcheck(ADJOINT.op, (y, backward, image), test_utils=quick)
    found = observed_surrogate()[0]._derivative.gram.solve.__self__
    numbers = (draw(3, 37), *torch.tensor([[99.0] * 3, [0.0] * 3]).double(), draw(3, 37, seed=1), 0.5, 3)
    parts = (*found.plan.arguments, found.head.weight, found.head.layout, found.square(3))
    torch.library.opcheck(SOLVE.op, (*numbers, *parts), test_utils=quick)
    torch.library.opcheck(ZONAL.op, (torch.ones(2, 2, 4, 16).double().requires_grad_(), matrices, matrices))


@pytest.mark.parametrize("why", ["filters", "channels", "planes", "half", "the reference", "the instruction set"])
def test_where_no_native_code_takes_it_there_is_nothing(checks, why):
    checks.isas()
    dtype = torch.bfloat16 if why == "half" else torch.float32
    x, rest = inputs(C=8 if why == "channels" else 16, D=24 if why == "filters" else 32, dtype=dtype)
    if why == "planes":
        x = x.contiguous()
    assert norm_conv_products(*inputs(dtype=torch.float32)[:1], *inputs(dtype=torch.float32)[1], groups=4)
    forced = {"the reference": ("reference", None), "the instruction set": ("cpu", "baseline")}.get(why, ("cpu", None))
    with kernels.use(*forced):
        assert norm_conv_products(x, *rest, groups=4) is None


@pytest.mark.parametrize("members", [1, 3])
def test_a_residual_block_is_the_same_one_operation_after_the_other(checks, members):
    checks.isas()
    torch.manual_seed(0)
    block = ResidualBlock(32, periodic=True, groups=4).double().requires_grad_(False)
    torch.nn.init.normal_(block.conv2.conv.weight, std=0.1)
    x, v = draw(members, 32, 4, 6), draw(members, 32, 4, 6, seed=1)
    with kernels.trace() as taken:
        fused = chain(x, [lambda h: derivative(block, h)])
        products = fused.value, fused.jvp(v), fused.vjp(v)
    assert {choice.operation for choice in taken} == {"norm_conv", "norm_conv_jvp", "norm_conv_vjp"}
    with kernels.use("reference"):
        plain = derivative(block, x)
        expected = plain.value, plain.jvp(v), plain.vjp(v)
    for got, exact in zip(products, expected):
        torch.testing.assert_close(got, exact)


def test_the_covariance_of_a_whitening_is_the_same_either_way(checks):
    checks.isas()
    errors = torch.randn(40, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    whitening = ZonalWhitening((16, 6, 8), rank=8, reach=3.0)
    whitening.fit(errors)
    whitening.double()
    with kernels.trace() as taken:
        fused = whitening.wide_coloring()
        got = fused.color(errors.double()), fused.adjoint(errors.double()), fused.covariance(errors.double())
    assert {choice.implementation for choice in taken if choice.operation == "zonal_product"} == {"cpu"}
    with kernels.use("reference"):
        plain = whitening.wide_coloring()
    expected = plain.color(errors.double()), plain.adjoint(errors.double()), plain.covariance(errors.double())
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert got[1].is_contiguous()
    # Both are asked for derivatives: of a whole analysis by autograd, of a linearisation by torch.func.
    u, v = errors[:3].double(), errors[3:6].double()
    for f, transpose in ((fused.color, fused.adjoint), (fused.covariance, fused.covariance)):
        _, pull = torch.func.vjp(f, u)
        torch.testing.assert_close(pull(v)[0], transpose(v))
        torch.testing.assert_close(torch.func.jvp(f, (u,), (v,))[1], f(v))
        point = u.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad((f(point) * v).sum(), point)[0], transpose(v))


@pytest.mark.parametrize("operation", ["zonal_product", "zonal_adjoint", "restricted_solve"])
def test_matrices_in_float32_beside_float64_give_the_bits_of_what_they_are(checks, operation):
    label = "a few" if operation == "restricted_solve" else "a matrix"
    made = []

    def taken(*arguments):
        made.append(arguments)
        return registry.OPERATIONS[operation].op(*arguments)

    function, inputs = CASES[operation][label]().prepare(torch.float64, work=torch.float64)
    own = registry.OPERATIONS[operation]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(own), "__call__", lambda self, *arguments: taken(*arguments))
        function(*inputs)
    lists = [i for i, part in enumerate(made[0]) if isinstance(part, (list, tuple)) and len(part) == 8]

    def narrowed(places):
        """The arguments with float32 in these places of the matrices, and with its numbers in float64."""
        narrow = lambda six: [t.float() if i in places else t for i, t in enumerate(six)]  # noqa: E731
        few = [narrow(part) if i in lists else part for i, part in enumerate(made[0])]
        many = [[t.double() for t in part] if i in lists else part for i, part in enumerate(few)]
        return few, many

    few, many = narrowed((2, 4))
    for isa in checks.isas()[1:]:
        with kernels.use("cpu", isa):
            assert checks.same_bits(own(*few), own(*many))
    torch.testing.assert_close(own.reference(*few), own(*many), rtol=1e-9, atol=1e-9)
    for places in ((2,), (3,), (2, 4, 5)):
        with kernels.use("cpu"), pytest.raises(InputError, match="other types than right and left, both of float32"):
            own(*narrowed(places)[0])
    # Nor float64 matrices beside float32.
    single = [t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in made[0]]
    for i in lists:
        single[i] = [t if place in (2, 4) else t.float() for place, t in enumerate(made[0][i])]
    if operation != "restricted_solve":
        with kernels.use("cpu"), pytest.raises(InputError, match="other types than right and left, both of float32"):
            own(*single)


def observed_surrogate():
    """A stand-in for a decoder behind a zonal covariance, observed: v -> J B v, B = 0.7, and its weighted self."""
    errors = draw(40, 16, 6, 8, dtype=torch.float32).contiguous()
    whitening = ZonalWhitening((16, 6, 8), rank=8, reach=3.0)
    whitening.fit(errors)
    color, adjoint, covariance, _ = whitening.wide_coloring()
    latent = Differentiable(color, lambda u: Derivative(color(u), color, adjoint, covariance))
    tangent = PatchTangent(
        lambda z: F.interpolate(z[:, :4] + z[:, 4:8] ** 2, scale_factor=2),
        draw(1, 16, 6, 8),
        Increments(draw(30, 16, 6, 8, seed=1), periodic=True),
        Counter(),
    )
    index = torch.randint(0, 4 * 12 * 16, (37, 2), generator=torch.Generator().manual_seed(2))
    operator = SparseAffine(index, draw(37, 2, seed=3), draw(37, seed=4), (4, 12, 16))
    function, counts = HeadedDecoder(tangent, latent, products=True).observe(operator), Counter()
    found = Linearization.of(function, torch.zeros(1, 16, 6, 8).double(), counts, "tangent").after(Scaling(0.7))
    return found, found.scaled(1 + draw(3, 37, seed=5).abs()), counts


@pytest.mark.parametrize("weighted", [False, True])
def test_a_surrogate_is_solved_in_one_operation_with_the_iterates_of_cg(checks, weighted):
    checks.isas()
    plain, scaled, counts = observed_surrogate()
    near, b = scaled if weighted else plain, draw(3, 16, 6, 8, seed=6)
    with kernels.trace() as taken:
        x = restricted_cg(near.jvp, near.vjp, near.gram, b, iterations=6, solve=near.solve)
    assert [choice.implementation for choice in taken if choice.operation == "restricted_solve"] == ["cpu"]
    assert counts["tangent_gram"] == 3 * 5
    torch.testing.assert_close(x, cg(normal(near.jvp, near.vjp), b, iterations=6), rtol=1e-8, atol=1e-8)
    # One after the other where there is no such code, in other orders of summation.
    with kernels.use("reference"):
        apart = restricted_cg(near.jvp, near.vjp, near.gram, b, iterations=6, solve=near.solve)
    assert counts["tangent_gram"] == 2 * 3 * 5
    torch.testing.assert_close(x, apart, rtol=1e-9, atol=1e-9)


@contextmanager
def given_to(name):
    """The arguments with which an operation is called in this block."""
    own, seen = registry.Operation.__call__, []

    def call(operation, *arguments):
        if operation.name == name:
            seen.append(arguments)
        return own(operation, *arguments)

    with patch.object(registry.Operation, "__call__", call):
        yield seen


def test_one_number_type_but_for_the_modes(checks):
    """C++ reads all else as float64: whatever is not goes to torch."""
    checks.isas()
    with given_to("restricted_solve") as given:
        near = observed_surrogate()[1]
        restricted_cg(near.jvp, near.vjp, near.gram, draw(3, 16, 6, 8, seed=6), iterations=3, solve=near.solve)
    f, rr, limit, slope, factor, iterations, index, weight, transpose, cells, head, layout, square = given[0]
    assert SOLVE.choose(*given[0]).implementation == "cpu"
    for changed in (
        (f, rr.float(), limit, slope, factor, iterations, index, weight, transpose, cells, head, layout, square),
        (f, rr, limit.float(), slope, factor, iterations, index, weight, transpose, cells, head, layout, square),
        (f, rr, limit, slope.float(), factor, iterations, index, weight, transpose, cells, head, layout, square),
        (f, rr, limit, slope, factor, iterations, index, weight.float(), transpose, cells, head, layout, square),
        (f, rr, limit, slope, factor, iterations, index, weight, transpose, cells, head.float(), layout, square),
    ):
        assert SOLVE.choose(*changed).implementation == "reference"


def test_members_that_do_not_go_together_go_to_torch(checks):
    checks.isas()
    x, rest = inputs(dtype=torch.float32)
    with torch.no_grad():
        _, jvp, _ = norm_conv_products(x, *rest, groups=4)
        with given_to("norm_conv_jvp") as given:
            jvp(torch.randn_like(x), None)
        t, own, kept, *others = given[0]
        assert convolution.JVP.choose(*given[0]).implementation == "cpu"
        assert convolution.JVP.choose(torch.cat([t, t]), own, kept, *others).implementation == "reference"
        assert convolution.JVP.choose(t, own, kept[:1], *others).implementation == "reference"


def test_where_a_derivative_is_asked_for_there_is_nothing(checks):
    checks.isas()
    x, rest = inputs(dtype=torch.float32)
    assert norm_conv_products(x.requires_grad_(), *rest, groups=4) is None
    with torch.no_grad():
        assert norm_conv_products(x, *rest, groups=4)
