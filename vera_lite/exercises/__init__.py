"""The exercises of the notebooks: a student writes a function, :func:`check` judges it.

    from vera_lite import exercises
    exercises.check(paste)

A module for each notebook holds the right answers and the likely mistakes: do not open one before you have
tried. :func:`use` runs what a notebook does with a solved exercise.
"""

from vera_lite.exercises import (  # noqa: F401  (each registers its exercises)
    notebook_00,
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
    notebook_09,
)
from vera_lite.exercises.judge import EXERCISES, check, use

__all__ = ["EXERCISES", "check", "use"]
