"""Template of the page of ``predict_speedups.py``."""

PAGE = """# What ranks buy, by a cost model

Made by `python tools/predict_speedups.py --out docs/results/speedups.md`. **Nothing on this page was measured on a
GPU.** It is the arithmetic of `vitrail.comm.trace.speedup_model`, which a test holds to the simulator's makespans; the
simulator runs the same communication code as a real run. What went in:

- [model] {q} ms for a forward of two rows (one view of 1024x1024 with both branches): the whole time of CutDiffusion
  at 2048x2048 on an RTX 4090 over its 325 such forwards, as in ASGDiffusion's table 1. An upper bound: it contains
  decoding and other work.
- [assumed] {launch} of that is spent whatever the number of rows; a mask costs the key view's forward 5% more.
- [assumed] {tile} s for decoding a tile (6, 9, 16, 36 tiles by size), {serial} s that cannot be shared.
- [assumed] Links, as latency of a message and bytes a second:
  {links}.
  A rank's link carries one copy for each other rank; links share nothing. Answers are 256 KiB a row.
- 25 steps of structure (lattice), 25 of windows (half overlap), as in the paper.

## Speed-ups

The ideals know equal units and nothing else: whole views or single branches with a barrier at every step, and windows
that wait for their neighbours alone (dataflow; from list scheduling). The predictions are of a whole run on PCIe
against the prediction for one rank: with a barrier at every step and both branches in a forward ("views") or one
("branches"), and with windows without a barrier ("dataflow", of `--exchange dataflow`, the better of both). Seconds are
of the best, with that option or without. The paper's
column is its table 1 ([ASGDiffusion](https://arxiv.org/abs/2412.06163)), four GPUs against one, and its
seconds.

![Speed-ups by size and ranks](speedups.png)

{speedups}

Branches on different ranks pay where views do not divide evenly, and cost where they do, since each forward has its
launch. The rest of the distance to the ideals is decoding and the serial second.

### Windows without a barrier

The window stage alone, without decoding and the serial second, on PCIe. "dataflow" is `--exchange dataflow`, which is
off by default. "barrier" and "dataflow" are against one rank
with both branches in a forward; the next column is against one rank with the same micro-batches, which is the rank that
gives the same bits, and the last is its share of what the ranks' speeds add up to. Jitter is the mean of {seeds} seeds.

{flows}

With one row a forward each forward has its launch, so eight ranks can be at most 7.27 times as fast as one that has
both branches in a forward. With both, one window of nine at 2048x2048 overlaps all others, and nobody can do more than
wait for it; with one row a forward it is shared by two ranks.

### More ranks than work, 4096x4096

{many}

There are 98 rows in a step of the window stage: beyond that a rank has nothing to do. At 1,024 ranks it is even
slower, because the model lets every sender send a copy to each; a library that forwards in a tree or ring would not.

## Where asynchronous guidance pays

Structure stage alone, no pixel interaction. "gather" collects all predictions at every step. "channel" lets each rank
advance its own views, guided by the key view's message of the same step (lag 0) or the one before (lag 1), and
gathers once, at the end of the stage. Time relative to gathering without latency and jitter; means of {seeds} seeds.

![Structure stage against latency and jitter](speedups-async.png)

{structure}

Whole runs; the window stage gathers in all of them:

{whole}

What this says:

- **On equal ranks with a link of 10 Gbit or better it pays nothing**: at most {calm} of the run. A message takes a
  hundredth of a forward or less, and gathering finished predictions runs under the next forward.
- **What pays is to drop the collective, not to look a step back.** With one message in one direction, ranks fall
  behind the key view's rank by one latency in the first step and stay there: nobody pays it again, also with lag 0.
  In the whole runs above, lag 1 saves at most {lag} more than lag 0.
- Lag 1 itself shows where a message takes longer than a forward and a rank has one view only: at 2048x2048 on 4 ranks
  and 300 ms it saves {late} of the structure stage against lag 0. But that is for lack of slots: the channel holds
  three versions, and the key view's rank waits for the slowest. With six slots lag 0 saves {deep}, and no message
  is old. With a jitter of 30% and fast links, lag 1 saves {shaky} of it.
- **Jitter is where the channel pays**: without a barrier each rank's slow and fast forwards cancel out. At 30% jitter
  and one view a rank the structure stage is {shaky_channel} shorter; at 20% a whole run on PCIe {rough}.
- On a very slow link (100 Mbit, 30 ms) it is {slow} of the run, and the window stage's gathers are then the cost.
- With pixel interaction, which the methods `cutdiffusion` and `asg` have, every view needs every other at each
  step: there is no channel to use, and the column "gather" is what one gets, whatever the lag.

Not in the model: what a step's lag does to the picture, attention's growth with size, forwards of more than two rows,
links that are shared, ranks that are slow for good (the plan gives those less work), and the few messages at the
beginning and the end of a run.

## The same as a timeline

Two simulated runs of 2048x2048 on four ranks, eight steps of structure and three of windows, with a latency of 20 ms
and a jitter of 20%, so that there is something to see.

![Timeline of a synchronous and an asynchronous run](speedups-timeline.png)
"""
