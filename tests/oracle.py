"""Adamax in NumPy, written from the paper; it imports nothing of the library.

Kingma & Ba 2015, arXiv 1412.6980, Algorithm 2, in the paper's letters. The two departures are
torch's: eps is added to |g| inside the maximum, and weight decay is added to the gradient.
"""

from __future__ import annotations

import numpy as np


class Oracle:
    def __init__(self, theta, alpha, beta1, beta2, eps, weight_decay=0.0, maximize=False):
        self.theta = np.asarray(theta, dtype=np.float64).copy()
        self.alpha, self.beta1, self.beta2 = alpha, beta1, beta2
        self.eps, self.weight_decay, self.maximize = eps, weight_decay, maximize
        self.m = np.zeros_like(self.theta)
        self.u = np.zeros_like(self.theta)
        self.t = 0

    def step(self, g):
        if g is None:
            return
        g = np.asarray(g, dtype=np.float64)
        g = (-g if self.maximize else g) + self.weight_decay * self.theta
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.u = np.maximum(self.beta2 * self.u, np.abs(g) + self.eps)
        self.theta = self.theta - self.alpha / (1 - self.beta1**self.t) * self.m / self.u
