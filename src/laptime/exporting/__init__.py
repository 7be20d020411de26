"""The command `laptime export`: trained networks as ONNX, torch.export and TorchScript files, checked and timed."""
