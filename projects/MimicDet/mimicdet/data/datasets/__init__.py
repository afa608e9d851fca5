"""Data sets by address: one file for each kind."""
