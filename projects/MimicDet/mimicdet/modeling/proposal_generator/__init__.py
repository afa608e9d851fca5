"""The class-agnostic first stage."""

from .refinement import RefinementModule

__all__ = ["RefinementModule"]
