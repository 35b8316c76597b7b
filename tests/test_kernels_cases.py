"""Every native operation at every size of the shared table: C++ against plain torch, and members in any company."""

import pytest

from bench.cases.table import CASES
from lsda_fast import kernels
from lsda_fast.kernels import registry

kernels.report()
# Matrix products fuse multiplications and additions, which the baseline cannot.
FUSED = (
    "geo_conv",
    "geo_conv_adjoint",
    "norm_conv",
    "norm_conv_jvp",
    "norm_conv_vjp",
    "restricted_solve",
    "shuffle_adjoint",
    "shuffle_product",
    "zonal_adjoint",
    "zonal_product",
)
EVERY = [
    (operation, label)
    for operation, cases in CASES.items()
    if "cpu" in registry.OPERATIONS[operation].natives
    for label in cases
]


def test_every_operation_has_cases_and_no_case_is_without():
    assert set(CASES) == {name for name in registry.OPERATIONS if name != "of_a_test"}
    assert all(CASES.values())


@pytest.mark.parametrize(("operation", "label"), EVERY)
def test_values_are_those_of_float64(checks, operation, label):
    case = CASES[operation][label]()
    without = ("baseline",) if operation in FUSED else ()
    checks.assert_as_accurate(lambda dtype: case(checks.SINGLE, dtype), without=without)


@pytest.mark.parametrize(("operation", "label"), EVERY)
def test_a_member_is_the_same_in_any_company(checks, operation, label):
    checks.isas()
    case = CASES[operation][label]()
    if not case.in_company or not len(case.inputs[0]):
        return
    with kernels.use("cpu"):
        function, inputs = case.prepare(checks.SINGLE)
        everyone = checks.flat(function(*inputs))
        for rows in ([0], [len(inputs[0]) - 1, 0]):
            assert checks.same_bits(function(*(t[rows] for t in inputs)), [t[rows] for t in everyone])
