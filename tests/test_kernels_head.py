"""head_project and head_adjoint: C++ against plain torch, adjoint identity, derivatives, determinism."""

import math
from dataclasses import replace

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.head_project import ADJOINT, PROJECT, head_adjoint, head_project


def draw(M, S, F, T, R, U):
    """features (M, F, S), values (M, U), weight, neighbours, place, row."""
    g = torch.Generator().manual_seed(0)
    features, values, weight = (torch.randn(shape, generator=g).double() for shape in ((M, F, S), (M, U), (R, T, F)))
    neighbours = torch.randint(0, S, (S, T), generator=g)
    place = torch.randint(0, S, (U,), generator=g)
    return features, values, weight, neighbours, place, torch.randint(0, R, (U,), generator=g)


def test_the_reference_is_the_equation():
    features, values, weight, neighbours, place, row = draw(2, 9, 4, 3, 5, 30)
    plan = HeadPlan.from_rows(weight, neighbours, place, row)
    with kernels.use("reference"):
        projected, pushed = head_project(features, plan), head_adjoint(values, plan)
    expected = torch.einsum("mfut,utf->mu", features[:, :, neighbours[place]], weight[row])
    torch.testing.assert_close(projected, expected, rtol=1e-13, atol=1e-13)
    points = torch.einsum("mu,utf->mfut", values, weight[row]).flatten(2)
    expected = torch.zeros_like(features).index_add(2, neighbours[place].flatten(), points)
    torch.testing.assert_close(pushed, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adjoint_identity(checks, dtype):
    checks.isas()
    features, values, weight, *where = draw(4, 600, 24, 9, 12, 900)
    plan = HeadPlan.from_rows(weight.to(dtype), *where)
    x, r = features.to(dtype), values.to(dtype)
    with kernels.use("cpu"):
        y, z = head_project(x, plan).double(), head_adjoint(r, plan).double()
    left, right = (y * r.double()).sum(1), (z * x.double()).sum((1, 2))
    size = (y * r.double()).abs().sum(1)
    assert ((left - right).abs() <= 10 * torch.finfo(dtype).eps * size / math.sqrt(900)).all()


def test_the_same_bits_every_time_on_any_number_of_threads(checks):
    features, values, weight, *where = (t.float() if t.is_floating_point() else t for t in draw(9, 900, 16, 9, 8, 2000))
    plan = HeadPlan.from_rows(weight, *where)
    checks.assert_bitwise_stable(lambda: head_project(features, plan), repeats=40)
    checks.assert_bitwise_stable(lambda: head_adjoint(values, plan), repeats=40)


def test_a_member_is_the_same_in_any_company_and_memory(checks):
    checks.isas()
    features, values, weight, *where = (t.float() if t.is_floating_point() else t for t in draw(20, 300, 18, 9, 8, 400))
    plan = HeadPlan.from_rows(weight, *where)
    with kernels.use("cpu"):
        y, z = head_project(features, plan), head_adjoint(values, plan)
        for some in ([0], [19], [3, 18, 4]):
            assert checks.same_bits(head_project(features[some], plan), y[some])
            assert checks.same_bits(head_adjoint(values[some], plan), z[some])
        assert checks.same_bits(head_project(features.mT.contiguous().mT, plan), y)
        assert checks.same_bits(head_adjoint(values, plan, last=True).mT.contiguous(), z)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("last", [False, True])
def test_derivatives(checks, implementation, last):
    checks.isas()
    features, values, weight, *where = draw(2, 6, 3, 2, 4, 9)
    features = features.mT.contiguous().mT if last else features
    plan = HeadPlan.from_rows(weight, *where)
    u, v = torch.randn_like(values), torch.randn_like(features)
    with kernels.use(implementation):
        for f, point in (
            (lambda x: head_project(x, plan), features),
            (lambda r: head_adjoint(r, plan, last=last), values),
        ):
            assert torch.autograd.gradcheck(f, point.clone().requires_grad_(), check_forward_ad=True)
            assert torch.autograd.gradgradcheck(f, point.clone().requires_grad_())
        _, vjp = torch.func.vjp(lambda x: head_project(x, plan), features)
        torch.testing.assert_close(vjp(u)[0], head_adjoint(u, plan))
        jvp = torch.func.jvp(lambda x: head_project(x, plan), (features,), (v,))[1]
        torch.testing.assert_close(jvp, head_project(v, plan))
        several = torch.stack([features, v])
        together = torch.func.vmap(lambda x: head_project(x, plan))(several)
        torch.testing.assert_close(together, torch.stack([head_project(x, plan) for x in several]))
        weights = torch.stack([plan.weight, plan.weight])
        of_weights = torch.func.vmap(lambda w: head_project(features, replace(plan, weight=w)))
        with pytest.raises(InputError, match="vmap over what head_project is told"):
            of_weights(weights)


def test_registration(checks):
    features, values, weight, *where = draw(2, 6, 3, 2, 4, 9)
    plan = HeadPlan.from_rows(weight, *where)
    torch.library.opcheck(PROJECT.op, (features.requires_grad_(), plan.weight, plan.layout, False))
    torch.library.opcheck(ADJOINT.op, (values.requires_grad_(), plan.weight, plan.layout, True))


def test_compiled_whole():
    """Values and gradient through torch.compile, in one graph."""
    features, values, weight, *where = draw(2, 6, 3, 2, 4, 9)
    plan = HeadPlan.from_rows(weight, *where)
    point = features.clone().requires_grad_()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def cost(x):
        return (head_project(2.0 * x, plan) * values).sum()

    (gradient,) = torch.autograd.grad(cost(point), point)
    torch.testing.assert_close(gradient, 2.0 * head_adjoint(values, plan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, w: head_project(torch.zeros(2, 4, 6), p), r"\(2, 4, 6\); accepted: \(members, 3, ...\) at 6 places"),
        (lambda p, w: head_project(torch.zeros(2, 3, 5), p), r"\(2, 3, 5\); accepted"),
        (lambda p, w: head_adjoint(torch.zeros(2, 8), p), r"values \(2, 8\); accepted: \(members, 9\)"),
        (lambda p, w: head_project(torch.zeros(2, 3, 6), p), "torch.float32 features; accepted: torch.float64"),
        (lambda p, w: HeadPlan.from_rows(w[0], w[1], w[2] + 6, w[3]), "place .*; accepted: 0 to 5"),
        (lambda p, w: HeadPlan.from_rows(w[0], w[1], w[2], w[3] - 9), "row -9 to .*; accepted: 0 to 3"),
        (lambda p, w: HeadPlan.from_rows(w[0], w[1] + 6, w[2], w[3]), "neighbour .*; accepted: 0 to 5"),
        (lambda p, w: HeadPlan.from_rows(w[0], w[1][:, :1], w[2], w[3]), r"\(R, T, F\), \(S, T\), \(U,\), \(U,\)"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    _, _, *where = draw(2, 6, 3, 2, 4, 9)
    with pytest.raises(InputError, match=message):
        call(HeadPlan.from_rows(*where), where)
