"""What is measured beside the epochs: a step's parts, the device's peak, samples, quality, latency."""
