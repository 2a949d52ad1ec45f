"""What a training will need, before it is paid for: ``mode=plan``.

cards.py        data sheets of some GPUs, and what this machine has
meter.py        counts operations, bytes and live memory of a step
step.py         one training step on fake tensors, measured
regions.py      Mask R-CNN's step at stated numbers of regions
calibration.py  seconds of a step, measured on this machine
making.py       all of it together
plan.py         what is known of a training, as text and as a row of a table
checklist.py    what still stands between the user and the run
"""
