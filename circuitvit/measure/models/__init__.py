"""Models side by side: accuracy, calibration, cost, latency, and which one to deploy."""
