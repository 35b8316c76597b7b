"""The loop: the same members in any company, what it counts, what it reports, what it refuses."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lsda_fast.diffusion import DDIM, DPMpp2M, Heun, Langevin, Schedule
from lsda_fast.diffusion.noise import Key, normal
from lsda_fast.errors import InputError, NonFiniteError
from lsda_fast.guidance import DPS, LBFGS, MMPS, Adam, GaussNewton, LatentOptimization, ObsFree, Repaint
from lsda_fast.guidance.base import STREAMS
from lsda_fast.sampler import Sampler

METHODS = {
    "free": ObsFree(),
    "dps": DPS(),
    "dps_norm": DPS(norm=True, scale=0.01),
    "mmps": MMPS(iterations=3),
    "repaint": Repaint(),
    "gauss_newton": LatentOptimization(GaussNewton(2, 3)),
    "adam": LatentOptimization(Adam(4)),
    "lbfgs": LatentOptimization(LBFGS(3)),
    "tweedie": LatentOptimization(GaussNewton(2, 3), prior_covariance="tweedie", lanczos=4),
}


@pytest.fixture(scope="module")
def single(toy):
    return toy.build("correlated", n=20, P=8, dtype=torch.float32)


@pytest.fixture(scope="module")
def small(toy):
    return toy.build("correlated", n=20, P=8)


def run(guidance, problem, members, *, block=8, **settings):
    call = {name: settings.pop(name) for name in ("seed", "recenter", "on_step") if name in settings}
    sampler = Sampler(guidance, block=block, **settings)
    return sampler(problem.prior, problem.likelihood, members=members, **call)


@pytest.mark.parametrize("block", [5, 8])
@pytest.mark.parametrize("guidance", METHODS.values(), ids=METHODS)
def test_a_member_has_the_same_bits_in_any_company(single, guidance, block):
    everyone = run(guidance, single, range(24), block=block, steps=2, recenter=False)
    some = run(guidance, single, [17, 3], block=block, steps=2, recenter=False)
    assert some.members == (17, 3)
    assert torch.equal(some.z, everyone.z[[17, 3]])


@pytest.mark.parametrize("guidance", METHODS.values(), ids=METHODS)
def test_blocks_agree_up_to_rounding(small, guidance):
    a, b = (run(guidance, small, 4, block=block, steps=2, recenter=False).z for block in (1, 4))
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_members_and_seeds_differ(small):
    z = run(DPS(), small, 4, steps=3).z
    other = run(DPS(), small, 4, steps=3, seed=1).z
    assert torch.pdist(torch.cat([z, other])).min() > 0.1


def test_a_hard_member_changes_no_other(small):
    """Members of one block share every call and nothing else: a bad one leaves its neighbours' bits."""

    def poisoned(z_t, t):
        z0 = small.prior.denoise(z_t, t)
        hit = torch.zeros(len(z_t), 1, dtype=torch.bool)
        hit[2] = True
        return torch.where(hit, torch.full_like(z0, torch.nan), z0)

    bad = replace(small, prior=replace(small.prior, denoise=poisoned))
    for guidance in METHODS.values():
        clean = run(guidance, small, [0, 1, 3, 7], steps=2, recenter=False)
        beside = run(guidance, bad, [0, 1, 3, 7], steps=2, recenter=False)
        assert torch.equal(clean.z, beside.z), guidance
        with pytest.raises(NonFiniteError, match=r"members \[2, 10\] of seed 5 are not finite") as caught:
            run(guidance, bad, range(12), steps=2, seed=5)
        assert type(guidance).__name__ in str(caught.value)


def test_on_step_sees_every_level_of_every_block(small):
    steps = []
    samples = run(ObsFree(), small, 6, block=4, steps=3, on_step=steps.append)
    assert [(step.members[0], step.level.index) for step in steps] == [(b, i) for b in (0, 4) for i in range(3)]
    assert all(step.levels == 3 and len(step.z_t) == len(step.z0) == 4 for step in steps)
    # The last clean estimate is the sample.
    assert torch.equal(torch.cat([steps[2].z0, steps[5].z0[:2]]), samples.z)
    levels = Sampler(ObsFree(), steps=3).levels(small.prior)
    assert [step.level for step in steps[:3]] == levels


L = 3  # levels
GN = GaussNewton(outer=2, cg=3, halvings=0)
COUNTS = [
    (ObsFree(), {}, {"denoiser": L}),
    (Repaint(), {}, {"denoiser": L, "decoder": L, "encoder": L}),
    (DPS(), {}, dict.fromkeys(("denoiser", "denoiser_vjp", "decoder", "decoder_vjp", "decoder_jvp"), L)),
    (
        DPS(limit=False),
        {"solver": "heun"},
        dict.fromkeys(("denoiser", "denoiser_vjp", "decoder", "decoder_vjp"), 2 * L - 1),
    ),
    (DPS(norm=True), {}, {"denoiser": L, "denoiser_vjp": L, "decoder": L, "decoder_vjp": L}),
    # Each of the iterations multiplies by J C J', the increment by C J'.
    (
        MMPS(iterations=5),
        {},
        {"denoiser": L, "denoiser_vjp": 6 * L, "decoder": L, "decoder_vjp": 6 * L, "decoder_jvp": 5 * L},
    ),
    (
        LatentOptimization(Adam(7), randomize=False),
        {},
        {"denoiser": L, "decoder": 7 * L, "decoder_vjp": 7 * L},
    ),
    # A linearisation takes J' for the gradient, J for each iteration, and J' between two of them.
    (
        LatentOptimization(GN, randomize=False),
        {},
        {"denoiser": L, "decoder": 2 * L, "decoder_vjp": 6 * L, "decoder_jvp": 6 * L},
    ),
    # Randomised, the last level is solved once more for the conditional mean.
    (
        LatentOptimization(GN),
        {},
        {"denoiser": L, "decoder": 2 * (L + 1), "decoder_vjp": 6 * (L + 1), "decoder_jvp": 6 * (L + 1)},
    ),
]


@pytest.mark.parametrize(("guidance", "settings", "counts"), COUNTS, ids=[repr(c[0]) + repr(c[1]) for c in COUNTS])
def test_evaluations_are_counted_by_members(small, guidance, settings, counts):
    samples = run(guidance, small, 6, block=3, steps=L, **settings)
    assert samples.evaluations == {name: 6 * count for name, count in counts.items()}
    assert samples.members == tuple(range(6))


def test_what_is_counted_is_what_is_called(small):
    calls = {"denoiser": 0, "decoder": 0}

    def counting(name, function):
        def counted(z, *level):
            calls[name] += len(z)
            return function(z, *level)

        return counted

    prior = replace(
        small.prior,
        denoise=counting("denoiser", small.prior.denoise),
        decode=counting("decoder", small.prior.decode),
    )
    evaluations = run(DPS(limit=False), replace(small, prior=prior), 4, block=2, steps=3).evaluations
    assert calls == {"denoiser": evaluations["denoiser"], "decoder": evaluations["decoder"]}


def test_a_cold_start_is_noise_of_the_first_level(small):
    first = []
    run(ObsFree(), small, [3], block=8, steps=2, seed=4, on_step=first.append)
    noise = normal((20,), seed=4, members=range(8), stream=STREAMS.start, dtype=torch.float64)
    level = first[0].level
    torch.testing.assert_close(first[0].z_t, (level.alpha**2 + level.sigma**2) ** 0.5 * noise)


def test_a_warm_start_is_the_background_in_the_noise_of_its_level(small):
    origin = torch.linspace(-3, 3, 20, dtype=torch.float64)
    warm = replace(small, prior=replace(small.prior, origin=origin))
    first = []
    run(ObsFree(), warm, 2, block=2, steps=2, start=0.4, on_step=first.append)
    level = small.prior.schedule.level(0.4)
    noise = normal((20,), seed=0, members=range(2), stream=STREAMS.start, dtype=torch.float64)
    assert first[0].level == level
    torch.testing.assert_close(first[0].z_t, level.alpha * origin + level.sigma * noise)
    run(ObsFree(), small, 2, block=2, steps=2, start=0.4, on_step=first.append)
    torch.testing.assert_close(first[2].z_t, level.sigma * noise)


def test_a_warm_start_stays_near_the_background(toy):
    """Without observations and from a low level, the samples are the background and a little noise."""
    problem = toy.build("isotropic", n=20, P=2)
    origin = torch.linspace(-1, 1, 20, dtype=torch.float64)
    warm = replace(problem, prior=replace(problem.prior, origin=origin))
    z = run(ObsFree(), warm, 512, block=512, steps=8, start=0.1, solver="ancestral", spacing="time").z
    rho = problem.prior.schedule.rho(0.1)
    assert (z.mean(0) - origin).abs().max() < 0.5 * rho**2 + 4.5 * rho / 512**0.5
    # The noise of the start and the spread of z given z_t are rho each.
    assert rho < z.std(0).mean() < 2**0.5 * rho


def test_levels_of_a_method_are_its_own_unless_told(small):
    levels = Sampler(LatentOptimization()).levels(small.prior)
    assert len(levels) == LatentOptimization.steps
    assert levels[-1].rho == pytest.approx(LatentOptimization.stop_rho, rel=1e-6)
    assert levels[0].t == 1.0
    assert [level.t for level in Sampler(DPS(), steps=4).levels(small.prior)] == [1.0, 0.75, 0.5, 0.25]
    told = Sampler(LatentOptimization(), steps=2, spacing="time", stop=0.5).levels(small.prior)
    assert [level.t for level in told] == [1.0, 0.75]
    low = Sampler(LatentOptimization(), steps=3, start=0.1).levels(small.prior)
    assert low[0].t == 0.1
    assert all(a.rho > b.rho for a, b in pairwise(low))


def test_a_solver_is_a_name_or_an_instance(small):
    for name, solver in (("dpmpp_2m", DPMpp2M()), ("heun", Heun())):
        a, b = (run(DPS(), small, 2, steps=4, solver=s).z for s in (name, solver))
        assert torch.equal(a, b)


def test_the_corrector_improves_few_steps(toy):
    """Langevin rounds at each level bring the variance of 8 ancestral steps nearer to the prior's."""
    problem = toy.build("isotropic", n=20, P=2)
    plain, corrected = (
        run(ObsFree(), problem, 512, block=512, steps=8, solver="ancestral", spacing="time", corrector=corrector)
        .z.var(0)
        .mean()
        for corrector in (None, Langevin(rounds=8, tau=0.1))
    )
    assert abs(corrected - 1) < 0.7 * abs(plain - 1)


def test_no_two_draws_of_a_corrected_run_are_the_same(small, monkeypatch):
    """The start, two of every guided call, of which the corrector makes two a level, a transition and a round."""
    draws = []

    def drawn(operation):
        def draw(key, *arguments, step=0, stream=0, **rest):
            draws.append((step, stream))
            return operation(key, *arguments, step=step, stream=stream, **rest)

        return draw

    for name in ("normal", "step"):
        monkeypatch.setattr(Key, name, drawn(getattr(Key, name)))
    run(LatentOptimization(GN), small, 2, block=2, steps=3, corrector=Langevin(rounds=2))
    assert len(draws) == 1 + 2 * (3 + 2 * 2) + 2 + 2 * 2
    assert len(set(draws)) == len(draws)


def test_a_corrected_member_has_the_same_bits_in_any_company(single):
    settings = {"steps": 2, "recenter": False, "corrector": Langevin(rounds=2)}
    everyone = run(LatentOptimization(GN), single, range(24), **settings)
    some = run(LatentOptimization(GN), single, [17, 3], **settings)
    assert torch.equal(some.z, everyone.z[[17, 3]])
    a, b = (run(LatentOptimization(GN), single, 4, block=block, **settings).z for block in (1, 4))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_members_may_be_an_array(small):
    some = run(LatentOptimization(GN), small, torch.tensor([3, 17]).numpy(), steps=1, recenter=False)
    assert some.members == (3, 17)


def test_recentring_is_only_where_the_guidance_knows_the_mean(small):
    for guidance in (DPS(), LatentOptimization(GN, randomize=False)):
        a, b = (run(guidance, small, 4, steps=3, recenter=recenter).z for recenter in (True, False))
        assert torch.equal(a, b)
    alone, free = (run(LatentOptimization(GN), small, [2], steps=3, recenter=recenter).z for recenter in (True, False))
    assert torch.equal(alone, free)


@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("y", torch.nan, "1 cannot be; accepted: finite values"),
        ("variance", -1.0, "1 cannot be; accepted: values above 0, infinite where"),
        ("variance", 0.0, "variance of"),
        ("scale", torch.inf, "scale of"),
    ],
)
def test_observations_that_are_none_are_refused_and_not_stood_still_on(small, part, value, sentence):
    wrong = getattr(small.likelihood, part).clone()
    wrong[1] = value
    sampler = Sampler(LatentOptimization(GN), steps=1)
    with pytest.raises(InputError, match=sentence):
        sampler(small.prior, replace(small.likelihood, **{part: wrong}))
    without = torch.where(torch.arange(len(wrong)) == 1, torch.inf, small.likelihood.variance)
    assert sampler(small.prior, replace(small.likelihood, variance=without)).z.isfinite().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda k: {"y": k.y[:-1]}, "variance came as"),
        (lambda k: {"scale": 1.0}, "scale came as float"),
        (lambda k: {"variance": k.variance.numpy()}, "variance came as ndarray"),
        (lambda k: {"y": k.y.half()}, "beside y in torch.float16"),
    ],
)
def test_a_likelihood_is_of_tensors_alike(small, change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(small.likelihood, **change(small.likelihood))


def single_precision(likelihood):
    names = ("y", "variance", "scale")
    return replace(likelihood, **{name: getattr(likelihood, name).float() for name in names})


@pytest.mark.parametrize("members", [(0, 1, 2), (0, 2, 1, 3), (0, 2)])
def test_what_an_ensemble_is_follows_from_its_members(small, members):
    kinds = {(0, 1, 2): ("opposite pairs", "recentred"), (0, 2): ("independent", "recentred")}
    expected = kinds.get(members, ("opposite pairs", "recentred opposite pairs"))
    found = tuple(run(LatentOptimization(GN), small, members, steps=1, recenter=r).ensemble for r in (False, True))
    assert found == expected


def test_the_prior_alone_runs_on_a_schedule_that_ends_without_noise(toy):
    """Even levels in the logarithm of the noise-to-signal ratio: down to a small one."""
    problem = toy.build("isotropic", n=20, P=2, schedule=Schedule.vp_linear())
    z = run(ObsFree(), problem, 512, block=512, steps=16).z
    assert abs(z.var(0).mean() - 1) < 0.1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: Sampler(ObsFree(), block=0), "block = 0; accepted is a whole number of at least 1"),
        (lambda p: Sampler(ObsFree(), solver="euler"), "'euler' is unknown; accepted: renoise, ancestral"),
        (
            lambda p: run(ObsFree(), p, 0),
            "members = 0; accepted: a number from 1 to 1000000, or different member numbers",
        ),
        (lambda p: run(ObsFree(), p, []), "members = []"),
        (lambda p: run(ObsFree(), p, [1, 1]), "members = [1, 1]"),
        (lambda p: run(ObsFree(), p, [-1]), "members = [-1]"),
        (lambda p: run(ObsFree(), p, 1, steps=0), "steps = 0; accepted"),
        (lambda p: run(ObsFree(), p, 1, start=1.5), "accepted is 0 <= stop < start <= 1"),
        (lambda p: run(ObsFree(), p, 1, spacing="log"), "'log' is unknown; accepted: time, log_rho"),
        (
            lambda p: Sampler(DPS(norm=True), corrector=Langevin()),
            "moves samples after the transition",
        ),
        (lambda p: Sampler(DPS(norm=True), solver="heun"), "accepted: ancestral or ddim, without a corrector"),
        (lambda p: Sampler(DPS(), solver=DDIM(eta=1.5)), "eta = 1.5; accepted is 0 <= eta <= 1"),
        (
            lambda p: run(DPS(), replace(p, likelihood=single_precision(p.likelihood)), 1),
            "in torch.float32 on cpu came",
        ),
    ],
)
def test_bad_input_gets_a_sentence(small, call, sentence):
    with pytest.raises(InputError) as caught:
        call(small)
    assert sentence in str(caught.value)


def test_members_without_opposites_are_independent(toy):
    problem = toy.build("correlated", n=20, P=8)
    plain = LatentOptimization(GaussNewton(1, 3), antithetic=False)
    for guidance, recenter, kind in (
        (DPS(), True, "independent"),
        (plain, False, "independent"),
        (plain, True, "recentred"),
    ):
        sampler = Sampler(guidance, steps=1, block=4)
        assert sampler(problem.prior, problem.likelihood, members=4, recenter=recenter).ensemble == kind
