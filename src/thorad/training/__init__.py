"""Learning healthy anatomy: images, their augmentation, the loss, and the fit."""
