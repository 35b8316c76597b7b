"""The counter-based noise: known answers, independence, and the same member in any company."""

import math

import pytest
import torch

from lsda_fast.diffusion.noise import normal
from lsda_fast.kernels.noise import philox

# Random123 1.14, examples/kat_vectors: philox4x32, 10 rounds.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == answer


def test_philox_on_a_batch_is_philox_on_each():
    counters, keys, answers = zip(*KNOWN_ANSWERS)
    batch = philox(tuple(torch.tensor(column) for column in zip(*counters)), keys[2])
    assert tuple(int(word[2]) for word in batch) == answers[2]


def test_counter_and_key_are_seed_step_member_and_stream():
    seed, member, step, stream = (5 << 32) + 7, 3, 11, 2
    words = philox(tuple(torch.tensor([word]) for word in (0, step, member, stream)), (7, 5))
    u = [(int(word) + 0.5) / 2**32 for word in words]
    expected = [
        f(2 * math.pi * u[i + 1]) * math.sqrt(-2 * math.log(u[i])) for i in (0, 2) for f in (math.cos, math.sin)
    ]
    z = normal((4,), seed=seed, members=[member], step=step, stream=stream, dtype=torch.float64)
    torch.testing.assert_close(z[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_moments_of_a_normal():
    z = normal((2000,), seed=1, members=range(100), dtype=torch.float64).flatten()
    n = len(z)
    # Standard errors of the first four moments of n normals: 1, sqrt 2, sqrt 15, sqrt 96 over sqrt n.
    for power, moment, error in ((1, 0, 1.0), (2, 1, 2.0), (3, 0, 15.0), (4, 3, 96.0)):
        assert abs(float((z**power).mean()) - moment) < 4.5 * math.sqrt(error / n)
    tail = 2 * n * 0.5 * math.erfc(3 / math.sqrt(2))
    assert abs(float((z.abs() > 3).sum()) - tail) < 4.5 * math.sqrt(tail)


def test_antithetic_members_are_opposite_and_the_same_in_any_company():
    z = normal((7,), seed=3, members=range(6), antithetic=True)
    assert torch.equal(z[::2], normal((7,), seed=3, members=range(3)))
    assert torch.equal(z[1::2], -z[::2])
    assert torch.equal(z[[5]], normal((7,), seed=3, members=[5], antithetic=True))


@pytest.mark.parametrize("other", [{"members": [4]}, {"step": 1}, {"stream": 1}, {"seed": 1}, {"seed": 1 << 32}])
def test_members_steps_streams_and_seeds_are_independent(other):
    base = {"seed": 0, "members": [3], "step": 0, "stream": 0, "dtype": torch.float64}
    a, b = normal((40000,), **base)[0], normal((40000,), **base | other)[0]
    assert abs(float((a * b).mean())) < 4.5 / math.sqrt(len(a))
    assert abs(float((a[1:] * b[:-1]).mean())) < 4.5 / math.sqrt(len(a))
    assert not (a == b).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_member_has_the_same_bits_in_any_company(dtype):
    def draw(members):
        return normal((3, 7, 5), seed=9, members=members, step=4, stream=2, dtype=dtype)

    everyone = draw(range(67))
    assert torch.equal(draw([17])[0], everyone[17])
    assert torch.equal(draw([66, 17, 0]), everyone[[66, 17, 0]])


def test_elements_do_not_depend_on_the_shape():
    long = normal((1001,), seed=2, members=[5, 6])
    for size in (1, 2, 3, 4, 5, 64, 1000):
        assert torch.equal(normal((size,), seed=2, members=[5, 6]), long[:, :size])
    assert torch.equal(normal((7, 11, 13), seed=2, members=[5, 6]).flatten(1), long)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    normal((10,), seed=0, members=[0])
    assert torch.equal(torch.rand(3), expected)
