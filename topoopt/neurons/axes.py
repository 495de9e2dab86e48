"""Axes of tensors, and which of them are the same axis.

Every dimension of every tensor in a graph is an `Axis`. Operators say which axes are one (`unify`), that one is a
product of others (a reshape splits it into factors, row-major) or a sum of others (cat and split put segments side by
side), and that one cannot be permuted (`freeze`, with the reason). What is left in the end are atoms: classes of axes
without inner structure, each of which can be permuted as a whole unless it is frozen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence


class Axis:
    """A node of the union-find: an atom, or a product or sum of other axes."""

    __slots__ = ("_parent", "frozen", "kind", "marks", "parts", "size")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.kind = "atom"
        self.parts: list[Axis] = []
        self.marks: set[str] = set()
        self._parent: Axis | None = None

    @classmethod
    def product(cls, parts: Sequence[Axis]) -> Axis:
        """The row-major product of axes; factors of size 1 are left out."""
        real = [part for part in parts if part.size != 1]
        if len(real) == 1:
            return real[0]
        axis = cls(math.prod(part.size for part in real))
        if real:
            axis.kind, axis.parts = "product", real
        return axis

    @classmethod
    def sum(cls, parts: Sequence[Axis]) -> Axis:
        """Axes side by side; empty segments are left out."""
        real = [part for part in parts if part.size != 0]
        if len(real) == 1:
            return real[0]
        axis = cls(sum(part.size for part in real))
        if real:
            axis.kind, axis.parts = "sum", real
        return axis

    def find(self) -> Axis:
        """The representative of this axis's class."""
        root = self
        while root._parent is not None:
            root = root._parent
        axis = self
        while axis._parent is not None:
            axis._parent, axis = root, axis._parent
        return root

    def atoms(self) -> Iterator[Axis]:
        """The atoms this axis is made of, with repetitions."""
        root = self.find()
        if root.kind == "atom":
            yield root
        for part in root.parts:
            yield from part.atoms()

    def freeze(self, reason: str) -> None:
        """Nobody may permute any part of this axis; the first reason is kept."""
        for atom in list(self.atoms()):
            atom.frozen = atom.frozen or reason

    def mark(self, what: str) -> None:
        """Leave a note for naming the kind of the group that may come of it."""
        for atom in self.atoms():
            atom.marks.add(what)

    def factors(self) -> list[Axis]:
        """The factors of a product, products inside it dissolved; [itself] for anything else."""
        root = self.find()
        if root.kind != "product":
            return [root]
        return [factor for part in root.parts for factor in part.factors()]

    def segments(self) -> list[Axis]:
        """The segments of a sum, sums inside it dissolved; [itself] for anything else."""
        root = self.find()
        if root.kind != "sum":
            return [root]
        return [segment for part in root.parts for segment in part.segments()]

    def split(self, sizes: Sequence[int]) -> list[Axis]:
        """Refine into a product of axes of the given sizes and return them."""
        target = Axis.product([Axis(size) for size in sizes])
        unify(self, target)
        return regroup(self.factors(), sizes)

    def cut(self, sizes: Sequence[int]) -> list[Axis]:
        """Refine into a sum of segments of the given sizes and return them."""
        real = [size for size in sizes if size]
        if len(real) > 1:
            unify(self, Axis.sum([Axis(size) for size in real]))
        pieces = iter(_gather(self.segments(), real))
        return [next(pieces) if size else Axis(0) for size in sizes]


def unify(a: Axis, b: Axis) -> None:
    """Say that two axes are one. Where that cannot be (sizes differ, structures clash) both are frozen."""
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.size != b.size:
        reason = f"axes of sizes {a.size} and {b.size} meet"
        a.freeze(reason)
        b.freeze(reason)
    elif a.kind == "atom" or b.kind == "atom":
        _absorb(*((a, b) if a.kind == "atom" else (b, a)))
    elif a.kind == b.kind == "product":
        _unify_products(a, b)
    elif a.kind == b.kind == "sum":
        _unify_sums(a, b)
    else:
        _unify_product_with_sum(*((a, b) if a.kind == "product" else (b, a)))


def regroup(factors: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """Group a sequence of factors into products of the given sizes, splitting factors where a boundary runs through one."""
    queue, grouped = [factor.find() for factor in factors if factor.size != 1], []
    for size in sizes:
        taken: list[Axis] = []
        while math.prod(axis.size for axis in taken) < size:
            if not queue:
                break
            need = size // math.prod(axis.size for axis in taken)
            head = queue.pop(0)
            if need % head.size == 0:
                taken.append(head)
            elif head.size % need == 0 and head.kind == "atom":
                first, rest = _divide(head, need)
                taken.append(first)
                queue.insert(0, rest)
            elif head.kind == "sum" and (block := math.gcd(*(segment.size for segment in head.segments()))) > 1:
                blocks = Axis.product([Axis(head.size // block), Axis(block)])
                unify(blocks, head)  # the same block in each segment
                queue[:0] = blocks.factors()
            else:
                head.freeze(f"a reshape cuts through an axis of size {head.size}")
                taken.append(Axis(need, head.frozen or "cut by a reshape"))
                if head.size % need == 0:
                    queue.insert(0, Axis(head.size // need, "cut by a reshape"))
        grouped.append(Axis.product(taken) if taken else Axis(size))
        if grouped[-1].size != size:
            grouped[-1].freeze("a reshape that does not line up")
            grouped[-1] = Axis(size, "a reshape that does not line up")
    return grouped


def _absorb(atom: Axis, other: Axis) -> None:
    if other.kind != "atom" and any(part is atom for part in other.atoms()):
        atom.freeze("an axis contains itself")
        return
    atom._parent = other
    if atom.frozen:
        other.freeze(atom.frozen)
    for what in atom.marks:
        other.mark(what)


def _divide(atom: Axis, first: int) -> tuple[Axis, Axis]:
    """Make an atom the product of two and return them."""
    left, right = Axis(first, atom.frozen), Axis(atom.size // first, atom.frozen)
    left.marks, right.marks = set(atom.marks), set(atom.marks)
    atom.kind, atom.parts = "product", [left, right]
    return left, right


def _split_at(atom: Axis, first: int) -> tuple[Axis, Axis]:
    """Make an atom the sum of two segments and return them."""
    left, right = Axis(first, atom.frozen), Axis(atom.size - first, atom.frozen)
    left.marks, right.marks = set(atom.marks), set(atom.marks)
    atom.kind, atom.parts = "sum", [left, right]
    return left, right


def _unify_products(a: Axis, b: Axis) -> None:
    left, right = a.factors(), b.factors()
    while left and right:
        x, y = left.pop(0).find(), right.pop(0).find()
        if x.size == y.size:
            unify(x, y)
        elif x.size % y.size == 0 and x.kind == "atom":
            first, rest = _divide(x, y.size)
            unify(first, y)
            left.insert(0, rest)
        elif y.size % x.size == 0 and y.kind == "atom":
            first, rest = _divide(y, x.size)
            unify(x, first)
            right.insert(0, rest)
        else:
            reason = f"factors of sizes {x.size} and {y.size} meet"
            for axis in (x, y, *left, *right):
                axis.freeze(reason)
            return


def _unify_sums(a: Axis, b: Axis) -> None:
    left, right = a.segments(), b.segments()
    while left and right:
        x, y = left.pop(0).find(), right.pop(0).find()
        if x.size == y.size:
            unify(x, y)
            continue
        big, small, rest = (x, y, left) if x.size > y.size else (y, x, right)
        pieces = _cut_off(big, small.size)
        unify(pieces[0], small)
        rest.insert(0, pieces[1])


def _cut_off(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """Cut a segment that is no sum after `size` positions."""
    if axis.kind == "atom":
        return _split_at(axis, size)
    inner = axis.factors()[-1]
    block = inner.size
    if size % block == 0:
        _freeze_outer(axis, inner)
        return _copies(inner, size // block), _copies(inner, (axis.size - size) // block)
    axis.freeze("a cut runs through the blocks of an axis")
    return Axis(size, "a cut runs through blocks"), Axis(axis.size - size, "a cut runs through blocks")


def _unify_product_with_sum(product: Axis, sum_: Axis) -> None:
    """A product (k, n) next to segments: k copies of n side by side, told apart by their places."""
    segments = sum_.segments()
    factors = product.factors()
    for keep in range(1, len(factors)):
        inner = Axis.product(factors[keep:])
        if all(segment.size % inner.size == 0 for segment in segments):
            for factor in factors[:keep]:
                factor.freeze("its units lie in different segments")
            for segment in segments:
                unify(segment, _copies(inner, segment.size // inner.size))
            return
    reason = "a product and a sum of other sizes meet"
    product.freeze(reason)
    sum_.freeze(reason)


def _copies(inner: Axis, count: int) -> Axis:
    return inner if count == 1 else Axis.product([Axis(count, "its units lie in different segments"), inner])


def _freeze_outer(axis: Axis, inner: Axis) -> None:
    for factor in axis.factors():
        if factor is not inner:
            factor.freeze("its units lie in different segments")


def _gather(segments: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """Group segments into sums of the given sizes; boundaries are there already, since the axis was refined."""
    queue, grouped = list(segments), []
    for size in sizes:
        taken: list[Axis] = []
        while sum(axis.size for axis in taken) < size and queue:
            taken.append(queue.pop(0))
        if sum(axis.size for axis in taken) != size:
            for axis in itertools.chain(taken, queue):
                axis.freeze("a cut does not line up")
            grouped.append(Axis(size, "a cut does not line up"))
        else:
            grouped.append(Axis.sum(taken))
    return grouped
