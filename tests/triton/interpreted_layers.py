"""Triton's operations on layers of networks, interpreted, against plain torch: the head and the norms."""

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels import gated_residual_norm as gated
from lsda_fast.kernels import norm_silu as norm
from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.head_project import head_adjoint, head_project
from lsda_fast.kernels.norm_silu import norm_silu
from lsda_fast.kernels.triton import head_adjoint as triton_adjoint
from lsda_fast.kernels.triton import head_project as triton_project
from lsda_fast.kernels.triton import norm_parts, norm_slices

# What the interpreter rounds to float32 stays itself.
EPS = 2.0**-17


def randn(*shape, seed=0):
    """Numbers that float32 holds, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float().double()


# M, S, F, T, R, U, and the places that the rows keep to
HEADS = {
    "one of each": (1, 1, 1, 1, 1, 1, 1),
    "no row": (3, 7, 5, 9, 4, 0, 7),
    "no member": (0, 5, 8, 1, 4, 20, 5),
    "convolution, scattered": (3, 12, 7, 9, 12, 20, 12),
    "duplicates at one place": (2, 5, 4, 9, 12, 90, 1),
    "tokens": (5, 6, 21, 1, 40, 50, 6),
}


def head(M, S, F, T, R, U, around):
    """features (M, F, S), values (M, U), and the arguments of a plan."""
    g = torch.Generator().manual_seed(5)
    neighbours = torch.randint(0, S, (S, T), generator=g)
    place, row = torch.randint(0, around, (U,), generator=g), torch.randint(0, R, (U,), generator=g)
    return randn(M, F, S), randn(M, U, seed=1), (randn(R, T, F, seed=2), neighbours, place, row)


@pytest.fixture
def small_blocks(monkeypatch):
    """More than one block of members, rows, patch and features."""
    for module, names in ((triton_project, "_ROWS _MEMBERS _SIZE"), (triton_adjoint, "_ROWS _MEMBERS _FEATURES")):
        for name, size in zip(names.split(), (16, 2, 16), strict=True):
            monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("last", [False, True], ids=["features first", "features last"])
@pytest.mark.parametrize("case", HEADS.values(), ids=HEADS)
def test_head(checks, small_blocks, case, last):
    features, values, (weight, *where) = head(*case)
    features = features.mT.contiguous().mT if last else features

    def plan(dtype):
        return HeadPlan.from_rows(weight.to(dtype), *where)

    checks.assert_as_accurate(lambda d: head_project(features.to(d), plan(d)), "triton")
    checks.assert_as_accurate(lambda d: head_adjoint(values.to(d), plan(d), last=last), "triton")


def test_head_leaves_rows_and_members_apart(checks):
    """What is not a number stays with its member and its site."""
    features, values, where = head(3, 6, 4, 1, 3, 8, 6)
    plan = HeadPlan.from_rows(*where)
    with kernels.use("triton"):
        y, z = head_project(features, plan), head_adjoint(values, plan)
        features[1], values[1] = torch.nan, torch.nan
        for spoilt, whole in ((head_project(features, plan), y), (head_adjoint(values, plan), z)):
            assert checks.same_bits(spoilt[[0, 2]], whole[[0, 2]])
        assert head_project(features, plan)[1].isnan().all()
        values[0, 3] = torch.nan
        touched = (head_adjoint(values, plan)[0] != z[0]).any(0).nonzero().flatten()
    assert touched.tolist() == [int(where[1][where[2][3], 0])]


# Rows, channels, places, groups, whether the channels lie last, and rows of a and b.
SLICES = {
    "tokens": (5, 7, 1, 1, True, 5),
    "planes": (2, 6, 5, 2, False, 1),
    "channels last": (2, 6, 7, 3, True, 2),
    "no member": (0, 4, 3, 2, True, 1),
    "no place": (2, 4, 0, 2, True, 1),
}
# Of those that are images: rows, columns and margin; periodic, north, south, torus.
IMAGES = {"planes": (1, 5, 1, 0, 1, 1, 0), "channels last": (1, 7, 1, 1, 1, 1, 0)}


def slices(R, C, S, groups, last, A):
    """t, x, a, b."""
    shape = (R, S, C) if last else (R, C, S)
    return randn(*shape), randn(*shape, seed=1), randn(A, C, seed=2), randn(A, C, seed=3)


@pytest.fixture(params=["whole", "parts"])
def way(request, monkeypatch):
    """Slices in one program, or in several parts of several tiles."""
    if request.param == "parts":
        monkeypatch.setattr(norm_slices, "TILE", 0)
        small = {"_SUMS": 8, "_APPLY": 8, "_CHANNELS": 4, "_PARTS": 3, "_WIDTH": 4}
        for name, size in small.items():
            monkeypatch.setattr(norm_parts, name, size)


@pytest.mark.parametrize("name", SLICES)
def test_norm_silu(checks, way, name):
    """With SiLU, but for planes."""
    case = SLICES[name]
    t, *rest = slices(*case)
    for image in ((), IMAGES.get(name, ())):
        if image:
            places = (image[0] + 2) * (image[1] + 2)
            u = randn(len(t), *((places, case[1]) if case[4] else (case[1], places)), seed=4)
        settings = (case[3], case[4], name != "planes", list(image))

        def run(d, operation=None, t=t, settings=settings):
            x, a, b = (z.to(d) for z in rest)
            y, kept = norm.VALUE(x, a, b, *settings, EPS)
            return (y, kept) if operation is None else operation(t.to(d), x, kept, a, b, *settings)

        checks.assert_as_accurate(run, "triton")
        checks.assert_as_accurate(lambda d, run=run: run(d, norm.JVP), "triton")
        checks.assert_as_accurate(lambda d, run=run, u=u if image else t: run(d, norm.VJP, u), "triton")


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_a_mean_far_from_zero_costs_nothing(checks, way):
    case = SLICES["channels last"]
    t, x, a, b = slices(*case)
    inputs = (t, (x + 300).float().double(), a, b)

    def run(d):
        t, x, a, b = (z.to(d) for z in inputs)
        kept = norm.VALUE(x, a, b, 3, True, True, [], EPS)[1]
        return norm.JVP(t, x, kept, a, b, 3, True, True, [])

    checks.assert_as_accurate(run, "triton")


@pytest.mark.parametrize("with_gate", [True, False])
@pytest.mark.parametrize(("R", "C", "A"), [(5, 7, 5), (6, 3, 2), (0, 8, 1)])
def test_gated_residual_norm(checks, R, C, A, with_gate):
    three = [randn(R, C, seed=s) for s in range(3)]
    gate, a, b = (randn(A, C, seed=3 + s) for s in range(3))

    def inputs(d, count):
        return [z.to(d) for z in three[:count]], gate.to(d) if with_gate else None, a.to(d)

    def product(operation):
        def run(d):
            some, g, scale = inputs(d, 3)
            return operation(*some, g, scale, EPS)

        return run

    def value(d):
        some, g, scale = inputs(d, 2)
        return gated.VALUE(*some, g, scale, b.to(d), EPS)

    checks.assert_as_accurate(value, "triton")
    checks.assert_as_accurate(product(gated.JVP), "triton")
    checks.assert_as_accurate(product(gated.VJP), "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_parameters_in_float32(checks, way, dtype):
    """Float32 rounded once, to 2 units in the last place, as the interpreter truncates."""
    case = SLICES["channels last"]
    t, x, a, b = (z.float() for z in slices(*case))
    rows, branch, gate = (randn(4, 6, seed=s).to(dtype) for s in range(3))
    one, two = randn(4, 6, seed=4).float(), randn(4, 6, seed=5).float()
    features, values, (weight, *where) = head(2, 4, 5, 1, 3, 6, 4)
    settings = (3, True, True, [])

    def everything(d):
        data = [z.to(dtype).to(d) for z in (t, x)]
        y, kept = norm.VALUE(data[1], a, b, *settings, EPS)
        assert kept.dtype == torch.float32
        yield y
        yield norm.JVP(*data, kept, a, b, *settings)
        yield norm.VJP(*data, kept, a, b, *settings)
        stream = [z.to(d) for z in (rows, branch, gate)]
        yield from gated.VALUE(*stream, one, two, EPS)
        yield from gated.JVP(stream[0], stream[1], stream[0], stream[2], one, EPS)
        yield from gated.VJP(stream[0], stream[1], stream[0], stream[2], one, EPS)
        plan = HeadPlan.from_rows(weight.to(dtype).to(d), *where)
        yield head_project(features.to(dtype).to(d), plan)
        yield head_adjoint(values.to(dtype).to(d), plan)

    with kernels.use("reference"):
        expected = list(everything(torch.float32))
    with kernels.use("triton"), checks.poisoned():
        fast = list(everything(dtype))
    eps = torch.finfo(dtype).eps
    for f, e in zip(fast, expected, strict=True):
        assert f.dtype == dtype
        torch.testing.assert_close(f.float(), e, rtol=2 * eps, atol=eps * float(e.abs().max()))


def test_a_member_is_the_same_in_any_company(checks, way):
    features, values, (weight, *where) = head(3, 5, 4, 9, 6, 12, 5)
    plan = HeadPlan.from_rows(weight.float(), *where)
    t, x, a, b = (z.float() for z in slices(3, 4, 5, 2, True, 3))
    u, v = randn(3, 6).float(), randn(3, 6, seed=1).float()

    def everything(rows):
        own = [z[rows] for z in (t, x, a, b)]
        yield head_project(features.float()[rows], plan)
        yield head_adjoint(values.float()[rows], plan)
        settings = (2, True, True, [])
        y, kept = norm.VALUE(*own[1:], *settings, EPS)
        yield from (y, kept)
        yield norm.JVP(*own[:2], kept, *own[2:], *settings)
        yield norm.VJP(*own[:2], kept, *own[2:], *settings)
        yield from gated.VJP(u[rows], v[rows], u[rows], None, v[rows], EPS)

    with kernels.use("triton"):
        everyone = list(everything([0, 1, 2]))
        for rows in ([0], [2, 1]):
            assert checks.same_bits(list(everything(rows)), [t[rows] for t in everyone])


def test_what_it_cannot_take():
    wide = torch.zeros(1, 2049)
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    with kernels.use("triton"):
        with pytest.raises(InputError, match="in Triton: tokens of 2049 channels; Triton takes up to 2048"):
            gated.VALUE(wide, wide, None, wide, wide, EPS)
        with pytest.raises(
            InputError, match=r"float64; Triton takes .* all alike, but for float32 beside half precision"
        ):
            norm_silu(half, torch.ones(3, dtype=torch.float64))
        with kernels.trace() as taken:
            assert norm_silu(half, torch.ones(3)).dtype == norm_silu(half, scale=half).dtype == torch.bfloat16
    assert [choice.implementation for choice in taken] == ["triton", "triton"]
