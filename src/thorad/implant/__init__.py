"""Findings implanted into healthy images: evaluation where there are no labels."""
