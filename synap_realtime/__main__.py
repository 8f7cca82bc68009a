"""The entry point of ``synap-realtime`` and of ``python -m synap_realtime``.

It makes Ctrl-C safe while the program is loaded and while the interpreter exits. There, a
``KeyboardInterrupt`` would print a traceback, and a library that is being imported may turn it into
an error of another kind. This module imports only what Python has loaded before.
"""

import gc
import os
import signal

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """Load the program and run it; see :func:`synap_realtime.cli.main`."""
    # A shell lets background processes ignore Ctrl-C, and a parent may have blocked it: keep that.
    handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles:
        signal.signal(signal.SIGINT, _exit)
    try:
        # What is loaded stays. Looking for garbage in it takes a sixth of the time, and finds none.
        gc.disable()
        from .cli import main

        gc.freeze()
        gc.enable()
        if handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        _exit()
    finally:
        if handles:
            signal.signal(signal.SIGINT, _exit)


def _exit(*_: object) -> None:
    """Exit immediately: no work was started, or all of it is finished."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
