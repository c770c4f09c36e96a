"""Files on the disk to images and cases, images to the model's grid and back. Knows nothing of networks or methods."""
