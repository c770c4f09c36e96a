"""The diffusion process: schedule, noise and network. Tensors in, tensors out: no files, no printing.

Shapes: B images, one grey channel, height H and width W: ``(B, 1, H, W)``. Values: images in [-1, 1].
"""
