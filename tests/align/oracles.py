"""The measures from their definitions in numpy float64, with n x n matrices and loops, and features to try them on."""

import itertools

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 10_000)


def normal(seed: int, n: int, p: int) -> torch.Tensor:
    return torch.randn(n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alike(seed: int, n: int, p: int, q: int, share: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that have some of their directions in common, with unequal spread and a mean that is not zero."""
    x = normal(seed, n, p) * torch.linspace(0.2, 2, p) + torch.linspace(-1, 3, p)
    y = share * x @ normal(seed + 1, p, q) + (1 - share) * normal(seed + 2, n, q) + 2
    return x, y


def rotation(seed: int, p: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, p, p)).Q


def linear(x) -> np.ndarray:
    x = x.double().numpy()
    return x @ x.T


def distances(x) -> np.ndarray:
    x = x.double().numpy()
    return ((x[:, None] - x[None]) ** 2).sum(-1)


def rbf(x, fraction: float) -> np.ndarray:
    squared = distances(x)
    among = np.sort(squared[np.triu_indices(len(squared), 1)])
    return np.exp(-squared / (2 * fraction**2 * among[(len(among) - 1) // 2]))


def hsic_0(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ h @ l @ h) / (n - 1) ** 2


def hsic_1(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def hsic_1_of_quadruples(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The mean over all four different samples of the kernel of a U-statistic whose mean is HSIC."""
    terms = [
        k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q]
        for i, j, q, r in itertools.permutations(range(len(k)), 4)
    ]
    return float(np.mean(terms))


def cka(k: np.ndarray, l: np.ndarray) -> tuple[float, float]:  # noqa: E741
    values = [hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)) for hsic in (hsic_0, hsic_1)]
    return values[0], values[1]


def mean_canonical_correlation(x, y, share: float) -> tuple[float, int, int]:
    kept = []
    for side in (about_mean(x), about_mean(y)):
        u, s, _ = np.linalg.svd(side, full_matrices=False)
        count = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), share)) + 1
        kept.append(u[:, :count])
    return float(np.linalg.svd(kept[0].T @ kept[1])[1].mean()), kept[0].shape[1], kept[1].shape[1]


def about_mean(x) -> np.ndarray:
    x = x.double().numpy()
    return x - x.mean(0)


def best_rotation(x, y) -> float:
    """What is left after the rotation that an SVD finds, both sides padded to one width."""
    width = max(x.shape[1], y.shape[1])
    first, second = (np.pad(about_mean(side), ((0, 0), (0, width - side.shape[1]))) for side in (x, y))
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    u, _, v = np.linalg.svd(second.T @ first)
    return float(np.linalg.norm(first - second @ u @ v) ** 2)


def neighbours(x, k: int) -> list[set[int]]:
    x = x.double().numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return [set(sorted(set(range(len(x))) - {i}, key=lambda j, i=i: -cosines[i, j])[:k]) for i in range(len(x))]


def shared_neighbours(x, y, k: int) -> float:
    return float(np.mean([len(a & b) / k for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)]))


def mmd(x, y) -> tuple[float, float]:
    """MMD squared and its standard deviation for equal distributions, by loops over pairs."""
    n = len(x)
    k = rbf(torch.cat([x, y]), 1)
    h = [k[i, j] + k[n + i, n + j] - k[i, n + j] - k[j, n + i] for i, j in itertools.permutations(range(n), 2)]
    return float(np.mean(h)), float(np.sqrt(2 / (n * (n - 1)) * np.mean(np.square(h))))
