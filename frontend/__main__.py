"""Entry of the frontend process: `python -m frontend --control-fd N --parent PID`."""

import os

from protocol.config import FrontendConfig
from protocol.control import enter

if __name__ == "__main__":
    channel, config = enter(FrontendConfig)
    if config.metrics_dir:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = config.metrics_dir
    from .process import run  # only now: prometheus_client reads that variable when it is imported

    run(channel, config)
