"""Schedules, prediction types, solvers and noise of the reverse diffusion."""

from lsda_fast.diffusion.schedule import Level, Schedule
from lsda_fast.diffusion.solvers import DDIM, Ancestral, DPMpp2M, Heun, Langevin, Renoise, Solver

__all__ = ["DDIM", "Ancestral", "DPMpp2M", "Heun", "Langevin", "Level", "Renoise", "Schedule", "Solver"]
