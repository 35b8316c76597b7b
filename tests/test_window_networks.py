"""Networks of windows: where they start, what the circular one does not see, what they accept."""

from functools import partial

import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.models import WINDOWS, StationaryTrajectories, WindowUNet, build
from lsda_fast.models.precision import lowered
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


def test_images_stay_in_the_lower_precision_from_one_convolution_to_the_next():
    """Of a lowered network and under autocast alike; what is answered is in the precision of what was given."""
    network = WindowUNet((2, 6, 8), size=3, hidden=[8, 16]).requires_grad_(False)
    low, x, level = lowered(network, torch.bfloat16), torch.randn(4, 3, 2, 6, 8), torch.rand(4)
    want, u, seen = network.predict(x, level), torch.randn_like(x), []
    for block in (*low.down, *low.up):
        block[0].register_forward_hook(lambda _, given, answer: seen.append((given[0].dtype, answer.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        trained = network.predict(x, level)
    for found in (low.predict(x, level), trained):
        assert found.dtype == torch.float32
        assert (found - want).norm() < 0.02 * want.norm()
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    products = [
        (torch.func.jvp(f, (x,), (u,))[1], torch.func.vjp(f, x)[1](u)[0])
        for f in (lambda x: low.predict(x, level), lambda x: network.predict(x, level))
    ]
    for found, exact in zip(*products):
        assert (found - exact).norm() < 0.03 * exact.norm()
