#!/usr/bin/env python3
"""k-means, silhouettes and principal components as scikit-learn has them: tests/golden/kmeans/kmeans.h5.

    build/venv/bin/pip install scikit-learn
    build/venv/bin/python tests/golden/make_kmeans.py

Groups: plain (clusters that overlap), far (the same far off the origin), empty (a start that leaves clusters
without rows), cosine (spherical k-means, which scikit-learn has not: Lloyd's iterations in numpy, f64). Each:
start [K, D], labels, centres, inertia, iterations; silhouettes of the labels; the plane of two components.
"""

import os

import h5py
import numpy
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples

HERE = os.path.dirname(os.path.abspath(__file__))


def make_rows(rng, rows, width, clusters, spread):
    """Overlapping clusters of unequal sizes; f32 values."""
    centres = rng.normal(size=(clusters, width))
    picked = rng.choice(clusters, size=rows, p=rng.dirichlet(numpy.ones(clusters) * 3))
    return (centres[picked] + spread * rng.normal(size=(rows, width))).astype("f4")


def spherical(rows, start, tolerance=1e-4, most=300):
    """Lloyd's iterations on rows and centres of length 1; ends as scikit-learn's do."""
    centres = start / numpy.linalg.norm(start, axis=1, keepdims=True)
    limit = tolerance * rows.var(axis=0).mean()
    former = None
    for count in range(1, most + 1):
        labels = ((rows[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        sums = numpy.array([rows[labels == c].mean(axis=0) for c in range(len(centres))])
        moved = sums / numpy.linalg.norm(sums, axis=1, keepdims=True)
        move = ((moved - centres) ** 2).sum()
        centres = moved
        if former is not None and (labels == former).all():
            break
        if move <= limit:
            break
        former = labels
    distances = ((rows[:, None, :] - centres[None]) ** 2).sum(axis=2)
    return distances.argmin(axis=1), centres, distances.min(axis=1).sum(), count


def write(file, name, rows, start, metric):
    """One group."""
    group = file.create_group(name)
    exact = rows.astype("f8")
    if metric == "cosine":
        exact = exact / numpy.linalg.norm(exact, axis=1, keepdims=True)
        labels, centres, inertia, iterations = spherical(exact, start.astype("f8"))
    else:
        model = KMeans(len(start), init=start.astype("f8"), n_init=1, algorithm="lloyd").fit(exact)
        labels, centres, inertia, iterations = (
            model.labels_,
            model.cluster_centers_,
            model.inertia_,
            model.n_iter_,
        )
    plane = PCA(2, svd_solver="full")
    group["rows"], group["start"] = rows, start.astype("f4")
    group["labels"], group["centres"] = labels.astype("i4"), centres.astype("f4")
    group["numbers"] = numpy.array([inertia, iterations], dtype="f8")
    group["silhouette"] = silhouette_samples(exact, labels, metric=metric).astype("f4")
    group["plane"] = plane.fit_transform(exact).astype("f4")
    group["variance"] = numpy.append(plane.explained_variance_, exact.var(axis=0, ddof=1).sum())
    print(f"{name}: {rows.shape}, K = {len(start)}, inertia {inertia:.9g}, {iterations} iterations")


def main():
    """All groups."""
    rng = numpy.random.default_rng(5)
    os.makedirs(os.path.join(HERE, "kmeans"), exist_ok=True)
    with h5py.File(os.path.join(HERE, "kmeans", "kmeans.h5"), "w") as file:
        rows = make_rows(rng, 600, 19, 7, 1.3)
        start = rows[rng.choice(len(rows), 7, replace=False)]
        write(file, "plain", rows, start, "euclidean")
        write(file, "cosine", rows, start, "cosine")
        write(file, "far", rows[:300] + numpy.float32(100), start[:5] + numpy.float32(100), "euclidean")
        lost = numpy.concatenate([rows[:4], rows[4:6] + 50])
        write(file, "empty", rows[:200], lost, "euclidean")


if __name__ == "__main__":
    main()
