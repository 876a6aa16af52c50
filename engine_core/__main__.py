"""`python -m engine_core`: joins its supervisor, binds its sockets, schedules until told to quit."""

import gc
import sys

from protocol.config import EngineCoreConfig
from protocol.control import Failed, Ready, enter
from protocol.errors import StartupError

from .process import EngineProcess


def main() -> int:
    channel, config = enter(EngineCoreConfig)
    try:
        process = EngineProcess(config, channel)
        channel.send(Ready())
        gc.collect()
        gc.freeze()  # what exists now lives for ever: collections need not look at it
        process.run()
    except StartupError as error:
        channel.send(Failed.of(error))
        return error.exit_code
    except Exception as error:
        channel.send(Failed.of(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
