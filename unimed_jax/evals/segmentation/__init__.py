"""Dice and Hausdorff distance of segmentations, 2-D and 3-D."""
