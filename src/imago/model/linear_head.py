"""The exact linear head: multinomial logistic regression on features, with its L2 penalty chosen by cross-validation.

It minimises `sum_i w_i CE_i + |W|^2 / (2 C)` over the weights W and a bias that is not penalised, the objective of
scikit-learn's LogisticRegression. Every class has a row of W, also if there are two: a softmax layer.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

FOLDS = 5
CANDIDATES = [10 ** (half / 2) for half in range(-2, 9)]
"""Candidates for C, from 0.1 to 10,000, in units of 1 / (mean squared distance of the features from their mean)."""
LEAST_GAIN, PATIENCE = 0.01, 2
"""Fraction by which a candidate must lower the loss, and the number of failures after which weaker penalties, whose
solutions take longest, are not tried."""
ROUGH, EXACT = 1e-3, 1e-11
"""Norms of the preconditioned gradient, divided by the root of the number of images, at which a solution ends: that of
a fold, and that of the head."""
MOST_NEWTON_STEPS, MOST_CG_STEPS = 50, 500
SMALL = 1e8
"""Images x features x classes up to which one thread fits: several wait for one another in thousands of small products,
on a busy machine fifty times as long as one needs."""


@dataclass(frozen=True)
class LinearHead:
    """A head for features (n, d).

    Args:
        weight: float64 (classes, d).
        bias: float64 (classes,).
        inverse_penalty: C, by which the cross-entropy counts against the penalty.
        folds: Number of folds that chose it; 0 if no class has two images.
        cv_loss: C -> mean cross-entropy on the held-out folds, for the candidates that were tried.
        held_out: Log-probabilities of the n images, (n, classes), by heads that were fitted without their fold; of an
            image that is never held out, those of the head itself.
    """

    weight: Tensor
    bias: Tensor
    inverse_penalty: float
    folds: int
    cv_loss: dict[float, float]
    held_out: Tensor

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Log-probabilities, float64 (n, classes)."""
        return torch.log_softmax(features @ self.weight.T + self.bias, dim=1)


def fit_linear_head(
    features: Tensor, labels: Tensor, num_classes: int, class_weights: Tensor | None = None
) -> LinearHead:
    """Fit the head to all images, with the C that has the least cross-entropy in a stratified 5-fold cross-validation.

    The result depends on nothing but the arguments. With fewer images than features, the problem is solved exactly in
    the span of the images, in which the optimum lies (the representer theorem). The folds are solved in float32.

    Args:
        features: float64 (n, d).
        labels: int64 (n,); every class must occur.
        num_classes: Number of classes, 2 or more.
        class_weights: Weight of each class in the losses, (classes,), above 0; 1 by default.

    Raises:
        ValueError: A class does not occur, or has no weight.
    """
    fold_of, folds = stratified_folds(labels)
    with _few_threads(features.numel() * num_classes):
        problem, basis, mean, scale = _posed(features, labels, num_classes, class_weights)
        losses, held_out = _cross_validate(problem, fold_of, folds, scale) if folds else ({}, None)
        best = min(losses, key=lambda candidate: (losses[candidate], candidate)) if losses else 1 / scale
        solution = problem.solve(best)
    weight = solution[:, :-1] @ basis.T
    bias = solution[:, -1] - weight @ mean
    own = problem.log_probabilities(solution)
    held_out = torch.where(fold_of[:, None] < 0, own, held_out.double()) if held_out is not None else own
    return LinearHead(weight, bias - bias.mean(), best, folds, losses, held_out)


def held_out_answers(features: Tensor, labels: Tensor, num_classes: int, class_weights: Tensor | None = None) -> Tensor:
    """Log-probabilities of the n images, float64 (n, classes), by heads that were fitted without their fold: those of
    `fit_linear_head`, without the head itself, which takes as long again. NaN for an image that is never held out."""
    fold_of, folds = stratified_folds(labels)
    if not folds:
        return torch.full((len(labels), num_classes), torch.nan, dtype=torch.float64)
    with _few_threads(features.numel() * num_classes):
        problem, _, _, scale = _posed(features, labels, num_classes, class_weights)
        _, held_out = _cross_validate(problem, fold_of, folds, scale)
    return held_out.double().masked_fill(fold_of[:, None] < 0, torch.nan)


def _few_threads(size: int) -> AbstractContextManager[Any]:
    """One thread for a `SMALL` problem, of torch and of SciPy."""
    return threadpool_limits(limits=1 if size <= SMALL else None)


def _posed(
    features: Tensor, labels: Tensor, num_classes: int, class_weights: Tensor | None
) -> tuple["_Problem", Tensor, Tensor, float]:
    """The problem, the basis of its features, their mean, and their mean squared distance from it.

    Raises:
        ValueError: A class does not occur, or has no weight.
    """
    if missing := sorted(set(range(num_classes)) - set(labels.tolist())):
        raise ValueError(f"the classes {missing} have no image")
    by_class = torch.ones(num_classes).double() if class_weights is None else class_weights.double()
    if bool((by_class <= 0).any()):
        raise ValueError("class weights must be above 0")
    mean = features.mean(dim=0)
    reduced, basis = _rotate(features - mean)
    problem = _Problem(reduced, labels, num_classes, by_class[labels])
    scale = max(float(reduced.square().sum(dim=1).mean()), torch.finfo(torch.float64).tiny)
    return problem, basis, mean, scale


def stratified_folds(labels: Tensor) -> tuple[Tensor, int]:
    """Fold of each image, int64 (n,), and the number of folds.

    There are at most 5, and no more than the images of the rarest class that has two. The only image of a class is
    never held out: its fold is -1.
    """
    counts = labels.bincount()
    several = counts[counts > 1]
    fold_of = torch.full_like(labels, -1)
    if not len(several):
        return fold_of, 0
    folds, first = min(FOLDS, int(several.min())), 0
    generator = torch.Generator().manual_seed(0)
    for label in (counts > 1).nonzero()[:, 0].tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        fold_of[members] = (first + torch.arange(len(members))) % folds
        first += len(members)  # so that all folds have the same size
    return fold_of, folds


def _rotate(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Features in an orthonormal basis in which they are uncorrelated, (n, r), and that basis, (d, r)."""
    images, width = centred.shape
    if images >= width:
        basis = torch.linalg.eigh(centred.T @ centred).eigenvectors
        return centred @ basis, basis
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    kept = sizes > sizes[0] * torch.finfo(torch.float64).eps * width
    return left[:, kept] * sizes[kept], right[kept].T


def _cross_validate(
    problem: "_Problem", fold_of: Tensor, folds: int, scale: float
) -> tuple[dict[float, float], Tensor]:
    """Candidate -> mean held-out cross-entropy, from the strongest penalty on; each starts from the one before. And
    the held-out log-probabilities (n, classes) of the best one."""
    single = _Problem(problem.features.float(), problem.labels, problem.num_classes, problem.weights.float())
    parts = [(single.subset(fold_of != fold), single.subset(fold_of == fold)) for fold in range(folds)]
    states = [train.start() for train, _ in parts]
    losses: dict[float, float] = {}
    weight = sum(float(held_out.weights.sum()) for _, held_out in parts)
    least, failures, best = math.inf, 0, states
    for candidate in (factor / scale for factor in CANDIDATES):
        states = [train.solve_roughly(candidate, state) for (train, _), state in zip(parts, states, strict=True)]
        total = sum(held_out.cross_entropy(state) for (_, held_out), state in zip(parts, states, strict=True))
        losses[candidate] = total / weight
        failures = failures + 1 if losses[candidate] > (1 - LEAST_GAIN) * least else 0
        least, best = (losses[candidate], states) if losses[candidate] < least else (least, best)
        if failures == PATIENCE:
            break
    held_out = problem.features.new_zeros(len(fold_of), problem.num_classes)
    for fold, ((_, part), state) in enumerate(zip(parts, best, strict=True)):
        held_out[fold_of == fold] = part.log_probabilities(state).to(held_out)
    return losses, held_out


@dataclass(frozen=True)
class _Problem:
    """Features (n, r), labels and weights of n images. A state is (classes, r + 1): weights, then bias."""

    features: Tensor
    labels: Tensor
    num_classes: int
    weights: Tensor

    def subset(self, chosen: Tensor) -> "_Problem":
        return _Problem(self.features[chosen], self.labels[chosen], self.num_classes, self.weights[chosen])

    def start(self) -> Tensor:
        """No weights, and as bias the logarithms of the class frequencies."""
        counts = self.labels.bincount(self.weights, self.num_classes).clamp(min=0.5)
        state = self.features.new_zeros(self.num_classes, self.features.shape[1] + 1)
        state[:, -1] = counts.log() - counts.log().mean()
        return state

    def cross_entropy(self, state: Tensor) -> float:
        """Weighted sum over the images."""
        own = self.log_probabilities(state).gather(1, self.labels[:, None])[:, 0]
        return -float((self.weights * own).sum())

    def solve_roughly(self, inverse_penalty: float, state: Tensor) -> Tensor:
        """Minimise with L-BFGS, preconditioned by the diagonal of the Hessian at `state`."""
        scale = self._scale(inverse_penalty, state)

        def objective(flat: Any) -> tuple[float, Any]:
            here = torch.from_numpy(flat).to(state.dtype).view_as(state) / scale
            value, gradient = self._value_and_gradient(here, inverse_penalty)
            return value, (gradient / scale).double().flatten().numpy()

        options = {"maxcor": 20, "maxiter": 1000, "ftol": 0.0, "gtol": ROUGH * self._root}
        start = (state * scale).double().flatten().numpy()
        result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        return torch.from_numpy(result.x).to(state.dtype).view_as(state) / scale

    def solve(self, inverse_penalty: float) -> Tensor:
        """Minimise to rounding errors: L-BFGS, then Newton steps, whose systems are solved by conjugate gradients."""
        state = self.solve_roughly(inverse_penalty, self.start())
        least, best = math.inf, state
        for _ in range(MOST_NEWTON_STEPS):
            scale = self._scale(inverse_penalty, state)
            value, gradient = self._value_and_gradient(state, inverse_penalty)
            size = float((gradient / scale).norm()) / self._root
            if size >= 0.5 * least:  # rounding errors are reached
                break
            least, best = size, state
            if size < EXACT:
                break
            step = self._newton_step(state, inverse_penalty, scale, gradient, min(0.01, size))
            fraction = 1.0
            while fraction > 1e-3 and self._value_and_gradient(state - fraction * step, inverse_penalty)[0] > value:
                fraction /= 2
            state = state - fraction * step
        return best

    @property
    def _root(self) -> float:
        return float(self.weights.sum()) ** 0.5

    def log_probabilities(self, state: Tensor) -> Tensor:
        return torch.log_softmax(self.features @ state[:, :-1].T + state[:, -1], dim=1)

    def _value_and_gradient(self, state: Tensor, inverse_penalty: float) -> tuple[float, Tensor]:
        log_probabilities = self.log_probabilities(state)
        own = log_probabilities.gather(1, self.labels[:, None])[:, 0]
        value = float(state[:, :-1].square().sum() / (2 * inverse_penalty) - (self.weights * own).sum())
        residuals = log_probabilities.exp()
        residuals[torch.arange(len(own)), self.labels] -= 1
        residuals *= self.weights[:, None]
        gradient = torch.cat([residuals.T @ self.features, residuals.sum(dim=0)[:, None]], dim=1)
        gradient[:, :-1] += state[:, :-1] / inverse_penalty
        return value, gradient

    def _scale(self, inverse_penalty: float, state: Tensor) -> Tensor:
        """Roots of the diagonal of the Hessian, (classes, r + 1), as if a class were equally unsure of all images."""
        probabilities = self.log_probabilities(state).exp()
        uncertainty = (self.weights @ (probabilities * (1 - probabilities))) / self.weights.sum()
        squares = torch.cat([self.weights @ self.features.square(), self.weights.sum()[None]])
        penalty = torch.full_like(squares, 1 / inverse_penalty)
        penalty[-1] = 0
        return (uncertainty.clamp(min=1e-6)[:, None] * squares + penalty).sqrt()

    def _newton_step(
        self, state: Tensor, inverse_penalty: float, scale: Tensor, gradient: Tensor, tolerance: float
    ) -> Tensor:
        """Solve `Hessian step = gradient` by preconditioned conjugate gradients, to a relative residual."""
        probabilities = self.log_probabilities(state).exp()

        def curvature(direction: Tensor) -> Tensor:
            change = self.features @ direction[:, :-1].T + direction[:, -1]
            change = probabilities * (change - (probabilities * change).sum(dim=1, keepdim=True))
            change *= self.weights[:, None]
            product = torch.cat([change.T @ self.features, change.sum(dim=0)[:, None]], dim=1)
            product[:, :-1] += direction[:, :-1] / inverse_penalty
            return product

        step, residual = torch.zeros_like(state), gradient / scale
        direction, square = residual, residual.square().sum()
        end = tolerance**2 * square
        for _ in range(MOST_CG_STEPS):
            if square <= end:
                break
            product = curvature(direction / scale) / scale
            length = square / (direction * product).sum()
            step, residual = step + length * direction, residual - length * product
            before, square = square, residual.square().sum()
            direction = residual + square / before * direction
        return step / scale
