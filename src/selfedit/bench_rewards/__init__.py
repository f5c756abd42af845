"""``selfedit bench rewards``: every reward and every screen on the same trials; which of them finds the self-edit that teaches?

Of each passage's own questions one half may choose, the other half is the exam that the choice never sees: what a self-edit is
worth is its accuracy there, and, less noisy, how much likelier the golds have become, with seeds of training that did not choose
it; then the halves change places. Each figure is a mean over passages, each the mean over which half and which seed chooses. Both
halves are marked as one exam, as a run's would be, and reliability is of rewards on all questions, which is what a run takes. A
share of each passage's sentences is left out of its own lesson (``edit.held_out``), for the reward ``sentences``.
"""

from selfedit.bench_rewards.figures import Measured
from selfedit.bench_rewards.measure import bench_rewards
from selfedit.bench_rewards.table import summarise

__all__ = ["Measured", "bench_rewards", "summarise"]
