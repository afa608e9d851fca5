"""Slow versions of functions of single numbers and boxes, that several tests compare with."""

import math


def giou(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (hull - union) / hull


def sigmoid(x):
    return 1 / (1 + math.exp(-x))
