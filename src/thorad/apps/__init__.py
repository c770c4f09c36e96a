"""What the verbs do: detection over files, preparation, calibration, the paper's tables, demo, speed."""
