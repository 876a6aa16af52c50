"""`python -m engine_core`: joins its supervisor, binds its sockets, schedules until told to quit."""

import gc
import sys

from protocol.config import EngineCoreConfig
from protocol.control import Failed, Ready, enter

from .engine import Engine


def main() -> int:
    channel, config = enter(EngineCoreConfig)
    try:
        engine = Engine(config, channel)
        channel.send(Ready())
        gc.collect()
        gc.freeze()  # what exists now lives for ever: collections need not look at it
        engine.run()
    except Exception as error:
        channel.send(Failed.of(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
