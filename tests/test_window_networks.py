"""Networks of windows: where they start, what the circular one does not see, what they accept."""

from functools import partial

import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.models import WINDOWS, StationaryTrajectories, WindowUNet, build
from lsda_fast.models.window_input import window_input


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet", {"hidden": [8, 16, 24], "blocks": 2}),
        ("unet", {"hidden": [8, 16], "circular": False}),
        ("transformer", {"width": 16, "depth": 1, "heads": 2}),
    ],
)
@pytest.mark.parametrize("prediction", ["eps", "wiener"])
@pytest.mark.parametrize("shape", [(2, 6, 8), (1, 1, 20), (3, 5, 7)])
def test_window_networks(name, settings, prediction, shape):
    """The published starts anywhere, the correction at zero; the circular one knows no place."""
    network = build(WINDOWS, name, {"latent_shape": shape, "size": 3, "prediction": prediction, **settings})
    z_t, level = torch.randn(4, 3, *shape), torch.rand(4)
    model = StationaryTrajectories(shape).covariance(3) if prediction == "wiener" else None
    given = window_input(z_t, 1 - 0.5 * level, level, model)
    F = network.predict(given.scaled, given.log_rho)
    assert F.shape == z_t.shape
    assert (F.abs().max() == 0) == (prediction == "wiener" or name == "transformer")
    if name == "unet" and settings.get("circular", True) and prediction == "eps" and shape == (2, 6, 8):
        steps = 2 ** (len(settings["hidden"]) - 1)
        roll = partial(torch.roll, shifts=steps, dims=-1)
        torch.testing.assert_close(network.predict(roll(given.scaled), given.log_rho), roll(F), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [1, 4])
def test_kernels_that_have_no_margin_on_both_sides_are_refused(kernel):
    with pytest.raises(InputError, match="accepted is an odd one of at least 3"):
        WindowUNet((2, 3, 8), kernel=kernel)
