"""What to train with, found by trying: the batch size that a device has memory for, a learning rate to start from."""
