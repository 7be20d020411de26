"""python -m laptime.export: a trained run's network as ONNX, torch.export or TorchScript, checked and timed."""

import sys

from laptime.exporting.main import main

if __name__ == "__main__":
    sys.exit(main())
