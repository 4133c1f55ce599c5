"""A network that brings its worker to an end, or its disk, at a white image."""

import errno
import os
import signal
import time
from pathlib import Path

import torch

from mirnet_fast import MIRNet

FOREVER = 600  # seconds, which no test waits for


class Ending(MIRNet):
    """Adds nothing to its input.

    Args:
        folder: gets a file whenever a white image comes, and the process id in it.
        how: what happens then: "network" waits in the network for somebody to end the process, "writer" when
            all is written but the result has no name yet; "always" ends the process itself, "full" has no
            space on the disk.
    """

    def __init__(self, folder, how):
        super().__init__(n_feat=8, n_RRG=1, n_MSRB=1)
        torch.nn.init.zeros_(self.conv_out.weight)
        self.folder, self.how = Path(folder), how

    def forward(self, x):
        if (x == 1).all():
            self.white()
        return super().forward(x)

    def white(self):
        if self.how == "always":
            self.told()
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "full":
            os.fsync = full
        elif [*self.folder.iterdir()]:
            return  # once is enough
        elif self.how == "network":
            self.told()
            time.sleep(FOREVER)
        else:
            os.replace = self.waiting

    def waiting(self, *names):
        os.replace = os.rename
        self.told()
        time.sleep(FOREVER)

    def told(self):
        number = len([*self.folder.iterdir()])
        new = self.folder.with_name("new")
        new.write_text(str(os.getpid()))
        new.rename(self.folder / str(number))


def full(file):
    raise OSError(errno.ENOSPC, "No space left on device")
