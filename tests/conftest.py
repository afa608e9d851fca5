"""
One thread: the tests are many small tensors, and OpenMP's threads wait for each other on a busy
machine. It has to be said before torch is imported, and holds for the processes that tests start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
