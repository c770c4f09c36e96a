"""The critic: how likely each pixel of a scan is not healthy, learned from healthy scans alone."""
