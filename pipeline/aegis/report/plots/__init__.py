"""Draws pictures to files, without a screen."""

from __future__ import annotations

import os

# a notebook names its own backend here for every program that it starts; where that one is not installed, matplotlib
# could not be imported, and files need no backend
os.environ["MPLBACKEND"] = "agg"
