"""`python -m app.embedded.launch -c FILE`: supervisord that stops its programs when the one who started it is gone.

A `kill -9` of `toban up` or `toban demo` then leaves nothing behind.
"""

import contextlib
import ctypes
import os
import signal

from supervisor.supervisord import main

PR_SET_PDEATHSIG = 1  # prctl(2); Linux alone has it, elsewhere the next start finds what is left

if __name__ == "__main__":
    starter = int(os.environ["TOBAN_STARTER"])
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == starter:  # else it died before the line above
        main()
