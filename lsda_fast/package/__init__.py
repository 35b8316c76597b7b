"""A trained model on disk and in memory: ``manifest.json`` and safetensors, never a pickle.

The manifest holds the format version, the state's layout and normalisation, the schedule and prediction type, the
architectures by name and settings, the reconstruction error per channel, of points and of means, default observation
errors, the training's provenance, and size and SHA-256 of every weight file. Loading reads JSON and tensors, checks
sizes and hashes, refuses paths outside the folder, and rebuilds known architectures by name; it runs no code from the
package.
"""

from lsda_fast.package.architectures import Architecture
from lsda_fast.package.package import Package

__all__ = ["Architecture", "Package"]
