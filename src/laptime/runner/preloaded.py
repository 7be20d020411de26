"""What the forkserver imports before it starts ranks. It computes nothing, so the ranks share its memory."""

import gc
import signal

from laptime import fast_start

# Ctrl-C is for the process that starts the ranks. The forkserver ignores it, but only after this import.
_usual_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
fast_start.begin()

# Each rank would import these itself: for TensorBoard, data files, DDP and to count FLOPs.
import filelock  # noqa: E402, F401
import torch._dynamo.utils  # noqa: E402
import torch.utils.tensorboard  # noqa: E402, F401

from laptime.runner import rank_process  # noqa: E402, F401

# A rank must not collect what all ranks share: that would copy the memory.
gc.freeze()

signal.signal(signal.SIGINT, _usual_handler)
