"""What the steps of a run share."""

from dataclasses import dataclass
from pathlib import Path

from .floors import Ceilings
from .server import Servers


@dataclass
class Bench:
    rehearsal: bool
    """On the CPU, everything at a tiny size."""
    servers: Servers
    folder: Path
    """For checkpoints, while the run lasts."""
    ceilings: Ceilings | None = None

    def known(self) -> Ceilings:
        """Raises RuntimeError while no ceiling has been measured."""
        if self.ceilings is None:
            raise RuntimeError("the ceilings could not be measured, so there are no floors")
        return self.ceilings
