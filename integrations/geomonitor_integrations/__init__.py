"""One thin module per training framework: when to measure, how to log, how to stop, how to save."""
