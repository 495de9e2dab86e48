"""What the page says in words: how a verdict looks, what the terms mean."""

from __future__ import annotations

from dataclasses import dataclass

from topoopt.verdict import Verdict


@dataclass(frozen=True)
class Look:
    """How a verdict is shown: never by colour alone."""

    tone: str
    """Class of the card: good, warn, bad or neutral."""
    icon: str
    """Name of the drawing beside the word."""
    word: str
    of: str = "Learning rate"
    """What the word is said of."""


LOOKS = {
    "right": Look("good", "check", "Right"),
    "too low": Look("warn", "down", "Too low"),
    "too high": Look("bad", "up", "Too high"),
    "at the edge": Look("warn", "edge", "At the edge"),
    "collapsed": Look("bad", "cross", "Collapsed", "Run"),
    "not enough readings": Look("neutral", "dots", "Not enough readings", "Verdict"),
    "lower bound only": Look("neutral", "bound", "Lower bound only", "Verdict"),
}


def look(verdict: Verdict | None) -> Look:
    """The look of a verdict; a state that is not known here is shown by its own word."""
    if verdict is None:
        return Look("neutral", "dots", "No verdict", "")
    return LOOKS.get(verdict.state, Look("neutral", "dots", verdict.state, "Verdict"))


GLOSSARY = (
    ("r", "Proximity: the learning rate over the topological critical one, η/η*. It is the Lipschitz constant of the step "
     "that was taken: how much one step can stretch the distance of two neurons. It is local: of one batch, at one point."),
    ("η* (critical rate)", "The rate at which r is 1. Each parameter group has its own: its rate divided by r."),
    ("bracket", "Two estimates hold r between them. The spectral one (the step's Jacobian) is where the guarantee ends; the "
     "pairwise one (r_pair) is what pairs of neurons did in this step, and so a lower bound."),
    ("constrained", "r below 1: the step is bi-Lipschitz on the neurons. None merge in it, and the shape of the layer's "
     "cloud is kept."),
    ("permissive", "r from 1 to the edge: the guarantee is lost, and nothing forces a change."),
    ("simplification", "r at or past the edge: where neurons were seen to merge and loops to close."),
    ("edge", "The edge of stability in units of r: 2 for gradient descent, 2(1 + β) with momentum or Adam. Past it training "
     "no longer settles in the direction of the largest curvature."),
    ("factor", "What a policy multiplies the rate by. In report mode it is 1 throughout."),
    ("neuron", "All parameters of one of a layer's interchangeable units, as a point. A layer is a cloud of such points."),
    ("distortion", "The least (a) and largest (b) ratio of a distance between two neurons to what it was. a = b = 1 is a "
     "cloud unchanged; the heat map shows log(b / a), of one step or since the first measurement (with keep=\"host\")."),
    ("persistence", "Balls grow around the neurons. A feature is born at one radius and dies at another: clusters merge "
     "(H0), loops appear and are filled (H1). What lives long is shape, what dies at once is noise."),
    ("barcode, diagram", "The same features drawn twice: as bars from birth to death, and as points (birth, death). The "
     "further from the diagonal, the longer the life. Essential features never die."),
    ("Betti curve", "How many features of a degree are alive at each scale."),
    ("merge tree", "Degree 0 as a tree: at each distance in turn the two nearest clusters of neurons join (single linkage). A "
     "long branch is a group of neurons of its own; many short ones are a cloud without groups. Beside it, how many clusters "
     "are left at each distance."),
    ("twins, vanishing, silent", "Neurons nearly equal to another; neurons with almost no weight; units that gave one output "
     "on every sample of the batch."),
    ("warming up", "A preconditioner (Adam's second moment) that has seen too few steps: r is shown as a hollow mark and is "
     "no phase of the run."),
)  # fmt: skip
"""(term, meaning), in the order in which a reader meets them."""
