"""Rewards by name: the built-in ones, and those that a user registers."""

from collections.abc import Callable, Sequence

from lsda_fast.alignment.rewards.accuracy import Accuracy
from lsda_fast.alignment.rewards.base import Reward, RewardSettings
from lsda_fast.alignment.rewards.forecast import ForecastSkill
from lsda_fast.alignment.rewards.geostrophic import Geostrophic
from lsda_fast.alignment.rewards.held_out import HeldOut
from lsda_fast.alignment.rewards.hydrostatic import Hydrostatic
from lsda_fast.errors import InputError
from lsda_fast.forecast_models import ForecastModel, PackageForecast, whole_steps
from lsda_fast.observations import Observations
from lsda_fast.package import Package

__all__ = ["REWARDS", "register_reward", "rewards_of"]

RewardFactory = Callable[[RewardSettings], Reward]


def _forecast(settings: RewardSettings) -> Reward:
    if settings.model is None:
        whole_steps(settings.lead, settings.package.lead_hours, "the package")
    return ForecastSkill(settings.model or PackageForecast(settings.package), settings.lead)


def _physics(reward: Geostrophic | Hydrostatic) -> RewardFactory:
    def make(settings: RewardSettings) -> Reward:
        reward.check(settings.package)
        return reward

    return make


def _observations(settings: RewardSettings) -> Reward:
    if settings.held_out is None:
        raise InputError("the reward of observations needs some that are held out; none came")
    return HeldOut(settings.held_out)


REWARDS: dict[str, RewardFactory] = {
    "accuracy": lambda settings: Accuracy(),
    "forecast": _forecast,
    "physics": _physics(Geostrophic(name="physics")),
    "hydrostatic": _physics(Hydrostatic()),
    "observations": _observations,
}


def register_reward(name: str, factory: RewardFactory) -> None:
    """Make a reward known by name, to `rewards_of`.

    Parameters
    ----------
    name : str
        What the reward made calls itself, too.
    factory : callable
        `RewardSettings` to `Reward`.

    Raises
    ------
    InputError
        A name that is taken, empty, or has a comma or blank in it.
    """
    if name in REWARDS or not name or set(name) & set(", "):
        raise InputError(f"reward {name!r} came; accepted are names without commas that are not {', '.join(REWARDS)}")
    REWARDS[name] = factory


def rewards_of(
    names: str | Sequence[str],
    package: Package,
    *,
    model: ForecastModel | None = None,
    lead: float = 48.0,
    held_out: Observations | None = None,
) -> list[Reward]:
    """Rewards by name.

    Parameters
    ----------
    names : str or sequence of str
        ``"accuracy,forecast,physics"``: physics is the geostrophic score; also ``hydrostatic``, ``observations`` and
        what was registered.
    package : Package
    model : ForecastModel, optional
        For ``forecast``; the package's own when not given.
    lead : float
        Hours, for ``forecast``.
    held_out : Observations, optional
        For ``observations``.

    Raises
    ------
    InputError
        A name that is unknown or there twice, or a package that lacks what a reward needs.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    unknown = [name for name in wanted if name not in REWARDS]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise InputError(f"rewards {', '.join(wanted)!r} came; accepted, each once, are {', '.join(REWARDS)}")
    settings = RewardSettings(package, model, lead, held_out)
    return [REWARDS[name](settings) for name in wanted]
