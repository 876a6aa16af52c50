"""Matrices of the kernels in C as data, and back. Knows no file: whoever stores the data says what becomes of
its tensors."""

from msgspec import Struct
from torch import Tensor

from .combined_matrix import ReorderedMatrix, StackedMatrix, SumMatrix
from .cpu.library import Library
from .matmul import Matrix
from .native_matrix import NativeMatrix, NativeWeights


class Stacked(Struct, frozen=True, tag=True):
    matrices: tuple["StoredMatrix", ...]


class Summed(Struct, frozen=True, tag=True):
    a: "StoredMatrix"
    b: "StoredMatrix"


class Reordered(Struct, frozen=True, tag=True):
    matrix: "StoredMatrix"
    order: Tensor


StoredMatrix = NativeWeights | Stacked | Summed | Reordered


def to_store(matrix: Matrix) -> StoredMatrix:
    match matrix:
        case NativeMatrix():
            return matrix.weights
        case StackedMatrix():
            return Stacked(tuple(map(to_store, matrix.matrices)))
        case SumMatrix():
            return Summed(to_store(matrix.a), to_store(matrix.b))
        case ReorderedMatrix():
            return Reordered(to_store(matrix.matrix), matrix.order)
    raise TypeError(f"a {type(matrix).__name__} is not one of the kernels in C")


def restored(stored: StoredMatrix, kernels: Library) -> Matrix:
    match stored:
        case NativeWeights():
            return NativeMatrix(kernels, stored)
        case Stacked(matrices):
            return StackedMatrix([restored(matrix, kernels) for matrix in matrices])
        case Summed(a, b):
            return SumMatrix(restored(a, kernels), restored(b, kernels))
        case Reordered(matrix, order):
            return ReorderedMatrix(restored(matrix, kernels), order)
