"""norm_silu and gated_residual_norm: C++ against plain torch, torch's own layers, derivatives, determinism."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import gated_residual_norm as gated
from lsda_fast.kernels import native
from lsda_fast.kernels import norm_silu as norm
from lsda_fast.kernels.gated_residual_norm import gated_residual_norm
from lsda_fast.kernels.geo_pad import geo_pad
from lsda_fast.kernels.norm_silu import norm_silu, norm_silu_products
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import obs_project


def draw(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).float().double()


def slices(R, C, S, groups, last, A):
    """t, x, a, b in float64, rounded to float32."""
    shape = (R, S, C) if last else (R, C, S)
    return draw(*shape), draw(*shape, seed=1), draw(A, C, seed=2), draw(A, C, seed=3)


EPS = 1e-5


def products(groups, last, image=()):
    """The value, and its products from the statistics that it leaves, as functions of t, x, a and b."""
    settings = (groups, last, True, list(image))

    def value(_, x, a, b):
        return norm.VALUE(x, a, b, *settings, EPS)

    def derivative(operation):
        return lambda t, x, a, b: operation(t, x, value(t, x, a, b)[1], a, b, *settings)

    return {"value": value, "JVP": derivative(norm.JVP), "VJP": derivative(norm.VJP)}


def plain_norm(x: Tensor, weight, bias, scale, shift, groups):
    """By torch's own layers."""
    places = (slice(None),) * 2 + (None,) * (x.ndim - 2) if groups else (slice(None),) + (None,) * (x.ndim - 2)
    n = F.group_norm(x, groups, weight, bias) if groups else F.layer_norm(x, x.shape[-1:], weight, bias)
    return F.silu(n * (1 + scale[places]) + shift[places])


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("groups", [None, 3], ids=["layer", "group"])
def test_it_is_torchs_norm_with_modulation_and_its_derivatives(checks, implementation, groups):
    checks.isas()
    x = draw(2, 6, 4, 5) if groups else draw(2, 4, 5, 6)
    inputs = (x, draw(6, seed=1), draw(6, seed=2), draw(2, 6, seed=3), draw(2, 6, seed=4))
    tangents = tuple(draw(*t.shape, seed=9) for t in inputs)

    def ours(x, weight, bias, scale, shift):
        return norm_silu(x, weight, bias, groups=groups, scale=scale, shift=shift)

    def theirs(*inputs):
        return plain_norm(*inputs, groups)

    with kernels.use(implementation):
        y, pull = torch.func.vjp(ours, *inputs)
        gradients = pull(tangents[0])
        dy = torch.func.jvp(ours, inputs, tangents)[1]
    expected, pull = torch.func.vjp(theirs, *inputs)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients, pull(tangents[0]))
    # By transposition: torch's group norm has no forward mode.
    u = draw(*y.shape, seed=10)
    right = sum(torch.sum(a * b) for a, b in zip(pull(u), tangents, strict=True))
    torch.testing.assert_close(torch.sum(u * dy), right)


def plain_gated(x, branch, gate, scale, shift):
    y = x + gate[:, None] * branch
    return y, F.layer_norm(y, y.shape[-1:]) * (1 + scale[:, None]) + shift[:, None]


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_the_residual_stream_is_that_of_a_transformer_block(checks, implementation):
    checks.isas()
    inputs = (draw(2, 4, 6), draw(2, 4, 6, seed=1), *(draw(2, 6, seed=s) for s in (2, 3, 4)))
    tangents = tuple(draw(*t.shape, seed=9 + i) for i, t in enumerate(inputs))

    def ours(x, branch, gate, scale, shift):
        return gated_residual_norm(x, branch, gate=gate, scale=scale, shift=shift)

    with kernels.use(implementation):
        value, pull = torch.func.vjp(ours, *inputs)
        found = pull(tangents[:2]), torch.func.jvp(ours, inputs, tangents)[1]
        one = torch.func.vjp(lambda x: ours(x, *inputs[1:])[1], inputs[0])[1](tangents[0])
    expected, pull = torch.func.vjp(plain_gated, *inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, (pull(tangents[:2]), torch.func.jvp(plain_gated, inputs, tangents)[1]))
    torch.testing.assert_close(one[0], pull((torch.zeros_like(expected[0]), tangents[0]))[0])


def calls(dtype=torch.float32):
    """Every operation and product at a size that many threads share, as functions of members."""
    t, x, a, b = (z.to(dtype) for z in slices(6, 32, 900, 8, False, 6))
    side, token = t.transpose(1, 2).contiguous(), x.transpose(1, 2).reshape(-1, 1, 32)
    rows = token[:, 0]

    def per(count, *tensors):
        return lambda m: [z.unflatten(0, (6, -1))[m].flatten(0, 1).contiguous() for z in tensors]

    planes, last, tokens, stream = per(1, t, x, a, b), per(1, side, side.flip(0)), per(1, token, token.flip(0)), None
    stream = per(1, rows, rows.flip(0), rows.flip(1))
    affine = per(1, a, b)
    found = {}
    for product in ("JVP", "VJP", "value"):
        found[f"planes {product}"] = lambda m, p=product: products(8, False)[p](*planes(m))
        found[f"last {product}"] = lambda m, p=product: products(8, True)[p](*last(m), *affine(m))
        found[f"tokens {product}"] = lambda m, p=product: products(1, True)[p](*tokens(m), *affine(m))
    for product, operation in (("JVP", gated.JVP), ("VJP", gated.VJP)):
        found[f"stream {product}"] = lambda m, f=operation: f(*stream(m), *affine(m), 1e-5)
    found["stream value"] = lambda m: gated.VALUE(*stream(m)[:2], affine(m)[0], *affine(m), 1e-5)
    return found


ALL = list(range(6))


@pytest.mark.parametrize("name", calls())
def test_the_same_bits_every_time_on_any_number_of_threads_in_any_company(checks, name):
    call = calls()[name]
    checks.assert_bitwise_stable(lambda: call(ALL), repeats=40)
    with kernels.use("cpu"):
        whole = checks.flat(call(ALL))
        for some in ([0], [5], [4, 1, 3]):
            for part, full in zip(checks.flat(call(some)), whole, strict=True):
                assert checks.same_bits(part, full.unflatten(0, (6, -1))[some].flatten(0, 1))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adjoint_identity(checks, dtype, last):
    checks.isas()
    u, x, a, b = (z.to(dtype) for z in slices(4, 24, 900, 8, last, 4))
    v = draw(*u.shape, seed=7).to(dtype)
    with kernels.use("cpu"):
        forward, back = products(8, last)["JVP"](v, x, a, b), products(8, last)["VJP"](u, x, a, b)
    left, right = torch.sum(u.double() * forward.double()), torch.sum(v.double() * back.double())
    assert abs(left - right) <= torch.finfo(dtype).eps * torch.sum((u * forward).double().abs())


def test_channels_last_stays_so_and_gives_the_same(checks):
    checks.isas()
    x, v = draw(2, 24, 5, 7), draw(2, 24, 5, 7, seed=1)
    weight, bias = draw(24, seed=2), draw(24, seed=3)

    def call(x):
        return norm_silu(x, weight, bias, groups=4)

    expected = torch.func.jvp(call, (x,), (v,))
    x, v = (t.contiguous(memory_format=torch.channels_last) for t in (x, v))
    with kernels.trace() as taken:
        found = torch.func.jvp(call, (x,), (v,))
    assert {choice.implementation for choice in taken} == {"cpu"}
    torch.testing.assert_close(found, expected)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found)


def test_wide_groups_that_lie_last_go_to_torch(checks):
    most = checks.isas() and native.load("cpu").code.build_info()["columns"]
    with kernels.trace() as taken:
        for width in (most, most + 1):
            norm_silu(torch.zeros(1, width, 2, 2).contiguous(memory_format=torch.channels_last), groups=1)
    assert [choice.implementation for choice in taken] == ["cpu", "reference"]
    assert taken[1].reason == f"groups of {most + 1} channels that lie last; C++ takes up to {most}"


EDGES = [(), (0, True), (1, True), (2, True, (False, True)), (1, False), (3, True, (True, True), True)]


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("pad", EDGES, ids=str)
def test_margins_are_those_of_geo_pad_and_every_derivative_knows_them(checks, implementation, form, pad):
    checks.isas()
    n = pad[0] if pad else 0
    x, v = (draw(3, 12, 5, 7, seed=s).contiguous(memory_format=form) for s in (0, 1))
    u = draw(3, 12, 5 + 2 * n, 7 + 2 * n, seed=2).contiguous(memory_format=form)
    weight, bias = draw(12, seed=3), draw(12, seed=4)

    def ours(x, weight, bias):
        return norm_silu(x, weight, bias, groups=4, pad=pad)

    def theirs(x, weight, bias):
        return geo_pad(F.silu(F.group_norm(x, 4, weight, bias)), *pad or (0, True))

    expected, pull = torch.func.vjp(theirs, x, weight, bias)
    gradients = pull(u)
    with kernels.use(implementation):
        y, jvp, vjp = norm_silu_products(x, weight, bias, groups=4, pad=pad)
        torch.testing.assert_close(torch.func.vjp(ours, x, weight, bias)[1](u), gradients)
        tangent = torch.func.jvp(ours, (x, weight, bias), (v, weight, bias))[1]
        dy, dx = jvp(v), vjp(u)
    for found, value in ((y, expected), (dx, gradients[0])):
        torch.testing.assert_close(found, value)
        assert found.is_contiguous(memory_format=form)
    torch.testing.assert_close((dy * u).sum(), (v * dx).sum())
    right = sum((a * b).sum() for a, b in zip(gradients, (v, weight, bias), strict=True))
    torch.testing.assert_close((tangent * u).sum(), right)


@pytest.mark.parametrize("shape", [(0, 3, 8), (3, 0, 8), (3, 5, 8)])
@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_of_no_tokens_there_are_none(checks, shape, implementation):
    checks.isas()
    with kernels.use(implementation):
        assert norm_silu(torch.zeros(shape)).shape == shape
        scale = torch.zeros(shape[0], 8, requires_grad=True)
        y = norm_silu(torch.zeros(shape), scale=scale)
        assert y.shape == shape
        y.sum().backward()
        assert scale.grad.shape == scale.shape


def test_any_strides(checks):
    x, branch = draw(4, 12, 6), draw(4, 12, 6, seed=1)
    wide = torch.full((4, 12, 12), torch.nan, dtype=torch.float64)
    wide[..., ::2] = x
    for view in (wide[..., ::2], x.mT.contiguous().mT):
        torch.testing.assert_close(norm_silu(view), norm_silu(x))
        torch.testing.assert_close(norm_silu(view, groups=3), norm_silu(x, groups=3))
        torch.testing.assert_close(gated_residual_norm(branch, view), gated_residual_norm(branch, x))


@pytest.mark.parametrize("pad", EDGES[:3], ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
def test_bfloat16_is_computed_in_float32(checks, form, pad):
    n = pad[0] if pad else 0
    x, v = (draw(3, 12, 5, 7, seed=s).bfloat16().contiguous(memory_format=form) for s in (0, 1))
    u = draw(3, 12, 5 + 2 * n, 7 + 2 * n, seed=2).bfloat16().contiguous(memory_format=form)
    weight, bias = draw(12, seed=3).float(), draw(12, seed=4).float()

    def run(dtype):
        y, jvp, vjp = norm_silu_products(x.to(dtype), weight, bias, groups=4, pad=pad)
        return [y, jvp(v.to(dtype)), vjp(u.to(dtype))]

    exact, first = run(torch.float64), None
    for implementation, isa in [("reference", None), *(("cpu", isa) for isa in checks.isas())]:
        with kernels.use(implementation, isa=isa), checks.poisoned():
            found, single = run(torch.bfloat16), run(torch.float32)
        # Rounded once, as torch does; of the VJP what comes between its two factors too.
        assert checks.same_bits(found[:2], [t.bfloat16() for t in single[:2]])
        assert found[2].dtype == torch.bfloat16
        assert (found[2].double() - exact[2]).norm() <= 2**-8 * exact[2].norm()
        if implementation == "cpu":
            first = first or found
            assert checks.same_bits(found, first)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_tokens_in_bfloat16_are_nearer_than_torchs(checks, implementation):
    checks.isas()
    x, v = draw(3, 50, 64).bfloat16(), draw(3, 50, 64, seed=1).bfloat16()
    exact = F.silu(F.layer_norm(x.double(), (64,)))
    with kernels.use(implementation):
        y, dy = torch.func.jvp(norm_silu, (x,), (v,))
    assert (y.dtype, dy.dtype) == (torch.bfloat16, torch.bfloat16)
    if implementation == "reference":
        assert torch.equal(y, F.silu(F.layer_norm(x.float(), (64,))).bfloat16())
    assert (y.double() - exact).abs().max() <= (F.silu(F.layer_norm(x, (64,))).double() - exact).abs().max()


def test_bfloat16_keeps_what_is_no_number(checks):
    checks.isas()
    x = torch.ones(2, 8, dtype=torch.bfloat16)
    x[1, 3] = torch.nan
    with kernels.use("cpu"):
        y = norm_silu(x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_native_norms_take_float32_weights_beside_bfloat16_and_no_others(checks):
    checks.isas()
    x = draw(2, 8).bfloat16()
    with kernels.trace() as taken:
        norm.VALUE(x[:, None], *torch.ones(2, 1, 8), 1, True, True, [], EPS)
        norm.VALUE(x[:, None], *torch.ones(2, 1, 8).bfloat16(), 1, True, True, [], EPS)
    assert [choice.implementation for choice in taken] == ["cpu", "reference"]
    assert taken[1].reason.endswith("C++ takes float32 beside bfloat16, else all alike")
    _, jvp, _ = norm_silu_products(x)
    with kernels.trace() as taken:
        wide = jvp(x.float())
    assert [choice.implementation for choice in taken] == ["reference"]
    torch.testing.assert_close(wide, jvp(x), rtol=2**-7, atol=1e-3)
    y, n = gated_residual_norm(x, x, gate=x)
    assert (y.dtype, n.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_derivatives_in_every_mode(checks, implementation):
    checks.isas()
    x, branch, gate = (z.requires_grad_() for z in (draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 4, seed=2)))
    with kernels.use(implementation):
        for call, inputs in (
            (lambda x, s: norm_silu(x, groups=3, shift=s[:, :3]), (x, gate)),
            (lambda x, s: norm_silu(x, scale=s), (x, gate)),
            (lambda x, b, g: gated_residual_norm(x, b, gate=g, scale=g), (x, branch, gate)),
        ):
            assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_a_jacobian_by_vmap(checks):
    x, branch = draw(2, 3, 4), draw(2, 3, 4, seed=1)

    def ours(x):
        return gated_residual_norm(norm_silu(x), branch)[1]

    def theirs(x):
        return F.layer_norm(F.silu(F.layer_norm(x, (4,))) + branch, (4,))

    torch.testing.assert_close(torch.func.jacrev(ours)(x), torch.func.jacrev(theirs)(x))
    torch.testing.assert_close(torch.func.jacfwd(ours)(x), torch.func.jacrev(theirs)(x))


@pytest.mark.parametrize("call", [lambda x: norm_silu(x).sum(), lambda x: gated_residual_norm(x, x)[1].square().sum()])
def test_a_second_derivative_is_refused(call):
    x = draw(2, 3, 4)
    for second in (torch.func.hessian, lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())):
        with pytest.raises(InputError, match=r"a derivative of .*_vjp; accepted: first derivatives"):
            second(call)(x)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(point), point, create_graph=True)
    with pytest.raises(InputError, match=r"_vjp; accepted: first derivatives"):
        gradient.sum().backward()


def test_registration(checks):
    t, *rest = slices(4, 6, 5, 3, False, 2)
    quick = ("test_schema", "test_faketensor")
    x, a, b = rest
    for image in ([], [1, 5, 1, 1, 1, 0, 0]):
        settings = (3, False, True, image)
        y, kept = norm.VALUE(*rest, *settings, EPS)
        torch.library.opcheck(norm.JVP.op, (t, x, kept, a, b, *settings), test_utils=quick)
        torch.library.opcheck(norm.VJP.op, (y, x, kept, a, b, *settings), test_utils=quick)
        torch.library.opcheck(norm.VALUE.op, (*(z.clone().requires_grad_() for z in rest), *settings, EPS))
    x, y, u = (draw(4, 6, seed=s) for s in range(3))
    gate, a, b = (draw(2, 6, seed=s) for s in range(3))
    torch.library.opcheck(gated.JVP.op, (x, y, u, gate, a, 1e-5), test_utils=quick)
    torch.library.opcheck(gated.VJP.op, (x, y, u, None, a, 1e-5), test_utils=quick)
    torch.library.opcheck(gated.VALUE.op, (*(z.requires_grad_() for z in (x, y, gate, a, b)), 1e-5))
    halves = (x.detach().bfloat16(), *(z.detach().float() for z in (y, gate, a, b)))
    torch.library.opcheck(gated.VALUE.op, (*halves, 1e-5), test_utils=quick)


def test_compiled_whole(checks):
    x, branch, gate = draw(2, 5, 8), draw(2, 5, 8, seed=1), draw(2, 8, seed=2)

    def cost(x):
        y, n = gated_residual_norm(norm_silu(2.0 * x, groups=5), branch, gate=gate)
        return (y * n).sum()

    point = x.clone().requires_grad_()
    compiled = torch.compile(cost, backend="aot_eager", fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(point), point)
    torch.testing.assert_close(gradient, torch.func.grad(cost)(x))


def test_torch_func_inside_torch_compile_is_right_or_refused(checks):
    x, v = draw(2, 5, 8), draw(2, 5, 8, seed=1)
    plan = ObservationPlan.from_stencil(torch.tensor([[3, 7], [0, 1]]), torch.ones(2, 2, dtype=torch.float64), 40)

    def tangent(x):
        return torch.func.jvp(lambda x: obs_project(norm_silu(x), plan), (x,), (v,))[1]

    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(x), tangent(x))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(tangent, backend="aot_eager", fullgraph=True)(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: norm_silu(x, groups=4), r"\(2, 6, 5\); accepted: \(members, a multiple of 4 channels, ...\)"),
        (lambda x: norm_silu(x[0, 0]), r"\(5,\); accepted: \(members, ..., channels\)"),
        (lambda x: norm_silu(x, pad=(1, True)), r"tokens with margins; accepted: images, with groups"),
        (
            lambda x: norm_silu(x, groups=3, pad=(1, True)),
            r"an image \(2, 6, 5\) and a margin of 1; accepted: \(M, C, H, W\)",
        ),
        (lambda x: norm_silu(x, torch.ones(6)), r"weight \(6,\); accepted: \(5,\)"),
        (lambda x: norm_silu(x, groups=3, scale=torch.ones(2, 5)), r"scale \(2, 5\); accepted: \(2, 6\)"),
        (lambda x: gated_residual_norm(x, x[:1]), r"\(2, 6, 5\) and \(1, 6, 5\); accepted: \(members"),
        (lambda x: gated_residual_norm(x, x, gate=torch.ones(5)), r"gate \(5,\); accepted: \(2, 5\)"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(2, 6, 5))
