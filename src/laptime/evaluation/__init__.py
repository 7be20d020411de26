"""What a trained run gets right, class by class, and how fast it answers."""
