"""noise and sampler_step: Philox to the bit, normals to an ulp, the transitions of the solvers in one pass."""

from functools import partial

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.diffusion import DDIM, Ancestral, DPMpp2M, Heun, Renoise, Schedule
from lsda_fast.diffusion.noise import Key, normal
from lsda_fast.errors import InputError
from lsda_fast.kernels import native
from lsda_fast.kernels.noise import NOISE, noise_reference, philox, signed
from lsda_fast.kernels.sampler_step import SAMPLER, sampler_step

# What the reference loses by rounding its angle, 2^-51, times the largest radius, sqrt(66 log 2), and as much again.
ANGLE = 6e-15
SEED = (0x9ABCDEF0 << 32) + 0x12345678


def key(seed):
    return torch.tensor([signed(seed)])


def draw(members, size, seed=SEED, step=3, stream=2, dtype=torch.float32):
    return NOISE(torch.tensor(members), size, key(seed), step, stream, dtype)


def test_philox_gives_the_same_words_on_every_instruction_set(checks):
    g = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (4, 1003), generator=g)
    counters[:, :2] = torch.tensor([0, 2**32 - 1])
    narrow = counters.to(torch.int32)
    for seed in (0, SEED, 2**64 - 1):
        expected = torch.stack(philox(tuple(counters), (seed & 0xFFFFFFFF, seed >> 32)))
        for isa in checks.isas():
            words = torch.full((4, 1003), -1, dtype=torch.int32)
            with kernels.use("cpu", isa=isa):
                native.load("cpu").code.philox(words.data_ptr(), narrow.data_ptr(), 1003, seed)
            assert torch.equal(words.long() & 0xFFFFFFFF, expected)


@pytest.mark.parametrize("size", [1, 3, 4, 127, 129, 4095, 4096, 4097, 20001])
def test_normals_are_the_reference_to_an_ulp(checks, size):
    members = [0, 17, 2**32 - 1, 2**32 + 17]
    arguments = (torch.tensor(members), size, key(SEED), 3, 2)
    for isa in checks.isas():
        with kernels.use("cpu", isa=isa), checks.poisoned():
            fast, double = draw(members, size), draw(members, size, dtype=torch.float64)
        plain = noise_reference(*arguments, torch.float32)
        ulp = torch.nextafter(plain.abs(), torch.tensor(torch.inf)) - plain.abs()
        assert ((fast - plain).abs() <= ulp + ANGLE).all()
        assert float((double - noise_reference(*arguments, torch.float64)).abs().max()) <= ANGLE
        assert torch.equal(double.float(), fast)


def test_noise_is_the_package_s_noise(checks):
    checks.isas()
    expected = normal((3, 7, 5), seed=SEED, members=[4, 9], step=1, stream=3, dtype=torch.float64)
    with kernels.use("cpu"):
        fast = draw([4, 9], 105, step=1, stream=3, dtype=torch.float64)
    torch.testing.assert_close(fast.reshape(2, 3, 7, 5), expected, rtol=0, atol=ANGLE)


def test_a_key_draws_for_other_members_and_seeds_in_place():
    """A captured graph is replayed with what is copied into its key."""
    here, there = Key.of(1, [4, 5], antithetic=True), Key.of(2**64 - 1, [9, 2])
    expected = there.normal((3, 5), step=2, dtype=torch.float32)
    here.members.copy_(there.members)
    here.seed.copy_(there.seed)
    assert torch.equal(here.normal((3, 5), step=2, dtype=torch.float32), expected)
    assert torch.equal(expected, normal((3, 5), seed=2**64 - 1, members=[9, 2], step=2))


def test_half_precision_comes_from_the_reference(checks):
    checks.isas()
    with kernels.trace() as taken:
        value = draw([1], 8, dtype=torch.bfloat16)
    assert taken == [("noise", "reference", "noise of torch.bfloat16; C++ makes float32 and float64")]
    assert torch.equal(value, draw([1], 8, dtype=torch.float64).to(torch.bfloat16))


def latents(M, *shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(M, *shape, generator=g, dtype=torch.float64).float().double() for _ in range(4)]


@pytest.mark.parametrize("kind", ["vp_cosine", "vp_linear", "edm"])
def test_transitions_are_those_of_the_solvers(checks, kind):
    checks.isas()
    schedule = Schedule(kind)
    t, s = schedule.level(0.6, 3), schedule.level(0.4, 4)
    z0, z_t, *_ = latents(3, 2, 5, 6)
    whose = Key.of(9, [2, 40, 7])
    for solver in (Renoise(), DDIM(), DDIM(0.4), Ancestral(), Heun(), DPMpp2M()):
        memory = {"z0": 0.9 * z0, "h": 0.2}
        settings = {"guided": lambda z, level: 0.5 * z, "combine": partial(whose.step, step=3), "memory": memory}
        with kernels.use("reference"):
            expected = solver.step(z0, z_t, t, s, **settings | {"memory": dict(memory)})
        with kernels.use("cpu"), kernels.trace() as taken:
            z_s = solver.step(z0, z_t, t, s, **settings)
        torch.testing.assert_close(z_s, expected, rtol=1e-13, atol=1e-13)
        assert {choice.operation for choice in taken} == {"sampler_step"}
        assert len(taken) == (2 if isinstance(solver, Heun) else 1)


def test_the_same_bits_every_time_on_any_number_of_threads(checks):
    terms = [z.float() for z in latents(9, 13000)[:2]]
    members = torch.arange(9)
    checks.assert_bitwise_stable(
        lambda: sampler_step(terms, [0.4, 0.5], noise=0.3, members=members, seed=key(1), step=2)
    )


def test_more_terms_go_to_the_reference_and_other_strides_do_not(checks):
    checks.isas()
    z, *_ = latents(2, 6)
    with kernels.trace() as taken:
        five = sampler_step([z] * 5, [1.0] * 5)
        turned = sampler_step([z.T.contiguous().T], [2.0])
    assert [choice.implementation for choice in taken] == ["reference", "cpu"]
    assert taken[0].reason == "5 terms; native code takes up to 4"
    torch.testing.assert_close(five, 5 * z)
    torch.testing.assert_close(turned, 2 * z)


def test_registration(checks):
    z, *_ = latents(2, 6)
    torch.library.opcheck(SAMPLER.op, ([z, z], [0.5, 2.0], 0.3, torch.arange(2), key(7), 1, 0))
    turned = z.T.contiguous().T
    torch.library.opcheck(SAMPLER.op, ([turned, z], [0.5, 2.0], 0.3, torch.arange(2), key(7), 1, 0))
    torch.library.opcheck(NOISE.op, (torch.arange(2), 6, key(7), 1, 0, torch.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: sampler_step([], []), r"terms \[\], 0 coefficients"),
        (lambda z: sampler_step([z], [1.0, 2.0]), "2 coefficients"),
        (lambda z: sampler_step([z, z[:1]], [1.0, 2.0]), "accepted: terms of one shape"),
        (lambda z: sampler_step([z], [1.0], noise=0.1), "noise 0.1 without members"),
        (lambda z: sampler_step([z], [1.0], noise=0.1, members=torch.arange(3)), r"\(3,\) members of 2"),
        (lambda z: sampler_step([z], [1.0], members=torch.arange(2.0)), "members of 2, torch.float32; accepted: one"),
        (lambda z: sampler_step([z], [1.0], seed=torch.arange(2)), r"a seed \(2,\), torch.int64; accepted: \(1,\)"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(2, 6))
