"""What is learned and what drives learning: one file per method, engine, losses, calibration."""
