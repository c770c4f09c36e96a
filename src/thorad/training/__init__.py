"""Learning healthy anatomy: the fit and its augmentation."""
