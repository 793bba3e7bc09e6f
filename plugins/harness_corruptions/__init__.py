"""The common corruptions of images."""
