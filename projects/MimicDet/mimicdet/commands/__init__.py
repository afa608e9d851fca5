"""
What tools/, demo/ and train_net.py run; the rest of the package imports nothing from here.

A command is a module, or a folder whose command line is its cli.py, with `main(argv=None)` that
returns the exit code and is wrapped by `mimicdet.utils.errors.command`. The scripts only call it.
"""
