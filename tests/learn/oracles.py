"""What does each loss give, computed slowly? Loops over pairs in float64, written from the paper."""

import math

from torch import Tensor


def slow_info_nce(z1: Tensor, z2: Tensor, temperature: float) -> float:
    views = [*z1.double(), *z2.double()]
    num_images, total = len(z1), 0.0
    for i, view in enumerate(views):
        positive = math.exp(float(view @ views[(i + num_images) % (2 * num_images)]) / temperature)
        negatives = 0.0
        for j, other in enumerate(views):
            if j % num_images != i % num_images:
                negatives += math.exp(float(view @ other) / temperature)
        total -= math.log(positive / (positive + negatives))
    return total / len(views)


def slow_alignment(z1: Tensor, z2: Tensor, temperature: float) -> float:
    pairs = list(zip(z1.double(), z2.double(), strict=True))
    return -sum(math.log(math.exp(float(a @ b) / temperature)) for a, b in pairs) / len(pairs)


def slow_uniformity(z1: Tensor, z2: Tensor, temperature: float) -> float:
    views, num_images, total = [*z1.double(), *z2.double()], len(z1), 0.0
    for i, view in enumerate(views):
        others = [other for j, other in enumerate(views) if j % num_images != i % num_images]
        total += math.log(sum(math.exp(float(view @ other) / temperature) for other in others))
    return total / len(views)


def slow_queue_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> float:
    total = 0.0
    for query, key in zip(queries.double(), keys.double(), strict=True):
        positive = math.exp(float(query @ key) / temperature)
        negatives = sum(math.exp(float(query @ other) / temperature) for other in queue.double())
        total -= math.log(positive / (positive + negatives))
    return total / len(queries)


def slow_barlow_twins(y1: Tensor, y2: Tensor, redundancy_weight: float) -> float:
    def normalised(y: list[list[float]]) -> list[list[float]]:
        columns = []
        for column in zip(*y, strict=True):
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            columns.append([(value - mean) / math.sqrt(variance + 1e-5) for value in column])
        return columns

    first, second, total = normalised(y1.double().tolist()), normalised(y2.double().tolist()), 0.0
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            correlation = sum(p * q for p, q in zip(a, b, strict=True)) / len(y1)
            total += (1 - correlation) ** 2 if i == j else redundancy_weight * correlation**2
    return total


def slow_equivariance(z1: Tensor, z2: Tensor, num_splits: int) -> float:
    size, total = len(z1) // num_splits, 0.0
    for split in range(num_splits):
        a, b = (z[split * size : (split + 1) * size].double() for z in (z1, z2))
        pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
        total += sum((float(a[i] @ a[j]) - float(b[i] @ b[j])) ** 2 for i, j in pairs) / len(pairs)
    return total / num_splits
