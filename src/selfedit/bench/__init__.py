"""``selfedit bench inner``: the ways to train one self-edit's adapter, side by side on the same documents.

Each way lives in a process of its own (so that its peak memory is its own), one thread each, and takes its turn; the turns are
interleaved and the median counts. Seconds are for training alone; loading and a few warming steps are left out.

Useful work, the same for all rows: tokens of documents, no padding. FLOPs of one token's pass through the adapted part of the
model: 4 for each base weight there (2 forward, 2 for the gradient of the input; the base has no gradient of its own; q, k and v
of the first adapted layer need none), 6 for each weight of the adapter, 4 for each weight of the head at a labelled token, 6 d
T for attention over a document of T tokens (causal; d heads times head size). Layers below the first adapted one: 2 for each
weight, once for each distinct document. A row's share of the peak is held against the product measured before and after its turn.

What speaks for a row and what against: freed memory is kept in the stacked rows only (``lm/buffers.py`` is a part of ours);
drawing the initial weights counts in the stacked rows only. The exam is the one of ``learn``: greedy answers and the golds'
margins.
"""

from selfedit.bench.turns import bench_inner
from selfedit.bench.work import EXAM_QUESTIONS, Workload, workload

__all__ = ["EXAM_QUESTIONS", "Workload", "bench_inner", "workload"]
