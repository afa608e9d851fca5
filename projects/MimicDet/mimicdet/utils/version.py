"""The release, in a file of its own: it is read without importing the package."""

__version__ = "0.1.0"
