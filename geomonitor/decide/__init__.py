"""What to do with measurements: saved checkpoints measured after the run, runs compared."""
