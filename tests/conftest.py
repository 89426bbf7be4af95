"""Settings of the whole suite."""

import os

# Tiny models run fastest on one thread, and several tests run at a time. Before anything imports torch or numpy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PALMTOP_CACHE"] = ""  # nothing that an earlier run found out
os.environ["PALMTOP_PROCESSES"] = "1"  # several tests run at a time, some of them in processes with threads

from hypothesis import settings

# The same examples every time, however busy the machine is.
settings.register_profile("palmtop", deadline=None, derandomize=True)
settings.load_profile("palmtop")
