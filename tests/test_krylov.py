"""Conjugate gradients and the Lanczos square root, member by member, against dense algebra."""

import pytest
import torch
from torch import Tensor

from lsda_fast.guidance.krylov import cg, gcr, lanczos_sqrt, matrix, normal, restricted_cg

SOLVERS = (
    lambda A, b, iterations: cg(matrix(A), b, iterations=iterations),
    lambda A, b, iterations: gcr(A, b, iterations=iterations),
    lambda A, b, iterations: lanczos_sqrt(A, b, iterations=iterations),
)


def matrices(conditions: list[float], n: int = 24, dtype: torch.dtype = torch.float64) -> Tensor:
    """One symmetric positive matrix (n, n) per condition number, eigenvalues geometric up to 1."""
    generator = torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(len(conditions), n, n, dtype=torch.float64, generator=generator))[0]
    values = torch.stack([torch.logspace(0, -torch.tensor(c).log10().item(), n).double() for c in conditions])
    return ((V * values[:, None]) @ V.mT).to(dtype)


def right(M: int, n: int = 24, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(M, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def product(A: Tensor):
    return lambda v: torch.einsum("mij,mj->mi", A, v.flatten(1)).reshape(v.shape)


@pytest.mark.parametrize(("dtype", "iterations", "error"), [(torch.float64, 60, 1e-4), (torch.float32, 60, 1e-2)])
def test_cg_solves_each_member(dtype, iterations, error):
    A, b = matrices([1.0, 10.0, 300.0], dtype=dtype), right(3, dtype=dtype)
    x = cg(matrix(product(A)), b, iterations=iterations, tolerance=1e-6)
    residual = (product(A)(x) - b).norm(dim=1) / b.norm(dim=1)
    assert (residual < (2e-6 if dtype == torch.float64 else 1e-3)).all()
    exact = torch.linalg.solve(A.double(), b.double())
    assert ((x - exact).norm(dim=1) / exact.norm(dim=1) < error).all()


def test_cg_minimises_over_the_krylov_space():
    """After k iterations x is the best in span(b, Ab, ..., A^(k-1) b) in the norm of A."""
    A, b, k = matrices([50.0]), right(1), 5
    x = cg(matrix(product(A)), b, iterations=k, tolerance=0.0)[0]
    K = [b[0]]
    for _ in range(k - 1):
        K.append(A[0] @ K[-1])
    Q = torch.linalg.qr(torch.stack(K, dim=1))[0]
    best = Q @ torch.linalg.solve(Q.T @ A[0] @ Q, Q.T @ b[0])
    torch.testing.assert_close(x, best, rtol=1e-8, atol=1e-8)


def test_cg_is_exact_after_as_many_iterations_as_distinct_eigenvalues():
    V = torch.linalg.qr(right(24))[0]
    A = (V * torch.tensor([1.0, 2.0, 5.0] * 8).double() @ V.T)[None]
    b = right(1)
    torch.testing.assert_close(
        product(A)(cg(matrix(product(A)), b, iterations=3, tolerance=0.0)), b, rtol=1e-9, atol=1e-9
    )


def test_a_member_stands_still_once_it_has_converged():
    A, b = matrices([1.0, 1e4]), right(2)
    few, many = (cg(matrix(product(A)), b, iterations=k) for k in (3, 60))
    assert torch.equal(few[0], many[0])
    assert not torch.equal(few[1], many[1])


def test_zero_and_zero_curvature_give_zero_not_nan():
    A, b = matrices([3.0, 3.0]), right(2)
    A[1] = 0.0
    b[0] = 0.0
    assert torch.equal(cg(matrix(product(A)), b, iterations=5), torch.zeros_like(b))
    for solve in SOLVERS[1:]:
        assert torch.equal(solve(product(A), b, 5), torch.zeros_like(b))


def test_a_hard_neighbour_changes_no_bit():
    easy, hard = matrices([5.0, 7.0, 9.0]), matrices([5.0, 7.0, 9.0])
    hard[1] = matrices([1.0, 1e8, 1.0])[1]
    b = right(3)
    for solve in SOLVERS:
        alone, company = (solve(product(A), b, 20) for A in (easy, hard))
        assert torch.equal(alone[[0, 2]], company[[0, 2]])


def test_shapes_of_latents_pass_through():
    A, b = matrices([10.0, 20.0]), right(2)
    for solve in SOLVERS:
        flat, shaped = (solve(product(A), v, 12) for v in (b, b.reshape(2, 2, 3, 4)))
        torch.testing.assert_close(shaped.flatten(1), flat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "iterations", "error"),
    [(torch.float64, 24, 1e-10), (torch.float64, 12, 2e-3), (torch.float32, 24, 1e-4)],
)
def test_lanczos_square_root(dtype, iterations, error):
    A, b = matrices([1.0, 10.0, 100.0], dtype=dtype), right(3, dtype=dtype)
    values, vectors = torch.linalg.eigh(A.double())
    exact = torch.einsum("mij,mj,mkj,mk->mi", vectors, values.sqrt(), vectors, b.double())
    root = lanczos_sqrt(product(A), b, iterations=iterations)
    assert ((root - exact).norm(dim=1) / exact.norm(dim=1) < error).all()


def test_negative_eigenvalues_count_as_zero():
    V = torch.linalg.qr(right(24))[0]
    values = torch.cat([torch.linspace(1, 2, 20), -torch.linspace(1, 2, 4)]).double()
    A, b = (V * values @ V.T)[None], right(1)
    exact = V @ (values.clamp_min(0).sqrt() * (V.T @ b[0]))
    torch.testing.assert_close(lanczos_sqrt(product(A), b, iterations=24)[0], exact, rtol=1e-7, atol=1e-7)


def test_cg_with_the_inverse_as_preconditioner_needs_one_iteration():
    A, b = matrices([300.0, 1e4]), right(2)
    x = cg(matrix(product(A)), b, iterations=1, precondition=product(torch.linalg.inv(A)))
    torch.testing.assert_close(product(A)(x), b, rtol=1e-8, atol=1e-8)


def test_an_iterative_preconditioner_leaves_the_solution_and_saves_iterations():
    """A few iterations of cg on a matrix near A, which is no linear map: flexible cg still finds A^-1 b."""
    A, b = matrices([1e4, 1e4]), right(2)
    near = A + 1e-4 * torch.diag_embed(right(2).abs())
    inner = lambda r: cg(matrix(product(near)), r, iterations=12)  # noqa: E731
    exact = torch.linalg.solve(A, b)
    wrong = {
        name: (cg(matrix(product(A)), b, iterations=8, tolerance=0.0, precondition=p) - exact).norm() / exact.norm()
        for name, p in (("plain", None), ("preconditioned", inner))
    }
    assert wrong["preconditioned"] < 0.02 * wrong["plain"]


def test_the_normal_operator_is_its_matrix_and_takes_one_adjoint_less():
    F, adjoints = right(12)[:, :5], []
    A, b = torch.eye(5).double() + F.T @ F, right(2, 5)

    def adjoint(w: Tensor) -> Tensor:
        adjoints.append(1)
        return w @ F

    x = cg(normal(lambda v: v @ F.T, adjoint), b, iterations=3, tolerance=0.0)
    torch.testing.assert_close(x, cg(matrix(lambda v: v @ A), b, iterations=3, tolerance=0.0), rtol=1e-12, atol=1e-12)
    assert len(adjoints) == 2


@pytest.mark.parametrize("iterations", [1, 5, 24])
def test_conjugate_residuals_are_the_least_in_the_krylov_space_of_any_matrix(iterations):
    """Not symmetric, with eigenvalues on both sides of zero."""
    A, b = matrices([30.0, 3.0]) - 0.2 * torch.eye(24).double(), right(2)
    A = A + 0.1 * right(24)
    x = gcr(product(A), b, iterations=iterations, tolerance=0.0)
    for m in range(2):
        K = [b[m]]
        for _ in range(iterations - 1):
            K.append(A[m] @ K[-1] / K[-1].norm())
        image = A[m] @ torch.linalg.qr(torch.stack(K, dim=1))[0]
        least = b[m] - image @ torch.linalg.lstsq(image, b[m][:, None]).solution[:, 0]
        torch.testing.assert_close(b[m] - A[m] @ x[m], least, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 4, 24])
def test_restricted_cg_has_the_iterates_of_cg_from_products_of_the_rows(iterations):
    F, calls = right(5), []
    b = torch.stack([right(1)[0], F.sum(0), torch.zeros(24).double()])  # anywhere, in the range of F', and nothing

    def gram(w: Tensor) -> Tensor:
        calls.append(1)
        return w @ F @ F.T

    x = restricted_cg(lambda v: v @ F.T, lambda w: w @ F, gram, b, iterations=iterations)
    expected = cg(normal(lambda v: v @ F.T, lambda w: w @ F), b, iterations=iterations)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == iterations - 1
