"""obs_project and obs_adjoint: C++ against plain torch, adjoint identity, derivatives, determinism."""

import math

import numpy as np
import pytest
import torch

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import native, obs_plan
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import ADJOINT, PROJECT, obs_adjoint, obs_project
from lsda_fast.kernels.obs_residual import obs_residual
from lsda_fast.kernels.robust import Huber
from lsda_fast.observations.operators import StencilOperator


def draw(M, N, P, K):
    """index, weight, x, r in float64."""
    g = torch.Generator().manual_seed(0)
    index = torch.randint(0, N, (P, K), generator=g)
    weight = torch.randn(P, K, generator=g, dtype=torch.float64)
    x = torch.randn(M, N, generator=g, dtype=torch.float64)
    return index, weight, x, torch.randn(M, P, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adjoint_identity(checks, dtype):
    checks.isas()
    index, weight, x, r = draw(6, 9001, 3001, 4)
    plan = ObservationPlan.from_stencil(index, weight, 9001, dtype=dtype)
    with kernels.use("cpu"):
        y, z = obs_project(x.to(dtype), plan).double(), obs_adjoint(r.to(dtype), plan).double()
    for m in range(6):
        # Summed exactly: a processor's own way of summing in float64 may be as far off as the operations.
        left, right = (math.fsum((a[m] * b[m].to(dtype).double()).tolist()) for a, b in ((y, r), (z, x)))
        size = float((y[m] * r[m]).abs().sum())
        assert abs(left - right) <= 10 * torch.finfo(dtype).eps * size / math.sqrt(3001)


def test_the_same_bits_every_time_on_any_number_of_threads(checks):
    index, weight, x, r = (t.float() if t.is_floating_point() else t for t in draw(17, 6000, 9000, 4))
    plan = ObservationPlan.from_stencil(index, weight, 6000)
    checks.assert_bitwise_stable(lambda: obs_project(x, plan))
    checks.assert_bitwise_stable(lambda: obs_adjoint(r, plan))


def test_observations_sorted_by_place_give_the_same_bits(checks, monkeypatch):
    """Of all three operations, for more members than go together, also where nothing is sorted."""
    index, weight, x, r = (t.float() if t.is_floating_point() else t for t in draw(11, 6000, 9001, 4))
    plans = {}
    for many in (9001, 9002):
        monkeypatch.setattr(obs_plan, "_MANY", many)
        plans[many] = ObservationPlan.from_stencil(index, weight, 6000)
    sorted_, unsorted = plans.values()
    assert len(sorted_.transpose) == obs_plan.TILES + obs_plan.SORTED
    assert len(unsorted.transpose) == obs_plan.TILES
    monkeypatch.setattr(obs_plan, "_MANY", 1)
    in_order = index[index[:, 0].argsort()]
    assert len(ObservationPlan.from_stencil(in_order, weight, 6000).transpose) == obs_plan.TILES
    with kernels.use("cpu"):
        assert checks.same_bits(obs_project(x, sorted_), obs_project(x, unsorted))
        assert checks.same_bits(obs_adjoint(r, sorted_), obs_adjoint(r, unsorted))
        for robust in (None, Huber(1.0)):
            pair = (obs_residual(x, plan, r[0], noise=r, robust=robust) for plan in (sorted_, unsorted))
            assert all(checks.same_bits(one, other) for one, other in zip(*pair))
    checks.assert_bitwise_stable(lambda: obs_adjoint(r, sorted_), repeats=20)


def test_strides(checks):
    """What is contiguous goes to C++ however it is aligned; the rest to torch, with the reason, and the same values."""
    checks.isas()
    index, weight, x, _ = draw(4, 501, 300, 4)
    plan = ObservationPlan.from_stencil(index, weight, 501)
    expected = obs_project(x, plan)
    wide = torch.full((4, 1002), torch.nan, dtype=torch.float64)
    wide[:, ::2] = x
    shifted = torch.cat([torch.full((1,), torch.nan, dtype=torch.float64), x.flatten()])[1:].reshape(4, 501)
    views = {"every other": wide[:, ::2], "transposed": x.T.contiguous().T, "shifted": shifted}
    for name, view in views.items():
        with kernels.trace() as taken:
            torch.testing.assert_close(obs_project(view, plan), expected, rtol=1e-12, atol=1e-12)
        reason = "C++, " if name == "shifted" else "a tensor is not contiguous"
        assert taken[0].reason.startswith(reason)
    same = obs_project(x[:1].expand(3, -1), plan)
    assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_into_memory_of_the_caller(checks, implementation):
    checks.isas()
    index, weight, x, r = draw(4, 501, 300, 4)
    plan = ObservationPlan.from_stencil(index, weight, 501)
    y, z = (torch.full(shape, torch.nan, dtype=torch.float64) for shape in ((4, 300), (4, 501)))
    with kernels.use(implementation):
        assert obs_adjoint(r, plan, out=z) is z
        assert checks.same_bits(z, obs_adjoint(r, plan))
        assert checks.same_bits(obs_project(x, plan, out=y), obs_project(x, plan))
    with pytest.raises(InputError, match=r"obs_adjoint into \[\(4, 300\)\]; accepted: \[\(4, 501\)\]"):
        obs_adjoint(r, plan, out=y)


def test_absent_points_leave_no_trace(checks):
    """Weight 0 pads a stencil."""
    checks.isas()
    index, weight, x, r = draw(2, 400, 50, 4)
    weight[:, 3], index[:, 3], weight[7] = 0, 0, 0
    r[:, 7] = torch.nan
    with kernels.use("cpu"):
        gradient = obs_adjoint(r, ObservationPlan.from_stencil(index, weight, 400))
    points = (r.nan_to_num()[:, :, None] * weight).flatten(1)
    expected = torch.zeros_like(x).index_add(1, index.flatten(), points)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_it_is_the_stencil_operator(checks):
    index, weight, x, r = draw(3, 2 * 6 * 8, 40, 4)
    operator = StencilOperator(index, weight, r[0], (2, 6, 8), values=np.zeros(40))
    plan = ObservationPlan.from_stencil(operator.index, operator.weight, 96)
    state = x.reshape(3, 2, 6, 8)
    torch.testing.assert_close(obs_project(state, plan) + operator.offset, operator(state))
    torch.testing.assert_close(obs_adjoint(r, plan).reshape(3, 2, 6, 8), operator.adjoint(r))


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_derivatives(checks, implementation):
    checks.isas()
    index, weight, x, r = draw(2, 12, 9, 3)
    plan = ObservationPlan.from_stencil(index, weight, 12)
    u, v = torch.randn_like(r), torch.randn_like(x)
    with kernels.use(implementation):
        for f, point in ((lambda x: obs_project(x, plan), x), (lambda r: obs_adjoint(r, plan), r)):
            assert torch.autograd.gradcheck(f, point.clone().requires_grad_(), check_forward_ad=True)
            assert torch.autograd.gradgradcheck(f, point.clone().requires_grad_())
        value, vjp = torch.func.vjp(lambda x: obs_project(x, plan), x)
        torch.testing.assert_close(value, obs_project(x, plan))
        torch.testing.assert_close(vjp(u)[0], obs_adjoint(u, plan))
        torch.testing.assert_close(torch.func.jvp(lambda x: obs_project(x, plan), (x,), (v,))[1], obs_project(v, plan))
        for f, point in ((lambda x: obs_project(x, plan), x), (lambda r: obs_adjoint(r, plan), r)):
            several = torch.stack([point, 2 * point, -point])
            torch.testing.assert_close(torch.func.vmap(f)(several), torch.stack([f(p) for p in several]))
            torch.testing.assert_close(torch.func.jacfwd(f)(point), torch.func.jacrev(f)(point))
            torch.testing.assert_close(torch.func.jacrev(f)(point), torch.autograd.functional.jacobian(f, point))


def test_entries_of_many_cells_beyond_int32(checks):
    """The order of a tile's cells is by their entries, of which one cell of 2^31 may have thousands."""
    checks.isas()
    cells, full = 2**31 - 1, 3000
    places = torch.cat([torch.full((full,), cells - 1), torch.tensor([0, 5000, 2**30, cells - 5000])])
    width = native.load("cpu").code.build_info()["tile"]
    cell, length, observation, _, tile = obs_plan._jagged_diagonals(
        places[None].to(torch.int32), torch.ones(1, len(places)), cells, width
    )
    first_cell, first_column, first_entry = tile.unbind(1)
    found = torch.empty(len(places), dtype=torch.int64)
    for t in first_cell.diff().nonzero().flatten().tolist():
        entry = int(first_entry[t])
        for column in range(int(first_column[t]), int(first_column[t + 1])):
            for i in range(int(length[column])):
                found[observation[entry]] = t * width + cell[int(first_cell[t]) + i]
                entry += 1
    assert torch.equal(found, places)


def test_registration(checks):
    index, weight, x, r = draw(2, 12, 9, 3)
    plan = ObservationPlan.from_stencil(index, weight, 12)
    x.requires_grad_()
    torch.library.opcheck(PROJECT.op, (x, *plan.arguments))
    torch.library.opcheck(ADJOINT.op, (r.requires_grad_(), *plan.arguments))


def test_compiled_whole(checks):
    """Values and gradient through torch.compile, in one graph."""
    index, weight, x, r = draw(2, 12, 9, 3)
    plan = ObservationPlan.from_stencil(index, weight, 12)
    point = x.clone().requires_grad_()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def product(x):
        return (obs_project(2.0 * x, plan) * r).sum()

    (gradient,) = torch.autograd.grad(product(point), point)
    torch.testing.assert_close(gradient, 2.0 * obs_adjoint(r, plan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: obs_project(torch.zeros(2, 5), p), r"\(2, 5\); accepted: \(members, 12 cells\)"),
        (lambda p: obs_project(torch.zeros(12), p), r"\(12,\); accepted"),
        (lambda p: obs_adjoint(torch.zeros(2, 8), p), r"\(2, 8\); accepted: \(members, 9 observations\)"),
        (lambda p: ObservationPlan.from_stencil(torch.tensor([[12]]), torch.ones(1, 1), 12), "accepted: 0 to 11"),
        (lambda p: ObservationPlan.from_stencil(torch.tensor([[-1]]), torch.ones(1, 1), 12), "index from -1"),
        (lambda p: ObservationPlan.from_stencil(torch.tensor([1]), torch.ones(1), 12), r"\(P, K\) twice"),
        (lambda p: ObservationPlan.from_stencil(torch.tensor([[1]]), torch.ones(1, 1), 2**31), "2147483648 cells"),
        (
            lambda p: ObservationPlan.from_stencil(torch.ones(9, 0).long(), torch.ones(9, 0), 12),
            r"no points \(9, 0\); accepted: \(P, K\) with K of 1 or more",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    index, weight, *_ = draw(2, 12, 9, 3)
    plan = ObservationPlan.from_stencil(index, weight, 12)
    with pytest.raises(InputError, match=message):
        call(plan)
